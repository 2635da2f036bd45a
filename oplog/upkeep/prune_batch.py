"""Archived records that are old enough to go, in batches, and what has to be kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from oplog.archive.archived_log import ArchivedLog
from oplog.reading.reader import check_hashes
from oplog.schema.mark_names import ADOPTION_PREFIX, RETIRED
from oplog.store import StoredRecord
from oplog.store.adopted import ADOPTED_ROWS


@dataclass(slots=True)
class Batch:
    """Records that follow one another, after sequence `after`."""

    after: int
    records: list[StoredRecord] = field(default_factory=list)
    entries: int = 0

    @property
    def last(self) -> int:
        """The last sequence in it."""
        return self.after + len(self.records)

    @property
    def positions(self) -> list[int]:
        """Of its records."""
        return [record.position for record in self.records]

    def list_kept(self) -> list[StoredRecord]:
        """Records that something has to be known of for ever."""
        return [record for record in self.records if _is_kept(record)]

    def check(self) -> None:
        """Raise `ChainBrokenError` unless the archived records are what was written.

        An archive keeps a record that was altered before it was published as it was found.
        """
        for record in self.records:
            check_hashes(record)


def _is_kept(record: StoredRecord) -> bool:
    """Whether it used an idempotency key, ended an adoption or retired a type."""
    if record.idempotency_key is not None:
        return True
    return any(name.startswith(ADOPTION_PREFIX) for name in record.aggregates) and any(
        key in (ADOPTED_ROWS, RETIRED) for key, _ in record.metadata
    )


def iterate_batches(
    source: ArchivedLog, after: int, *, through: int, cutoff: datetime, most: int
) -> Iterator[Batch]:
    """Records up to sequence `through`, in order, up to the first not written before `cutoff`.

    A batch has at most `most` entries, more only for a single record.
    """
    batch = Batch(after)
    for page in source.iterate_sequence(after=after):
        for sequence, record in enumerate(page.records, page.first):
            if sequence > through or record.recorded_at >= cutoff:
                if batch.records:
                    yield batch
                return
            entries = len(record.aggregates)
            if batch.records and batch.entries + entries > most:
                yield batch
                batch = Batch(batch.last)
            batch.records.append(record)
            batch.entries += entries
    if batch.records:
        yield batch
