"""Which records of a log become rows, and what all rows have of their record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from oplog.archive.archive import Archive
from oplog.facade import Oplog
from oplog.facade.entries_part import flatten_metadata
from oplog.facade.given_target import Inside
from oplog.reading.given_place import find_place
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs
from oplog.store import EntryFilter
from oplog.store.rows import StoredRecord, list_aggregates

METADATA = pa.map_(pa.string(), pa.list_(pa.string()))
"""Values by key, as entries have them."""


@dataclass(frozen=True)
class RowSource:
    """A reader on one snapshot, and the filter for its records."""

    reader: RecordReader
    snapshot: str
    filter: EntryFilter

    def iterate(self) -> Iterator[OpenedRecord]:
        """The opened records in causal order; effects on other aggregates are left out."""
        wanted = list_aggregates(self.filter)
        for page in self.reader.source.iterate(self.filter, snapshot=self.snapshot):
            for stored in page:
                opened = self.reader.open(stored, aggregates=wanted)
                if wanted is not None:
                    opened.effects = [
                        effect
                        for effect in opened.effects
                        if stored.aggregates[effect.place] in wanted
                    ]
                yield opened

    def find_sequence(self, stored: StoredRecord) -> int | None:
        """The record's number in the archive, if it was read from there."""
        return self.reader.source.find_sequence(stored.position)


def open_rows(
    log: Oplog,
    connection: Inside | None,
    *,
    aggregate: str | None,
    metadata: Mapping[str, Any] | None,
    bounds: tuple[int | datetime | None, int | datetime | None],
    archive: Archive | None,
) -> RowSource:
    """The records that fit; arguments as of `Oplog.read`."""
    pairs = flatten_metadata(metadata)
    reader = log.open_reader(connection, archive=archive)
    snapshot = reader.source.read_snapshot()
    first, last = (find_place(reader, place, snapshot=snapshot) for place in bounds)
    return RowSource(reader, snapshot, EntryFilter(aggregate, pairs, first, last))


def list_metadata(stored: StoredRecord) -> list[tuple[str, list[str]]]:
    """Metadata as Arrow's map takes it."""
    return list(group_pairs(stored.metadata).items())
