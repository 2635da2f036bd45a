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


class LogIntake:
    """One run over a log's pages, into the tables of `store`."""

    def __init__(
        self,
        driver: Driver,
        reader: EntryReader,
        *,
        store: RestorationStore,
        after: int = 0,
        through: int | None = None,
        folded: int = 0,
        news: bool = False,
    ) -> None:
        """`after` is the sequence that the pages follow, `through` a position.

        Up to sequence `folded` entries are written and not opened: their effects are known.
        With `news` every entry counts as new to the consumers of this database.
        """
        self.entries = 0
        """Written so far."""
        self.position = 0
        """The highest position written."""
        self.sequence = after
        """Up to here, from the beginning, nothing was left out."""
        self._driver = driver
        self._reader = reader
        self._store = store
        self._seen = after
        self._began = after
        self._through = through
        self._folded = folded
        self._whole = True
        self._news = news
        self._own_id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether what was written is all there is up to `sequence`, and no more."""
        return self.entries == self.sequence - self._began

    def run(self, pages: Iterable[SequencedPage]) -> Iterator[list[OpenedEntry]]:
        """Write all entries, and give those that are to be folded, by transactions."""
        groups = TransactionGroups[OpenedEntry]()
        for page in pages:
            kept = self._choose(page)
            self._write(kept, page.metadata)
            for number, stored, _ in kept:
                if number <= self._folded:
                    continue
                whole = groups.add(stored, self._reader.open(stored))
                if whole is not None:
                    yield whole
        groups.require_complete(
            hint="the log that is restored lacks entries; restore an earlier position"
        )

    def _choose(self, page: SequencedPage) -> list[tuple[int, StoredEntry, str]]:
        """The page's entries to be written, with their sequences and transaction ids."""
        if page.first != self._seen + 1:
            raise ChainBrokenError(
                f"sequence {page.first} follows sequence {self._seen} in the log that is restored",
                hint="entries are missing there, or came twice",
            )
        self._seen += len(page.entries)
        kept = []
        for number, stored in enumerate(page.entries, start=page.first):
            if self._through is not None and stored.transaction_position > self._through:
                if number <= self._folded:
                    raise ConfigurationError(
                        f"the snapshot at sequence {self._folded} is newer than position "
                        f"{self._through}",
                        hint="use an older snapshot, or none",
                    )
                self._whole = False
                continue
            if self._whole:
                self.sequence = number
            kept.append((number, stored, self._find_id()))
        return kept

    def _find_id(self) -> str:
        # What lies beyond a gap is news to whoever consumed up to it.
        if self._whole and not self._news:
            return RESTORED_ID
        if self._own_id is None:
            self._own_id = self._store.read_transaction_id(self._driver.connection)
        return self._own_id

    def _write(
        self,
        kept: Sequence[tuple[int, StoredEntry, str]],
        metadata: Mapping[int, Sequence[tuple[str, str]]],
    ) -> None:
        if not kept:
            return
        pairs_of: dict[int, Sequence[tuple[str, str]]] = {}
        for _, stored, _ in kept:
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
                # A transaction may go on over the next page; its metadata is there once.
                pairs_of[position] = pairs
        try:
            self._driver.copy(
                self._store.copy_entries,
                print_entries((stored, own_id) for _, stored, own_id in kept),
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
        self.entries += len(kept)
        self.position = max(self.position, *(stored.position for _, stored, _ in kept))
