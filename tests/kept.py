"""A log that lies outside Postgres: taken from one, held in memory, in an order of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog import Oplog
from oplog.payload.shape import Shape
from oplog.reading.log_opener import LogOpener
from oplog.store import BrokenLink, EntryFilter, LogSource, SequencedPage, Store, StoredRecord
from oplog.store.adopted import Turns, join_turns, name_adoption, read_turns
from oplog.store.page_cursor import PageCursor
from oplog.store.quarantined import is_quarantine_mark

PAGE = 3
"""Records on a page: few, so that batches cross pages."""

Order = Callable[[int], object]
"""How records of one batch are sorted, by their positions."""


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
        self.records: list[StoredRecord] = []
        self._page = page
        self._store = store
        self._log_id: UUID | None = None
        self._types: list[Shape] = []
        self._keys: dict[str, bytes] = {}

    def take(self, connection: Connection, *, order: Order = lambda position: position) -> None:
        """All that is new, records in this order."""
        store, known = self._store, {record.record_id for record in self.records}
        snapshot = store.read_snapshot(connection)
        pages = store.iterate(connection, EntryFilter(), snapshot=snapshot)
        new = [record for page in pages for record in page if record.record_id not in known]
        new.sort(key=lambda record: (order(record.position), record.position))
        self.records += new
        self._log_id = store.read_log_id(connection)
        self._types = store.list_types(connection)
        self._keys = store.list_keys(connection)

    def find_sequence(self, position: int) -> int:
        """The sequence of the record at a position."""
        return 1 + [record.position for record in self.records].index(position)

    # -- by sequence ----------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        return len(self.records)

    @property
    def entry_count(self) -> int:
        """How many entries the records have in all."""
        return sum(len(record.aggregates) for record in self.records)

    def find_chain(self, sequence: int) -> bytes | None:
        if not self.first_sequence - 1 <= sequence <= len(self.records):
            return None
        chain = hashlib.sha256(b"kept")
        for record in self.records[:sequence]:
            chain.update(record.record_hash)
        return chain.digest()

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        assert after >= self.first_sequence - 1
        for start in range(after, len(self.records), self._page):
            yield SequencedPage(start + 1, self.records[start : start + self._page])

    # -- what a reader asks ---------------------------------------------------------------

    def read_log_id(self) -> UUID:
        assert self._log_id is not None
        return self._log_id

    def read_snapshot(self) -> str:
        return f"sequence {len(self.records)}"

    def list_types(self) -> list[Shape]:
        return list(self._types)

    def list_keys(self) -> dict[str, bytes]:
        return dict(self._keys)

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredRecord]]:
        assert snapshot.startswith("sequence ")
        chosen = [record for record in self.records if _matches(record, filter)]
        for start in range(0, len(chosen), self._page):
            yield chosen[start : start + self._page]

    page_base = 0

    def iterate_pages(
        self,
        filter: EntryFilter,
        *,
        snapshot: str,
        newest_first: bool,
        expected: int,
        start: PageCursor | None = None,
    ) -> Iterator[list[StoredRecord]]:
        assert start is None
        pages = list(self.iterate(filter, snapshot=snapshot))
        yield from [page[::-1] for page in pages[::-1]] if newest_first else pages

    def find_position(self, at: datetime, *, snapshot: str) -> int:
        later = self.find_later(at, snapshot=snapshot)
        found = (p.position for p in self.records if later is None or p.position < later)
        return max(found, default=0)

    def find_later(self, at: datetime, *, snapshot: str) -> int | None:
        return min((one.position for one in self.records if one.recorded_at > at), default=None)

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str, through: int | None = None
    ) -> dict[str, Turns]:
        names = {name_adoption(name): name for name in types}
        return join_turns(
            (names[aggregate], read_turns(record.position, record.metadata))
            for record in self.records
            if through is None or record.position <= through
            for aggregate in record.aggregates
            if aggregate in names
        )

    def list_quarantine_marks(self) -> list[StoredRecord]:
        return [record for record in self.records if is_quarantine_mark(record)]

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        broken, heads = [], dict[str, tuple[int, bytes]]()
        for link in (link for record in self.records for link in record.list_links()):
            version, head = heads.get(link.aggregate, (0, bytes(32)))
            if (link.version, link.prev_hash) != (version + 1, head):
                broken.append(BrokenLink(link.aggregate, link.version, link.position, "cut"))
            heads[link.aggregate] = (link.version, link.record_hash)
        return broken[:limit]


def _matches(record: StoredRecord, filter: EntryFilter) -> bool:
    return (
        any(
            filter.aggregate in (None, name) and name in (filter.aggregates or (name,))
            for name in record.aggregates
        )
        and record.position > (filter.after or 0)
        and (filter.through is None or record.position <= filter.through)
        and all(pair in record.metadata for pair in filter.metadata)
    )
