"""What an adoption reports to its caller, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


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
