"""Revisions of another database's log, with this database's column numbers. Pure.

A restore makes the tables anew, so the numbers in the archive belong to tables that are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from oplog.payload.column_numbers import Numbers
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable


def place_shapes(shapes: Sequence[Shape], live: Mapping[str, LiveTable]) -> Iterator[Shape]:
    """The same revisions, the newest of each type with its live table's numbers added.

    `live` are this database's tables by type, which have the columns of those revisions.
    """
    newest = {shape.type_name: shape for shape in shapes}
    present = {table.database for table in live.values()}
    for shape in shapes:
        numbers = tuple(_set_apart(one, present) for one in shape.numbers)
        table = live.get(shape.type_name)
        if table is not None and newest[shape.type_name] is shape:
            numbers = (*numbers, table.numbers)
        yield replace(shape, numbers=numbers)


def _set_apart(numbers: Numbers, present: set[str]) -> Numbers:
    """Rename a database of the same id: its numbers are those of tables that are gone."""
    return (
        replace(numbers, database=f"{numbers.database}~")
        if numbers.database in present
        else numbers
    )
