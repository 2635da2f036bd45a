"""A log that lies outside Postgres: taken from one, held in memory, in an order of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog import Oplog
from oplog.payload.shape import Shape
from oplog.reading.log_opener import LogOpener
from oplog.store import BrokenLink, EntryFilter, LogSource, SequencedPage, Store, StoredEntry
from oplog.store.adopted import Turns, join_turns, name_adoption, read_turns

PAGE = 3
"""Entries on a page: few, so that transactions and batches cross pages."""

Order = Callable[[int], object]
"""How transactions of one batch are sorted, by their positions."""


def open_log(log: Oplog, source: LogSource | None = None) -> LogOpener:
    """What a replay needs of a log, or of the source that is read in its place."""
    return LogOpener(
        log.store,
        log.catalog,
        keyring=log.keyring,
        sealer=log._log.sealer,
        codec=log._log.codec,
        source=source,
    )


class KeptLog:
    """A `LogSource` that fills in batches; a batch holds what its snapshot showed first."""

    ordered = False
    generation = 1
    first_sequence = 1

    def __init__(self, store: Store, *, page: int = PAGE) -> None:
        self.schema = store.schema
        self.entries: list[StoredEntry] = []
        self.metadata: dict[int, list[tuple[str, str]]] = {}
        self._page = page
        self._store = store
        self._log_id: UUID | None = None
        self._types: list[Shape] = []
        self._keys: dict[str, bytes] = {}

    def take(self, connection: Connection, *, order: Order = lambda position: position) -> None:
        """All that is new, transactions in this order."""
        store, known = self._store, {entry.entry_id for entry in self.entries}
        snapshot = store.read_snapshot(connection)
        pages = store.iterate(connection, EntryFilter(), snapshot=snapshot)
        new = [entry for page in pages for entry in page if entry.entry_id not in known]
        new.sort(key=lambda e: (order(e.transaction_position), e.transaction_position, e.position))
        self.entries += new
        self.metadata |= store.read_metadata(connection, [e.transaction_position for e in new])
        self._log_id = store.read_log_id(connection)
        self._types = store.list_types(connection)
        self._keys = store.list_keys(connection)

    def find_sequence(self, position: int) -> int:
        """The sequence of the entry at a position."""
        return 1 + [entry.position for entry in self.entries].index(position)

    # -- by sequence ----------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        return len(self.entries)

    def find_chain(self, sequence: int) -> bytes | None:
        if not self.first_sequence - 1 <= sequence <= len(self.entries):
            return None
        chain = hashlib.sha256(b"kept")
        for entry in self.entries[:sequence]:
            chain.update(entry.entry_hash)
        return chain.digest()

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        assert after >= self.first_sequence - 1
        for start in range(after, len(self.entries), self._page):
            entries = self.entries[start : start + self._page]
            positions = {entry.transaction_position for entry in entries}
            metadata = {p: self.metadata[p] for p in positions if p in self.metadata}
            yield SequencedPage(start + 1, entries, metadata)

    # -- what a reader asks ---------------------------------------------------------------

    def read_log_id(self) -> UUID:
        assert self._log_id is not None
        return self._log_id

    def read_snapshot(self) -> str:
        return f"sequence {len(self.entries)}"

    def list_types(self) -> list[Shape]:
        return list(self._types)

    def list_keys(self) -> dict[str, bytes]:
        return dict(self._keys)

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredEntry]]:
        assert snapshot.startswith("sequence ")
        chosen = [e for e in self.entries if self._matches(e, filter)]
        for start in range(0, len(chosen), self._page):
            yield chosen[start : start + self._page]

    def read_metadata(self, positions: Iterable[int]) -> Mapping[int, list[tuple[str, str]]]:
        return {p: self.metadata[p] for p in set(positions) if p in self.metadata}

    def find_position(self, at: datetime, *, snapshot: str) -> int:
        return max((e.position for e in self.entries if e.recorded_at <= at), default=0)

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str, through: int | None = None
    ) -> dict[str, Turns]:
        names = {name_adoption(name): name for name in types}
        return join_turns(
            (names[entry.aggregate], read_turns(entry.position, pairs))
            for entry in self.entries
            if entry.aggregate in names and (through is None or entry.position <= through)
            for pairs in [self.metadata.get(entry.transaction_position, [])]
        )

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        broken, heads = [], dict[str, tuple[int, bytes]]()
        for entry in self.entries:
            version, head = heads.get(entry.aggregate, (0, bytes(32)))
            if (entry.version, entry.prev_hash) != (version + 1, head):
                broken.append(BrokenLink(entry.aggregate, entry.version, entry.position, "cut"))
            heads[entry.aggregate] = (entry.version, entry.entry_hash)
        return broken[:limit]

    def _matches(self, entry: StoredEntry, filter: EntryFilter) -> bool:
        pairs = self.metadata.get(entry.transaction_position, [])
        return (
            filter.aggregate in (None, entry.aggregate)
            and entry.position > (filter.after or 0)
            and (filter.through is None or entry.position <= filter.through)
            and (not filter.aggregates or entry.aggregate in filter.aggregates)
            and all(pair in pairs for pair in filter.metadata)
        )
