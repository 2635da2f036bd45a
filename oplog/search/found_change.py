"""What a search finds: changes, a page of them, and how far it got."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from oplog.entry import OpType
from oplog.json_model import make_core_schema, make_json_schema
from oplog.json_value import format_time, hide, to_json_value
from oplog.reading.page import Page


@dataclass(frozen=True, slots=True)
class FoundChange:
    """A change of one row, with the entry that it is in.

    `key` and `fields` are as in `Operation`. `before` has the searched column's value before the
    change, if the search asked for one; else it is empty. `position`, `sequence`, `entry_id`,
    `metadata` and `recorded_at` are those of the entry.
    """

    position: int
    sequence: int | None
    aggregate: str
    kind: OpType
    type_name: str
    key: Mapping[str, Any]
    fields: Mapping[str, Any]
    metadata: Mapping[str, list[str]]
    recorded_at: datetime
    entry_id: UUID
    before: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The change as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "position": self.position,
            "sequence": self.sequence,
            "aggregate": self.aggregate,
            "kind": self.kind.name.lower(),
            "type": self.type_name,
            "key": to_json_value(self.key),
            "fields": to_json_value(hide(self.fields, redact=redact)),
            "before": to_json_value(hide(self.before, redact=redact)),
            "metadata": {key: list(values) for key, values in self.metadata.items()},
            "recorded_at": format_time(self.recorded_at),
            "entry_id": str(self.entry_id),
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return make_core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return make_json_schema(
            cls,
            (
                "position",
                "sequence",
                "aggregate",
                "kind",
                "type",
                "key",
                "fields",
                "before",
                "metadata",
                "recorded_at",
                "entry_id",
            ),
        )


class SearchPage(Page[FoundChange]):
    """Changes that were found, newest first, and how far the search got.

    `cursor` asks for the next page; None says that everything was searched. `scanned` counts the
    records that were opened, and `reached` is the position of the last one. `complete` is False if
    the search stopped at its `scan_limit`: the page may have fewer changes than its limit then,
    and there may be more.
    """

    def __init__(
        self,
        changes: Iterable[FoundChange] = (),
        *,
        cursor: str | None = None,
        scanned: int = 0,
        reached: int | None = None,
        complete: bool = True,
    ) -> None:
        super().__init__(changes, cursor=cursor)
        self.scanned = scanned
        self.reached = reached
        self.complete = complete

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The page as one JSON object."""
        return {
            "changes": [change.to_json(redact=redact) for change in self],
            "cursor": self.cursor,
            "scanned": self.scanned,
            "reached": self.reached,
            "complete": self.complete,
        }
