"""Finds the keys of rows that entries between two snapshots have touched.

Keys are staged in the database beyond a limit: there may be as many as there are rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from oplog.reading.reader import EntryReader, OpenedEntry
from oplog.replay.fold import Fold, Key, Row, TableFold, TableForm
from oplog.snapshot.table_data import Stage
from oplog.store import SequencedLog
from oplog.store.whole_transactions import TransactionGroups
from oplog.value import Wire

_HELD_KEYS: Final = 20_000
"""Keys of one table held in memory before they are staged."""


class TouchedRows(TableFold):
    """Stages the keys of all rows of one table that effects concern."""

    def __init__(self, form: TableForm, stage: Stage) -> None:
        super().__init__(form)
        self.stage = stage
        self.net = 0
        """Rows created minus rows deleted."""
        self.renewed = False
        """Whether rows were adopted: then `net` is not the change in the number of rows."""
        self._keys: dict[Key, None] = {}

    def create(self, key: Key, row: Row) -> None:
        """Note the row's key."""
        del row
        self._touch(key)
        self.net += 1

    def adopt(self, key: Key, row: Row) -> None:
        """Note the row's key, and that `net` is not known."""
        del row
        self._touch(key)
        self.renewed = True

    def update(
        self,
        key: Key,
        values: Mapping[str, Wire | None],
        position: int,
        *,
        lenient: bool = False,
    ) -> None:
        """Note the row's key."""
        del values, position, lenient
        self._touch(key)

    def delete(self, key: Key, position: int, *, lenient: bool = False) -> None:
        """Note the row's key."""
        del position, lenient
        self._touch(key)
        self.net -= 1

    def flush(self) -> None:
        """Stage the keys held in memory."""
        self.stage.add(self._keys)
        self._keys.clear()

    def _touch(self, key: Key) -> None:
        self._keys[key] = None
        if len(self._keys) >= _HELD_KEYS:
            self.flush()


def iterate_changes(
    reader: EntryReader, log: SequencedLog, *, after: int, through: int
) -> Iterator[list[OpenedEntry]]:
    """Whole transactions of the entries after sequence `after` up to `through`, opened.

    Both sequences end a transaction. Entries that the log lacks are not noticed: the caller
    counts.
    """
    groups = TransactionGroups[OpenedEntry]()
    for page in log.iterate_sequence(after=after):
        for sequence, stored in enumerate(page.entries, page.first):
            if sequence > through:
                return
            whole = groups.add(stored, reader.open(stored))
            if whole is not None:
                yield whole


def collect_touched(
    changes: Iterable[Sequence[OpenedEntry]],
    touched: Sequence[TouchedRows],
    *,
    types: Mapping[str, TouchedRows],
    tickets: Stage,
) -> int:
    """Stage the keys of all effects in `types`, and all aggregates; return the entries' number."""
    fold = Fold(types)
    aggregates: dict[Key, None] = {}
    entries = 0
    for transaction in changes:
        entries += len(transaction)
        for entry in transaction:
            aggregates[entry.stored.aggregate,] = None
            effects = [effect for effect in entry.effects if effect.shape.type_name in types]
            fold.add(effects, position=entry.stored.position)
        if len(aggregates) >= _HELD_KEYS:
            tickets.add(aggregates)
            aggregates.clear()
    tickets.add(aggregates)
    for one in touched:
        one.flush()
        one.stage.analyze()
    tickets.analyze()
    return entries
