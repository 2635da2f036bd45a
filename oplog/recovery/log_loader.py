"""Copies the entries of a kept log into the log's tables and yields its transactions, opened.

Each entry is read once: a page is checked and written before its first transaction is yielded,
and is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from oplog.crypto.hashing import hash_metadata
from oplog.errors import ChainBrokenError, ConfigurationError
from oplog.postgres import driver_errors
from oplog.postgres.work import Driver
from oplog.reading.reader import EntryReader, OpenedEntry, check_hashes, describe
from oplog.store import SequencedPage, StoredEntry
from oplog.store.intake import (
    RESTORED_ID,
    RestorationStore,
    print_entries,
    print_metadata,
)
from oplog.store.whole_transactions import TransactionGroups


class LogLoader:
    """Loads a log's pages into the tables of `store`, in one run."""

    def __init__(
        self,
        driver: Driver,
        reader: EntryReader,
        *,
        store: RestorationStore,
        after: int = 0,
        through: int | None = None,
        folded: int = 0,
        as_new: bool = False,
    ) -> None:
        """`after` is the sequence that the pages follow, `through` a position.

        Entries up to sequence `folded` are written but not opened: a snapshot has their effects.
        With `as_new` every entry counts as new to the consumers of this database.
        """
        self.entries = 0
        """Number of entries written so far."""
        self.position = 0
        """The highest position written."""
        self.sequence = after
        """Up to this sequence all entries were written."""
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
        """Whether no entry after `sequence` was written."""
        return self.entries == self.sequence - self._after

    def run(self, pages: Iterable[SequencedPage]) -> Iterator[list[OpenedEntry]]:
        """Write all entries, and yield the transactions to be folded.

        `ChainBrokenError` for entries that are missing, came twice or were altered;
        `ConfigurationError` if `through` is before `folded`.
        """
        groups = TransactionGroups[OpenedEntry]()
        for page in pages:
            selected = self._select(page)
            self._write(selected, page.metadata)
            for number, stored, _ in selected:
                if number <= self._folded:
                    continue
                whole = groups.add(stored, self._reader.open(stored))
                if whole is not None:
                    yield whole
        groups.require_complete(
            hint="the log that is restored lacks entries; restore an earlier position"
        )

    def _select(self, page: SequencedPage) -> list[tuple[int, StoredEntry, str]]:
        """The page's entries to be written, with their sequences and transaction ids."""
        if page.first != self._read_through + 1:
            raise ChainBrokenError(
                f"sequence {page.first} follows sequence {self._read_through} in the log that is "
                "restored",
                hint="entries are missing there, or came twice",
            )
        self._read_through += len(page.entries)
        selected = []
        for number, stored in enumerate(page.entries, start=page.first):
            if self._through is not None and stored.transaction_position > self._through:
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
            selected.append((number, stored, self._find_id()))
        return selected

    def _find_id(self) -> str:
        # Entries after a gap get a fresh transaction id, so that existing consumers receive them.
        if self._without_gap and not self._as_new:
            return RESTORED_ID
        if self._own_id is None:
            self._own_id = self._store.read_transaction_id(self._driver.connection)
        return self._own_id

    def _write(
        self,
        selected: Sequence[tuple[int, StoredEntry, str]],
        metadata: Mapping[int, Sequence[tuple[str, str]]],
    ) -> None:
        if not selected:
            return
        pairs_of: dict[int, Sequence[tuple[str, str]]] = {}
        for _, stored, _ in selected:
            check_hashes(stored)
            position = stored.transaction_position
            pairs = metadata.get(position, [])
            if hash_metadata(pairs) != stored.metadata_hash:
                raise ChainBrokenError(
                    f"the metadata of position {stored.position} ({describe(stored)}) is not "
                    "what was written",
                    hint="the log that is restored was altered",
                )
            if stored.position == position:
                # A transaction may continue on the next page; its metadata is written once.
                pairs_of[position] = pairs
        try:
            self._driver.copy(
                self._store.copy_entries,
                print_entries((stored, own_id) for _, stored, own_id in selected),
            )
            self._driver.copy(self._store.copy_metadata, print_metadata(pairs_of))
        except driver_errors.CheckViolation as cause:
            raise ChainBrokenError(
                "the log that is restored has a row that no entry can be: "
                f"{cause.diag.message_primary}",
                hint="it was altered, or written past the log's own functions",
            ) from cause
        except driver_errors.IntegrityError as cause:
            raise ChainBrokenError(
                f"the log that is restored has an entry twice: {cause.diag.message_detail}",
                hint="it was altered, or put together from two logs",
            ) from cause
        self.entries += len(selected)
        self.position = max(self.position, *(stored.position for _, stored, _ in selected))
