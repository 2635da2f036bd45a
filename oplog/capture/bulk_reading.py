"""Reads the values of `BulkRows`, some rows at a time, and compares the rows with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.engine import Connection

from oplog.capture.bulk import BulkRows
from oplog.capture.merge import TouchedRow, list_group_names, settle_rows
from oplog.capture.readback import read_columns, read_rows
from oplog.entry import OpType
from oplog.errors import CaptureMismatchError
from oplog.type_binding import BoundType
from oplog.value import Wire


class BulkReader:
    """Reads rows on the connection that touched them; `types` has the bound types by name."""

    def __init__(self, connection: Connection, types: Mapping[str, BoundType]) -> None:
        self._connection = connection
        self._types = types

    def __call__(self, rows: BulkRows, numbers: Sequence[int]) -> list[list[Wire | None]]:
        """The written columns of the rows with these numbers, as the table has them now.

        Only of the first rows, if they are large; none of rows that were deleted. Raises
        `CaptureMismatchError` where images and table contradict each other, and
        `NotCapturableError` where a row may be hidden.
        """
        bound = self._types[rows.bound.shape.type_name]
        names = (*bound.shape.key_names, *list_group_names(bound))
        known = [[column[n] for n in numbers] for column in (*rows.keys, *rows.groups)]
        keys = known[: len(rows.keys)]
        wanted = tuple(dict.fromkeys((*names, *rows.written)))
        if rows.kind is OpType.DELETE:
            wanted = bound.shape.key_names
            known = [[None] * len(numbers) for _ in wanted]
            names = wanted
        columns = read_columns(self._connection, bound, keys, columns=wanted)
        found = dict(zip(wanted, columns, strict=True))
        count = len(columns[0])
        # That also says that each row was found, and that they are in the order of their keys.
        if [found[name] for name in names] != [column[:count] for column in known]:
            raise self._contradict(bound, rows, numbers=numbers)
        return [found[name] for name in rows.written]

    def _contradict(
        self, bound: BoundType, rows: BulkRows, *, numbers: Sequence[int]
    ) -> CaptureMismatchError:
        """The error for rows that are not as they have to be; raises another that says more."""
        keys = list(zip(*[[column[n] for n in numbers] for column in rows.keys], strict=True))
        touched = [TouchedRow(bound, key, frozenset(rows.written)) for key in keys]
        for n, row in zip(numbers, touched, strict=True):
            group = tuple([column[n] for column in rows.groups])
            if rows.kind is OpType.CREATE:
                row.enter(group)
            elif rows.kind is OpType.DELETE:
                row.leave(group)
        found = read_rows(self._connection, bound, keys, columns=bound.shape.names)
        settle_rows(self._connection, touched, found)
        return CaptureMismatchError(
            f"{bound.live.qualified}: {len(keys)} rows are not as the guards' images say, the "
            f"first of them under key {keys[0]!r}",
            hint="the rows were changed on a way that the guards do not see; run `oplog doctor`",
        )
