"""A log read as one whose beginning is in an archive, and the rest in the tables.

What the database's own row about the archive says is published is read from there, all else from
the tables. Both halves are cut at the row that the reader's own transaction shows. Records at or
below the archived sequence are visible to any transaction that can see the row; the rest are
selected by the row's cursor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog, check_links, fits
from oplog.archive.format.head import Head, Origin
from oplog.archive.history import adopt_cursor, check_pruned, is_on_history
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.errors import ConfigurationError, ConflictError, LogForkedError
from oplog.payload.shape import Shape
from oplog.postgres.standby import ALL_VISIBLE
from oplog.store import BrokenLink, EntryFilter, Store, StoredRecord, TablesLog
from oplog.store.adopted import Turns, join_turns
from oplog.store.cursor import Cursor, is_shown
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.feed import Feed
from oplog.store.page_cursor import PageCursor
from oplog.store.removal import PruningStore
from oplog.store.seen import read_seen

_LARGEST = (1 << 63) - 1


class JoinedLog:
    """The log as one connection sees it, its beginning from an archive. Made by `join_log`."""

    ordered = False

    def __init__(self, archived: ArchivedLog, cursor: Cursor, *, tables: TablesLog) -> None:
        self.schema = tables.schema
        self.archived = archived
        self._tables = tables
        self.cursor = cursor
        """The database's own place, up to which `archived` has everything."""
        self._from_tables = False
        self.page_base = archived.sequence
        """What has a sequence up to it comes after the tables' records, newest first."""

    # -- what it is -----------------------------------------------------------------------

    def read_log_id(self) -> UUID:
        """The identity of the log, which tables and archive have in common."""
        return self.archived.read_log_id()

    def read_snapshot(self) -> str:
        """The tables' snapshot: which records it shows, archived or not."""
        return self._tables.read_snapshot()

    def list_types(self) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        return self._tables.list_types()

    def list_keys(self) -> Mapping[str, bytes]:
        """Check values of data keys by key id."""
        return self._tables.list_keys()

    # -- records --------------------------------------------------------------------------

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredRecord]]:
        """Pages of records that fit: the archive's in their sequence, then by position."""
        # With nothing from the archive the tables must have all.
        whole = self.archived.whole or self.archived.first_sequence == self.archived.sequence + 1
        chain = ChainCheck(whole=whole) if filter.takes_all else None
        self._from_tables = False
        yield from self.archived.iterate(filter, chain=chain)
        yield from self._iterate_tables(filter, snapshot, chain=chain)

    def iterate_pages(
        self,
        filter: EntryFilter,
        *,
        snapshot: str,
        newest_first: bool,
        expected: int,
        start: PageCursor | None = None,
    ) -> Iterator[list[StoredRecord]]:
        """The same in either direction: of the archive, no more is read than what is taken."""
        if newest_first:
            return self._iterate_newest(filter, snapshot, expected=expected, start=start)
        if start is None:
            return self.iterate(filter, snapshot=snapshot)
        return self._iterate_after(filter, snapshot, start)

    def _iterate_after(
        self, filter: EntryFilter, snapshot: str, start: PageCursor
    ) -> Iterator[list[StoredRecord]]:
        self._from_tables = False
        self.page_base = self.archived.sequence
        yield from self.archived.iterate_pages(filter, newest_first=False, start=start)
        bounds = (None, None) if start.position is None else start.bound_positions()
        yield from self._iterate_tables(filter.narrow(*bounds), snapshot, chain=None)

    def _iterate_newest(
        self, filter: EntryFilter, snapshot: str, *, expected: int, start: PageCursor | None
    ) -> Iterator[list[StoredRecord]]:
        """The tables' records by falling position, then those of the archive."""
        place = start or PageCursor(
            newest_first=True, position=_LARGEST - 1, sequence=self.archived.sequence
        )
        self.page_base = place.sequence
        while place.position is not None:
            rest = filter.narrow(*place.bound_positions())
            for page in self._iterate_rest(rest, snapshot, newest_first=True, expected=expected):
                # A page that was read before anything more was pruned has all of its records.
                if self._is_pruned():
                    break
                self._from_tables = True
                yield page
                place = replace(place, position=page[-1].position, given=0)
            if not self._is_pruned():
                break
            self._rejoin()
        self._from_tables = False
        for page in self.archived.iterate_pages(filter, newest_first=True, start=place):
            shown = [record for record in page if self._shows(record, snapshot, place)]
            if shown:
                yield shown

    def _shows(self, record: StoredRecord, snapshot: str, place: PageCursor) -> bool:
        """Whether the snapshot shows a record, which may have been archived after it."""
        sequence = self.archived.find_sequence(record.position) or 0
        if snapshot == ALL_VISIBLE or sequence <= place.sequence:
            return True
        return is_shown(record.transaction_id, snapshot)

    def _iterate_tables(
        self, filter: EntryFilter, snapshot: str, *, chain: ChainCheck | None
    ) -> Iterator[list[StoredRecord]]:
        """What the archive does not have, by rising position; also while the tables are pruned."""
        last, complete = filter.after or 0, False
        while not complete:
            complete = True
            for page in self._iterate_rest(replace(filter, after=last), snapshot):
                # A page that was read before anything more was pruned has all of its records.
                complete = not self._is_pruned()
                if not complete:
                    break
                self._from_tables, last = True, page[-1].position
                if chain is not None:
                    check_links(page, chain)
                yield page
            if complete and self._is_pruned():
                complete = False
            if not complete:
                yield from self._follow_prune(filter, snapshot, last=last, chain=chain)

    def _iterate_rest(
        self,
        filter: EntryFilter,
        snapshot: str,
        *,
        newest_first: bool = False,
        expected: int = 0,
    ) -> Iterator[list[StoredRecord]]:
        unseen = replace(filter, unseen=read_seen(self.cursor))
        if snapshot != ALL_VISIBLE:
            # By the index on transactions: all that is archived and not pruned may lie before.
            news = Feed(self.schema).find_news(
                self._tables.connection, self.cursor, snapshot=snapshot
            )
            if news is None:
                return
            unseen = replace(unseen, after=max(filter.after or 0, news.first_position - 1))
        if newest_first:
            yield from self._tables.iterate_pages(
                unseen, snapshot=snapshot, newest_first=True, expected=expected
            )
        else:
            yield from self._tables.iterate(unseen, snapshot=snapshot)

    def _is_pruned(self) -> bool:
        """Whether records that are not read from the archive were pruned meanwhile."""
        pruned = PruningStore(self.schema).read_watermark(self._tables.connection)
        return pruned is not None and pruned.sequence > self.archived.sequence

    def _follow_prune(
        self, filter: EntryFilter, snapshot: str, *, last: int, chain: ChainCheck | None
    ) -> Iterator[list[StoredRecord]]:
        """Read from the archive what was pruned from the tables, and what came there with it.

        Of those records, the tables have given all up to position `last`. What follows in the
        tables is what the archive does not have by now.
        """
        known = self.archived
        self._rejoin()
        for found in self.archived.iterate_sequence(after=known.sequence):
            page = [
                record
                for record in found.records
                if record.position > last and is_shown(record.transaction_id, snapshot)
            ]
            if chain is not None:
                check_links(page, chain)
            if page := [record for record in page if fits(record, filter)]:
                yield page

    def _rejoin(self) -> None:
        """Take what was archived meanwhile from the archive as well."""
        known = self.archived
        newer = join_log(self._tables.connection, known.archive, store=Store(self.schema))
        if newer.archived.generation != known.generation:
            raise ConflictError(
                "the log was pruned, and its archive went on in another generation, while it was "
                "read",
                hint="read again",
            )
        self.archived, self.cursor, self._from_tables = newer.archived, newer.cursor, False

    def find_sequence(self, position: int) -> int | None:
        """The sequence of a record of the page given last, if that came from the archive."""
        return None if self._from_tables else self.archived.find_sequence(position)

    # -- what is found by index -----------------------------------------------------------

    def find_position(self, at: datetime, *, snapshot: str) -> int:
        """The highest position up to which no record was recorded after `at`; 0 for none."""
        later = self.find_later(at, snapshot=snapshot)
        if later is not None:
            # Not the higher of what each half says: a later record of one may lie below it.
            return later - 1
        return max(
            self.archived.find_position(at),
            self._tables.find_position(at, snapshot=snapshot),
        )

    def find_later(self, at: datetime, *, snapshot: str) -> int | None:
        """The lowest position recorded after `at`; None when there is none."""
        found = (
            self.archived.find_later(at),
            self._tables.find_later(at, snapshot=snapshot),
        )
        return min((position for position in found if position is not None), default=None)

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str, through: int | None = None
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        found = self.archived.find_adoptions(types, through=through)
        live = self._tables.find_adoptions(types, snapshot=snapshot, through=through)
        return join_turns([*found.items(), *live.items()])

    def list_quarantine_marks(self) -> list[StoredRecord]:
        """Every mark by which the owner has quarantined a record, those of the archive first."""
        # One that is in both is met twice, and says the same.
        return [*self.archived.list_quarantine_marks(), *self._tables.list_quarantine_marks()]

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        """Broken links of the tables' records; those of the archive are checked while read."""
        return self._tables.list_broken_links(limit=limit)


def join_log(connection: Connection, archive: Archive, *, store: Store) -> JoinedLog:
    """The log of a database and its archive, for one connection and its transaction.

    Raises `ConfigurationError` for an archive that this database was not published to,
    `PrunedError` for one that lacks what was pruned, `LogForkedError` for one that went on
    without what this database has published, `ConflictError` where records were pruned since the
    transaction's snapshot was taken.
    """
    tables = TablesLog(store, connection)
    PruningStore(store.schema).require_present(connection)
    # The row first: a head that is read after it has all that the row says.
    rows = {row.archive_id: row for row in ExportStore(store.schema).list_rows(connection)}
    pruned = PruningStore(store.schema).read_watermark(connection)
    head = archive.read_head()
    row = rows.get(head.archive_id)
    if head.log_id != tables.read_log_id() or row is None:
        raise ConfigurationError(
            f"this database was not published to {archive.url}",
            hint="give the archive that oplog sync writes for this database"
            + (f": {pruned.url}" if pruned else ""),
        )
    check_row(archive, head, row)
    check_pruned(archive, head, pruned)
    if pruned is None and head.first_sequence > 1:
        # The archive has given up what the tables still have.
        nothing = ArchivedLog(archive, head, schema=store.schema, through=head.first_sequence - 1)
        return JoinedLog(nothing, Cursor("", 0, None), tables=tables)
    archived = ArchivedLog(archive, head, schema=store.schema, through=row.sequence)
    # Whether it is a standby is no matter: nothing is read but by the row's cursor.
    identifier = Feed(store.schema).read_identifier(connection)
    return JoinedLog(archived, adopt_cursor(row, Origin(identifier, 0, 0)), tables=tables)


def check_row(archive: Archive, head: Head, row: ArchiveRow) -> None:
    """Raise `LogForkedError` unless the archive has what this database has published to it."""
    if not is_on_history(archive, head, sequence=row.sequence, chain=bytes.fromhex(row.chain)):
        raise LogForkedError(
            f"this database has published {row.sequence} records to {archive.url}, which has gone "
            f"on without some of them in generation {head.generation}",
            hint="another server was promoted, or the archive was set back: see oplog fork inspect",
            sequence=row.sequence,
        )
