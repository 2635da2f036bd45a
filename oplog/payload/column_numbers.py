"""Identifies the columns of a logged type by their numbers in the catalog, not by name.

A renamed column keeps its number (`attnum`). A column that was dropped and added again has a
new one. Numbers are valid inside one database only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Numbers:
    """The catalog's numbers of one table in one database.

    `database` is the server's system identifier and the database's oid, with a slash between.
    `table` is the table's oid, `columns` every column's `attnum`, whether it is logged or not.
    """

    database: str
    table: int
    columns: Mapping[str, int]


def match_numbers(old: Sequence[Numbers], new: Sequence[Numbers]) -> tuple[Numbers, Numbers] | None:
    """Return both revisions' numbers in the newest database that has both, or None."""
    by_database = {numbers.database: numbers for numbers in old}
    for numbers in reversed(new):
        if numbers.database in by_database:
            return by_database[numbers.database], numbers
    return None


def is_same_table(old: Sequence[Numbers], new: Sequence[Numbers], names: Iterable[str]) -> bool:
    """Whether the table is the same, and each of `names` is the same column of it.

    True if no database has numbers of both: nothing contradicts the names then.
    """
    pair = match_numbers(old, new)
    if pair is None:
        return True
    before, now = pair
    return before.table == now.table and all(
        before.columns.get(name) == now.columns.get(name) for name in names
    )
