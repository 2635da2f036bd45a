"""Progress of an adoption: what the caller gets, and what is saved for the next call.

Saved progress may have been written by another version or changed by hand, so it is checked when
it is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from oplog.errors import DecodeError


@dataclass(frozen=True, slots=True)
class AdoptedType:
    """How far the adoption of one type is.

    `rows` and `entries` were logged by this call, `earlier_rows` by calls before it.
    `estimated_rows` is what the planner believes the table has. `finished` says that every
    row there was is in the log.
    """

    type_name: str
    table: str
    rows: int
    entries: int
    earlier_rows: int
    estimated_rows: int
    finished: bool

    def to_json(self) -> dict[str, Any]:
        """The type's part of the report as one JSON object."""
        return {
            "type": self.type_name,
            "table": self.table,
            "rows": self.rows,
            "entries": self.entries,
            "earlier_rows": self.earlier_rows,
            "estimated_rows": self.estimated_rows,
            "finished": self.finished,
        }


@dataclass(frozen=True, slots=True)
class AdoptionReport:
    """What an adoption logged, by type, in the order in which the types were adopted."""

    types: tuple[AdoptedType, ...]

    @property
    def rows(self) -> int:
        """Rows that this call logged."""
        return sum(one.rows for one in self.types)

    @property
    def entries(self) -> int:
        """Entries that this call wrote."""
        return sum(one.entries for one in self.types)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "rows": self.rows,
            "entries": self.entries,
            "types": [one.to_json() for one in self.types],
        }


@dataclass(frozen=True, slots=True)
class Reached:
    """How far an adoption came, as it is saved.

    `after` is the last adopted row's key, as text; `revision` the type's when it began.
    """

    after: dict[str, str] | None = None
    rows: int = 0
    entries: int = 0
    done: bool = False
    revision: int = 0

    def to_json(self) -> str:
        """What is saved."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Reached:
        """The inverse of `to_json`; None is the beginning."""
        try:
            return cls() if text is None else cls(**json.loads(text))
        except (TypeError, ValueError) as cause:
            raise DecodeError(
                f"the saved progress of an adoption cannot be read: {text!r:.200}",
                hint="delete its row in oplog_checkpoint: the adoption then begins again",
            ) from cause
