"""What an adoption reports to its caller, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AdoptedType:
    """Progress of the adoption of one type.

    `rows` and `entries` were logged by this call, `earlier_rows` by earlier calls.
    `estimated_rows` is the planner's estimate of the table's rows, the number of those of a small
    table that was never analysed, and None for a large one. `finished`: every row that
    the table had is in the log.
    """

    type_name: str
    table: str
    rows: int
    entries: int
    earlier_rows: int
    estimated_rows: int | None
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
class RefillReport:
    """Which rows of a type were logged again after DDL, and what of them.

    `columns` are those that were, beside the key; with `whole` they are all. `rows` and `entries`
    were logged by this call, `earlier_rows` by earlier ones that were interrupted.
    """

    type_name: str
    table: str
    revision: int
    columns: tuple[str, ...]
    whole: bool = False
    rows: int = 0
    entries: int = 0
    earlier_rows: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "type": self.type_name,
            "table": self.table,
            "revision": self.revision,
            "columns": list(self.columns),
            "whole": self.whole,
            "rows": self.rows,
            "entries": self.entries,
            "earlier_rows": self.earlier_rows,
        }
