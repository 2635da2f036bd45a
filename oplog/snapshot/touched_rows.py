"""Finds the keys of rows that records between two snapshots have touched.

Keys are staged in the database beyond a limit: there may be as many as there are rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.replay.effect_route import Key, TableForm
from oplog.replay.fold import Fold, Row, TableFold
from oplog.snapshot.table_data import Stage
from oplog.store import SequencedLog
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
        """Whether rows were adopted, or changed by a record that is quarantined.

        Then `net` is not the change in the number of rows, and keys may be missing.
        """
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
    reader: RecordReader, log: SequencedLog, *, after: int, through: int
) -> Iterator[OpenedRecord]:
    """The records after sequence `after` up to `through`, opened.

    Records that the log lacks are not noticed: the caller counts.
    """
    for page in log.iterate_sequence(after=after):
        for sequence, stored in enumerate(page.records, page.first):
            if sequence > through:
                return
            yield reader.open(stored)


class Changes(NamedTuple):
    """How many records there were, and how many aggregates have their first one among them."""

    records: int
    begun: int


def collect_touched(
    changes: Iterable[OpenedRecord],
    touched: Sequence[TouchedRows],
    *,
    types: Mapping[str, TouchedRows],
    heads: Stage,
) -> Changes:
    """Stage the keys of all effects in `types`, and all aggregates; count the records."""
    fold = Fold(types)
    aggregates: dict[Key, None] = {}
    records = begun = 0
    for record in changes:
        stored = record.stored
        records += 1
        begun += stored.versions.count(1)
        if record.skipped is not None:
            # Which rows it changed is not known: a layer would leave them as they were before.
            for one in touched:
                one.renewed = True
        aggregates |= dict.fromkeys((name,) for name in stored.aggregates)
        effects = [effect for effect in record.effects if effect.shape.type_name in types]
        fold.add(effects, position=stored.position)
        if len(aggregates) >= _HELD_KEYS:
            heads.add(aggregates)
            aggregates.clear()
    heads.add(aggregates)
    for one in touched:
        one.flush()
        one.stage.analyze()
    heads.analyze()
    return Changes(records, begun)
