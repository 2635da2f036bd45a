"""Values that a new column has in older rows, for a database that was migrated by itself.

A default such as `now()` is worked out once, when the column is added. A follower's own migration
runs at another time, and gives its rows another value than the log says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.quoting import quote
from oplog.postgres.work import Driver
from oplog.replay.type_target import TypeTarget


@dataclass(frozen=True, slots=True)
class FilledColumn:
    """A column of a live table, and the text of the value that all rows have in it."""

    table: LiveTable
    name: str
    text: str | None


def list_filled(
    before: Iterable[Shape], placed: Iterable[tuple[LiveTable, TypeTarget]]
) -> Iterator[FilledColumn]:
    """The columns that tables got since they were last looked at.

    `before` are the revisions that this database knew, `placed` its tables with those that they
    have the columns of now. Nothing for a table that no revision was of.
    """
    known = list(before)
    for table, target in placed:
        shape = target.shape
        had = [one for one in known if one.type_name == shape.type_name and _is_of(one, table)]
        if had:
            since = max(one.revision for one in had)
            for number, text in _join_fills(target.shapes, since, shape.revision):
                if number in shape.by_number:
                    yield FilledColumn(table, shape.by_number[number].name, text)


def fill_columns(driver: Driver, columns: Iterable[FilledColumn]) -> None:
    """Give all rows the value, where they have another one; triggers must be disabled."""
    for column in columns:
        name = quote(column.name)
        pg_type = next(one.pg_type for one in column.table.columns if one.name == column.name)
        driver.query(
            f"UPDATE {column.table.qualified} SET {name} = $1::text::{pg_type} "
            f"WHERE {name}::text IS DISTINCT FROM $1::text",
            (column.text,),
        )


def _is_of(shape: Shape, table: LiveTable) -> bool:
    return any((one.database, one.table) == (table.database, table.oid) for one in shape.numbers)


def _join_fills(shapes: Sequence[Shape], since: int, upto: int) -> Iterator[tuple[int, str | None]]:
    for shape in shapes:
        if since < shape.revision <= upto:
            yield from shape.change.fills.items()
