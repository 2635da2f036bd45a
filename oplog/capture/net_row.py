"""Many changes to a row, folded to what the transaction did to it.

Pure: no connection and no SQL. A key may be written more than once, for example deleted and
inserted again, or swapped with another. A net row says whether a row was under its key before
the transaction and whether one is after it, so net rows need no order among themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oplog.capture.row_change import Key, RowChange, TrackedType
from oplog.entry import OpType
from oplog.value import Wire


@dataclass(slots=True)
class NetRow:
    """One key of one table over the whole transaction.

    `existed` and `exists` say whether there is a row under the key before the transaction and
    after it; `replaced` means that these are two different rows. `unknown` are the columns to
    read back.
    """

    bound: TrackedType
    key: Key
    existed: bool
    exists: bool = True
    replaced: bool = False
    values: dict[str, Wire | None] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    group: Mapping[str, Wire | None] | None = None
    """Template columns before the transaction."""

    @property
    def complete(self) -> bool:
        """The whole row is logged, not only changed columns."""
        return self.exists and (self.replaced or not self.existed)

    def write(self, values: Mapping[str, Wire | None], unknown: Iterable[str]) -> None:
        """Apply a later statement's values."""
        for name, value in values.items():
            self.values[name] = value
            self.unknown.discard(name)
        for name in unknown:
            self.values.pop(name, None)
            self.unknown.add(name)


Rows = dict[tuple[str, Key], NetRow]
"""By type name and key. Not by the bound type itself: a type may be bound again."""


def fold_changes(changes: Iterable[RowChange]) -> list[NetRow]:
    """Net rows in the order their keys were first touched."""
    rows: Rows = {}
    for change in changes:
        bound, key = change.bound, change.key
        place = bound.shape.type_name, key
        row = rows.get(place)
        if change.kind is OpType.CREATE:
            _create(rows, row, change)
        elif change.kind is OpType.DELETE:
            if row is None:
                row = rows[place] = NetRow(bound, key, existed=True, group=change.group)
            _remove(row)
        else:
            if row is None:
                row = rows[place] = NetRow(bound, key, existed=True, group=change.group)
            row.write(change.values, change.unknown)
            if change.moved_to is not None and change.moved_to != key:
                _move(rows, row, change.moved_to)
    return [row for row in rows.values() if row.existed or row.exists]


def _create(rows: Rows, row: NetRow | None, change: RowChange) -> None:
    if row is None:
        row = rows[change.bound.shape.type_name, change.key] = NetRow(
            change.bound, change.key, existed=False
        )
    row.exists = True
    row.replaced = row.existed
    row.values = dict(change.values)
    row.unknown = set()
    if change.unknown:
        row.write({}, change.unknown)


def _remove(row: NetRow) -> None:
    row.exists = False
    row.values.clear()
    row.unknown.clear()


def _move(rows: Rows, row: NetRow, key: Key) -> None:
    """The row is under another key now: gone from the old one, complete under the new one."""
    bound = row.bound
    place = bound.shape.type_name, key
    there = rows.get(place)
    if there is None:
        there = rows[place] = NetRow(bound, key, existed=False)
    there.exists = True
    there.replaced = there.existed
    there.values = dict(row.values)
    there.unknown = set(row.unknown)
    if not row.complete:
        there.unknown.update(name for name in bound.shape.names if name not in there.values)
    _remove(row)
