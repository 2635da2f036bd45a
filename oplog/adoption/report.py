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
    """Progress of the adoption of one type.

    `rows` and `entries` were logged by this call, `earlier_rows` by earlier calls.
    `estimated_rows` is the planner's estimate of the table's rows. `finished`: every row that
    the table had is in the log.
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
    """What an adoption logged, by type, in the order of adoption."""

    types: tuple[AdoptedType, ...]

    @property
    def rows(self) -> int:
        """Rows logged by this call."""
        return sum(one.rows for one in self.types)

    @property
    def entries(self) -> int:
        """Entries written by this call."""
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
    """Saved progress of an adoption.

    `after` is the key of the last adopted row, as text; `revision` is the revision of the type
    when the adoption began.
    """

    after: dict[str, str] | None = None
    rows: int = 0
    entries: int = 0
    done: bool = False
    revision: int = 0

    def to_json(self) -> str:
        """Return the text that is saved."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Reached:
        """Return the inverse of `to_json`; None stands for the beginning."""
        try:
            return cls() if text is None else cls(**json.loads(text))
        except (TypeError, ValueError) as cause:
            raise DecodeError(
                f"the saved progress of an adoption cannot be read: {text!r:.200}",
                hint="delete its row in oplog_checkpoint: the adoption then starts again",
            ) from cause
