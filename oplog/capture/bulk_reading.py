"""Reads the values of `BulkRows`, some rows at a time, and compares the rows with their images."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from oplog.capture.bulk import BulkRows
from oplog.capture.merge import TouchedRow, list_group_names, settle_rows
from oplog.capture.readback import read_columns, read_rows
from oplog.entry import OpType
from oplog.errors import CaptureMismatchError
from oplog.value import Wire

Columns = list[list[Wire | None]]


def read_bulk(connection: Connection, rows: BulkRows, numbers: Sequence[int]) -> Columns:
    """The written columns of the rows with these numbers, as the table has them now.

    Only those of the first rows, if they are large; none of rows that were deleted. Raises
    `CaptureMismatchError` where images and table contradict each other, and
    `NotCapturableError` where a row may be hidden.
    """
    kind, shape = rows.kind, rows.bound.shape
    names = (*shape.key_names, *list_group_names(rows.bound))
    known = [[column[n] for n in numbers] for column in (*rows.keys, *rows.groups)]
    keys = known[: len(shape.key_names)]
    if kind is OpType.DELETE:
        gone = read_columns(connection, rows.bound, keys, columns=shape.key_names)
        if any(part is not None for part in gone[0]) or len(gone[0]) != len(numbers):
            raise _contradict(connection, rows, numbers)
        return []
    wanted = tuple(dict.fromkeys((*names, *rows.written)))
    columns = read_columns(connection, rows.bound, keys, columns=wanted)
    found = dict(zip(wanted, columns, strict=True))
    count = len(columns[0])
    # That also says that each row was found, and that they are in their order.
    if [found[name] for name in names] != [column[:count] for column in known]:
        raise _contradict(connection, rows, numbers)
    return [found[name] for name in rows.written]


def _contradict(
    connection: Connection, rows: BulkRows, numbers: Sequence[int]
) -> CaptureMismatchError:
    """The error for a row that is not as it has to be; raises another if that says more."""
    bound = rows.bound
    keys = list(zip(*[[column[n] for n in numbers] for column in rows.keys], strict=True))
    touched = [TouchedRow(bound, key, frozenset(rows.written)) for key in keys]
    for n, row in zip(numbers, touched, strict=True):
        group = tuple([column[n] for column in rows.groups])
        if rows.kind is OpType.CREATE:
            row.enter(group)
        elif rows.kind is OpType.DELETE:
            row.leave(group)
    found = read_rows(connection, bound, keys, columns=bound.shape.names)
    settle_rows(connection, touched, found)
    return CaptureMismatchError(
        f"{bound.live.qualified}: rows are not as the guards' images say, one of them with key "
        f"{keys[0]!r}",
        hint="the rows were changed on a way that the guards do not see; run `oplog doctor`",
    )
