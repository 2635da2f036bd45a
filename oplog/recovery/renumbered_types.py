"""Revisions of another database's log, with this database's column numbers. Pure.

A restore makes the tables anew, so the numbers in the archive belong to tables that are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from oplog.payload.column_numbers import Numbers
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import DERIVED, Shape
from oplog.postgres.live_table import LiveTable
from oplog.replay.type_target import TypeTarget

NO_TABLE = 1
"""The oid of no table: those below 16384 are given to nothing that users make."""


def place_shapes(
    shapes: Sequence[Shape], placed: Iterable[tuple[LiveTable, TypeTarget]]
) -> Iterator[Shape]:
    """The same revisions, those that this database's tables have with their numbers added.

    `placed` are the tables with the revisions that they have the columns of.
    """
    tables = {(one.shape.type_name, one.shape.revision): live for live, one in placed}
    present = {table.database for table in tables.values()}
    for shape in shapes:
        numbers = tuple(_set_apart(one, present) for one in shape.numbers)
        table = tables.get((shape.type_name, shape.revision))
        if table is not None:
            numbers = (*numbers, table.numbers)
        yield replace(shape, numbers=numbers)


def mark_absent(
    shapes: Iterable[Shape], absent: Collection[str], *, database: str
) -> Iterator[Shape]:
    """The same revisions, the newest of each type of `absent` with a table that is gone.

    So a table that is created later is another one, and not the table of the log's rows.
    """
    known = list(shapes)
    newest = {name: max(s.revision for s in known if s.type_name == name) for name in absent}
    gone = Numbers(database, NO_TABLE, {})
    for shape in known:
        if shape.type_name in absent and shape.revision == newest[shape.type_name]:
            yield replace(shape, numbers=(*shape.numbers, gone))
        else:
            yield shape


def make_next(live: LiveTable, target: TypeTarget) -> Shape | None:
    """The revision that follows where a database goes on with the columns of an earlier one.

    It follows that one, and not the newest: this database has none of the rows that came with the
    revisions in between. None if the table has the newest, and if the application counts the
    revisions itself.
    """
    shape, newest = target.shape, target.shapes[-1]
    if shape.revision >= newest.revision or not shape.message_name.startswith(f"{DERIVED}."):
        return None
    return replace(
        shape,
        revision=newest.revision + 1,
        numbers=(live.numbers,),
        change=SchemaChange(previous=shape.revision),
    )


def _set_apart(numbers: Numbers, present: set[str]) -> Numbers:
    """Rename a database of the same id: its numbers are those of tables that are gone."""
    return (
        replace(numbers, database=f"{numbers.database}~")
        if numbers.database in present
        else numbers
    )
