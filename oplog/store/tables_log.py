"""The log's tables, read through one connection: the `LogSource` that lies in Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.payload.shape import Shape
from oplog.store.adopted import AdoptionStore, Turns
from oplog.store.page_cursor import PageCursor
from oplog.store.quarantine_marks import QuarantineStore
from oplog.store.record_pages import RecordPages
from oplog.store.records import Store
from oplog.store.rows import BrokenLink, EntryFilter, StoredRecord


class TablesLog:
    """The log in the tables of `store`, as `connection` and its transaction see it.

    Each method runs its statements on that connection. It takes no snapshot by itself: outside a
    REPEATABLE READ transaction two methods may see different moments, except for records, which
    are read as of the snapshot that is given.
    """

    ordered = True
    page_base = 0

    def __init__(self, store: Store, connection: Connection) -> None:
        self.schema = store.schema
        self.connection = connection
        self._store = store

    def read_log_id(self) -> UUID:
        """The identity of the log."""
        return self._store.read_log_id(self.connection)

    def read_snapshot(self) -> str:
        """The transaction's (or statement's) snapshot; on a standby `ALL_VISIBLE`."""
        return self._store.read_snapshot(self.connection)

    def list_types(self) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        return self._store.list_types(self.connection)

    def list_keys(self) -> Mapping[str, bytes]:
        """Check values of data keys by key id."""
        return self._store.list_keys(self.connection)

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredRecord]]:
        """Pages of records by rising position, from one snapshot."""
        return self._store.iterate(self.connection, filter, snapshot=snapshot)

    def iterate_pages(
        self,
        filter: EntryFilter,
        *,
        snapshot: str,
        newest_first: bool,
        expected: int,
        start: PageCursor | None = None,
    ) -> Iterator[list[StoredRecord]]:
        """The same in either direction, by index, at the cost of what is taken."""
        bounds = (None, None) if start is None else start.bound_positions()
        pages = RecordPages(
            self.connection,
            filter.narrow(*bounds),
            schema=self.schema,
            snapshot=snapshot,
            newest_first=newest_first,
        )
        return pages.iterate(expected)

    def find_sequence(self, position: int) -> None:
        """None: the tables number records by position only."""

    def find_position(self, at: datetime, *, snapshot: str) -> int:
        """The highest position up to which no record was recorded after `at`; 0 for none."""
        return self._store.find_position(self.connection, at, snapshot=snapshot)

    def find_later(self, at: datetime, *, snapshot: str) -> int | None:
        """The lowest position recorded after `at`; None when there is none."""
        return self._store.find_later(self.connection, at, snapshot=snapshot)

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str, through: int | None = None
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        store = AdoptionStore(self.schema)
        return store.find_adoptions(self.connection, types, snapshot=snapshot, through=through)

    def list_quarantine_marks(self) -> list[StoredRecord]:
        """Every mark by which the owner has quarantined a record, oldest first."""
        return QuarantineStore(self.schema).list_marks(self.connection)

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the aggregates' chains, and tickets that disagree with them."""
        return self._store.list_broken_links(self.connection, limit=limit)
