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
    """The same revisions; the newest of each type with the numbers of its live table.

    `live` are this database's tables by type, which have the columns of those revisions.
    """
    newest = {shape.type_name: shape for shape in shapes}
    here = {table.database for table in live.values()}
    for shape in shapes:
        numbers = tuple(_leave_out(one, here) for one in shape.numbers)
        table = live.get(shape.type_name)
        if table is not None and newest[shape.type_name] is shape:
            numbers = (*numbers, table.numbers)
        yield replace(shape, numbers=numbers)


def _leave_out(numbers: Numbers, here: set[str]) -> Numbers:
    """Under a name of its own what this database was before its tables were made anew."""
    return (
        replace(numbers, database=f"{numbers.database}~") if numbers.database in here else numbers
    )
