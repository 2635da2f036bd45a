"""Many rows kept as columns, instead of an object for each: plain data without SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oplog.capture.row_change import TrackedType
from oplog.entry import OpType
from oplog.value import Wire


@dataclass(slots=True, eq=False)
class BulkRows:
    """Rows of one table that were touched once, all in the same way, with values not yet read.

    Of each row `keys` and `groups` have an item in every column, and `aggregates` the name.
    `groups` are the columns of `list_group_names`; `written` names the columns that are logged.
    `creates` says that each aggregate begins with its row, as `Groups.created` has it.
    """

    bound: TrackedType
    kind: OpType
    written: tuple[str, ...]
    keys: list[list[Wire | None]]
    groups: list[list[Wire | None]]
    aggregates: Sequence[str]
    creates: bool

    def __len__(self) -> int:
        return len(self.keys[0])


ReadBulk = Callable[[BulkRows, Sequence[int]], list[list[Wire | None]]]
"""Reads the written columns of the rows with these numbers, or of the first of them."""
