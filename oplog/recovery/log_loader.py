"""Copies the records of a kept log into the log's tables and yields them, opened.

Each record is read once: a page is checked and written before its first record is yielded, and is
not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from oplog.errors import ChainBrokenError, ConfigurationError
from oplog.postgres import driver_errors
from oplog.postgres.work import Driver
from oplog.reading.reader import OpenedRecord, RecordReader, check_hashes, describe
from oplog.store import SequencedPage, StoredRecord
from oplog.store.intake import RESTORED_ID, RestorationStore, print_parts, print_records

_REFUSED_VALUE = (driver_errors.IntegrityError, driver_errors.DataError)


class _Selected(NamedTuple):
    """A record to be written, its sequence, and the transaction id that it gets."""

    sequence: int
    record: StoredRecord
    transaction_id: str


class LogLoader:
    """Loads a log's pages into the tables of `store`, in one run."""

    def __init__(
        self,
        driver: Driver,
        reader: RecordReader,
        *,
        store: RestorationStore,
        after: int = 0,
        through: int | None = None,
        folded: int = 0,
        as_new: bool = False,
    ) -> None:
        """`after` is the sequence that the pages follow, `through` a position.

        Records up to sequence `folded` are written but not opened: a snapshot has their effects.
        With `as_new` every record counts as new to the consumers of this database.
        """
        self.records = 0
        """Number of records written so far."""
        self.entries = 0
        """Number of their entries: one for each aggregate of a record."""
        self.position = 0
        """The highest position written."""
        self.sequence = after
        """Up to this sequence all records were written."""
        self._driver = driver
        self._reader = reader
        self._store = store
        self._read_through = after
        self._after = after
        self._through = through
        self._folded = folded
        self._without_gap = True
        self._as_new = as_new
        self._own_id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether no record after `sequence` was written."""
        return self.records == self.sequence - self._after

    def run(self, pages: Iterable[SequencedPage]) -> Iterator[OpenedRecord]:
        """Write all records, and yield those that are to be folded.

        `ChainBrokenError` for records that are missing, came twice or were altered;
        `ConfigurationError` if `through` is before `folded`.
        """
        for page in pages:
            selected = self._select(page)
            self._write(selected)
            for one in selected:
                if one.sequence > self._folded:
                    yield self._reader.open(one.record)

    def _select(self, page: SequencedPage) -> list[_Selected]:
        """The page's records to be written."""
        if page.first != self._read_through + 1:
            raise ChainBrokenError(
                f"sequence {page.first} follows sequence {self._read_through} in the log that is "
                "restored",
                hint="records are missing there, or came twice",
            )
        self._read_through += len(page.records)
        selected = []
        for number, stored in enumerate(page.records, start=page.first):
            if self._through is not None and stored.position > self._through:
                if number <= self._folded:
                    raise ConfigurationError(
                        f"the snapshot at sequence {self._folded} is newer than position "
                        f"{self._through}",
                        hint="use an older snapshot, or none",
                    )
                self._without_gap = False
                continue
            if self._without_gap:
                self.sequence = number
            selected.append(_Selected(number, stored, self._find_id()))
        return selected

    def _find_id(self) -> str:
        # Records after a gap get a fresh transaction id, so that existing consumers receive them.
        if self._without_gap and not self._as_new:
            return RESTORED_ID
        if self._own_id is None:
            self._own_id = self._store.read_transaction_id(self._driver.connection)
        return self._own_id

    def _write(self, selected: Sequence[_Selected]) -> None:
        if not selected:
            return
        for one in selected:
            check_hashes(one.record)
            _check_parts(one.record)
        try:
            self._copy(selected)
        except _REFUSED_VALUE as cause:
            raise _refuse_row(cause) from cause
        except DBAPIError as cause:
            if isinstance(cause.orig, _REFUSED_VALUE):
                raise _refuse_row(cause.orig) from cause
            raise
        self.records += len(selected)
        self.entries += sum(len(one.record.aggregates) for one in selected)
        self.position = max(self.position, *(one.record.position for one in selected))

    def _copy(self, selected: Sequence[_Selected]) -> None:
        store, driver = self._store, self._driver
        positions = [one.record.position for one in selected]
        store.make_partitions(driver.connection, positions)
        driver.copy(
            store.copy_records, print_records((one.record, one.transaction_id) for one in selected)
        )
        split = [one.record for one in selected if len(one.record.parts) > 1]
        if split:
            driver.copy(store.copy_parts, print_parts(split))
        store.index_records(driver.connection, positions)


def _check_parts(stored: StoredRecord) -> None:
    """Raise `ChainBrokenError` unless the first part is that of the first aggregate."""
    # Its row does not say where the first part begins: it would get another hash.
    if not stored.parts or stored.parts[0].first != 0:
        raise ChainBrokenError(
            f"position {stored.position} ({describe(stored)}) does not begin with its first "
            "aggregate",
            hint="the log that is restored was altered, or written past the log's own functions",
        )


def _refuse_row(cause: driver_errors.Error) -> ChainBrokenError:
    if isinstance(cause, driver_errors.UniqueViolation):
        return ChainBrokenError(
            f"the log that is restored has a record twice: {cause.diag.message_detail}",
            hint="it was altered, or put together from two logs",
        )
    return ChainBrokenError(
        f"the log that is restored has a row that no record can be: {cause.diag.message_primary}",
        hint="it was altered, or written past the log's own functions",
    )
