"""One pass from the database to the archive: what is new becomes segments and a head.

Ties the database's transaction to the object store's. Needs no keys: sealed bytes pass as they
are. The hard thing is the order: entries are read, content and head are put, and the receipt is
written in one and the same transaction, so that no other server can have answered in between,
and whatever dies, the next pass finds out from the head where it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, Origin, TypesRef, make_first
from oplog.archive.format.path import LATEST
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.ownership import check_owner, identify, read_origin
from oplog.archive.step import Step
from oplog.errors import ConfigurationError, HeadRolledBackError, LeaseHeldError, LeaseLostError
from oplog.finding import Finding
from oplog.postgres.sqlstate import SERIALIZATION_FAILURE, read_sqlstate
from oplog.store import Store
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow, ExportStore, NewPage
from oplog.store.feed import Feed
from oplog.sync.archive_row import make_blank, make_receipt
from oplog.sync.batch import check_whole, cut_entries, put_segment
from oplog.sync.divergence import Standing, find_standing, matches, refuse_fork
from oplog.sync.fork import ForkPolicy, make_fork
from oplog.sync.news import read_page
from oplog.sync.publisher import Emit, Publisher, make_hint

PAGE_ENTRIES = 20_000
"""Entries published by one head, unless one transaction has more."""
SEGMENT_BYTES = 16 * 1024 * 1024
"""Sealed bytes of one segment, and of all that one head adds unless a transaction has more."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pass published.

    `entries` in `segments`, `bytes` put into the store for them, `position` the highest that is
    published now, `sequence` the last, in `generation`. `lost` counts entries that the database
    no longer had and that a new generation left behind. `problems` are tables that are gone.
    """

    entries: int
    segments: int
    bytes: int
    position: int
    sequence: int = 0
    generation: int = 0
    lost: int = 0
    problems: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Footing:
    """Where a transaction begins: the newest head, and how this database stands to it."""

    head: Head
    origin: Origin
    row: ArchiveRow | None
    standing: Standing

    @property
    def is_owner(self) -> bool:
        """Whether it was this database that published the head."""
        return identify(self.head.origin) == identify(self.origin)


@dataclass(slots=True)
class _Tally:
    """What one page added."""

    entries: int = 0
    segments: int = 0
    lost: int = 0


class Exporter:
    """Publishes one log to one archive. Not shared between threads."""

    def __init__(
        self,
        archive: Archive,
        *,
        schema: str,
        emit: Emit,
        writer: str = "",
        fork: ForkPolicy = ForkPolicy.STOP,
        page_entries: int = PAGE_ENTRIES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.archive = archive
        self.store = ExportStore(schema)
        self.publisher: Publisher | None = None
        self._feed = Feed(schema)
        self.log = Store(schema)
        self._emit = emit
        self._writer = writer or f"oplog-{secrets.token_hex(4)}"
        self._fork = fork
        self._page_entries = page_entries
        self._segment_bytes = segment_bytes
        self.unfinished = False
        """Whether the last page left something that its transaction could see."""
        self._footing_seen: Footing | None = None
        self._new_id = uuid4()

    # -- passes ---------------------------------------------------------------------------

    def publish_all(self, engine: Engine) -> SyncReport:
        """Publish until nothing is new; `LeaseHeldError` if another worker is at it."""
        total = SyncReport(0, 0, 0, 0)
        while True:
            report = self.publish_page(engine)
            total = replace(
                report,
                entries=total.entries + report.entries,
                segments=total.segments + report.segments,
                bytes=total.bytes + report.bytes,
                lost=total.lost + report.lost,
            )
            if not report.entries and not report.lost:
                return total

    def publish_page(self, engine: Engine, *, seize: bool = False) -> SyncReport:
        """Publish what one head takes; a report of no entries says that nothing is new.

        `seize` goes on although another worker has the lease: of both, one publishes. Raises
        `LeaseHeldError`, and `LeaseLostError` when another one published meanwhile.
        """
        return self.run(engine, lambda connection: self.publish_in(connection, seize=seize))

    def run(self, engine: Engine, attempt: Callable[[Connection], _T | None]) -> _T:
        """Do `attempt` in a transaction of its own; again after it gave None to get an epoch."""
        done = False
        try:
            with engine.connect() as connection:
                for _ in range(2):
                    with connection.begin():
                        found = attempt(connection)
                    if found is not None:
                        done = True
                        return found
                    with connection.begin():
                        self._take_epoch(connection)
        except DBAPIError as cause:
            if read_sqlstate(cause) != SERIALIZATION_FAILURE:
                raise
            raise LeaseLostError(
                "another worker published while this one did",
                hint="nothing is lost, and this one may be started again",
            ) from cause
        finally:
            if self.archive.single_writer and not done:
                # A head of this epoch may still be on its way: the next has another name.
                self.publisher = None
        raise LeaseLostError(
            "another worker took the epoch that was meant for this one",
            hint="see that one worker runs for each archive; nothing is lost",
        )

    def publish_in(self, connection: Connection, *, seize: bool = False) -> SyncReport | None:
        """`publish_page` in a transaction just begun; None if an epoch must be taken first."""
        footing = self.find_footing(connection, seize=seize)
        head, row, standing = footing.head, footing.row, footing.standing
        if standing.lost and self._fork is ForkPolicy.STOP:
            raise refuse_fork(self.archive, footing.standing, same=footing.is_owner)
        page = self._read_page(connection, standing)
        if not self._has_work(connection, standing, head, page):
            if row is None or not matches(row, head):
                self._repair_receipt(connection, footing, page.cursor)
            if self.archive.hinted > head.number > 0:
                # Accepted: whoever reads after this finds no more named than there is.
                self.archive.store.put(LATEST, make_hint(head))
            self.unfinished = False
            return self._report(head, _Tally(), 0)
        if not self.has_epoch(footing):
            return None
        return self._publish(connection, footing, page)

    def find_footing(self, connection: Connection, *, seize: bool = False) -> Footing:
        """What a transaction just begun stands on; `LeaseHeldError` if it is another's turn."""
        self.store.begin(connection)
        origin = read_origin(connection, self.log.schema)
        head = self.archive.find_head() or self._make_first(connection, origin)
        self._check_log(connection, head)
        row = self.store.read_row(connection, head.archive_id)
        check_owner(self.archive, head, row, here=identify(origin))
        held = not self.store.try_lease(connection, head.archive_id)
        if held and (self.archive.single_writer or not seize):
            raise LeaseHeldError(
                f"another worker is publishing to {self.archive.url}",
                hint="it does the work: wait for it, or stop it first",
            )
        standing = find_standing(
            connection, self.archive, head=head, row=row, origin=origin, store=self.store
        )
        return Footing(head, origin, row, standing)

    def has_epoch(self, footing: Footing) -> bool:
        """Whether the epoch is still this exporter's; if not, `run` takes one."""
        row, publisher = footing.row, self.publisher
        if publisher is not None and row is not None and row.epoch == publisher.epoch:
            return True
        self._footing_seen = footing
        return False

    def _publish(self, connection: Connection, footing: Footing, page: NewPage) -> SyncReport:
        head, standing = footing.head, footing.standing
        publisher = self.require_publisher()
        before = publisher.written_bytes
        tally = _Tally(lost=standing.lost)
        draft = replace(head, origin=footing.origin)
        if standing.lost:
            draft = make_fork(self.archive, publisher, draft, standing=standing)
        draft = self._add_page(connection, draft, page, tally)
        self.unfinished = page.cursor.target is not None
        draft = self._add_types(connection, draft)
        published = publisher.create_head(head, draft)
        self.acknowledge(connection, published)
        publisher.write_hint(published)
        return self._report(published, tally, publisher.written_bytes - before)

    def acknowledge(self, connection: Connection, head: Head) -> None:
        """Say in the database what is published, in the transaction that read it."""
        publisher = self.require_publisher()
        here = identify(head.origin)
        row = make_receipt(
            self.archive, head, epoch=publisher.epoch, cursor=head.cursor, here=here, owner=here
        )
        if not self.store.acknowledge(connection, row, position=head.position):
            raise LeaseLostError(
                f"this worker (epoch {publisher.epoch}) was overtaken while it published",
                hint="nothing is lost, and this one may be started again",
            )
        self._emit(Step.ACKNOWLEDGE, "", 0)

    # -- parts of a pass ------------------------------------------------------------------

    def _make_first(self, connection: Connection, origin: Origin) -> Head:
        """Nothing published yet; the row of an attempt that came to nothing is used again."""
        archive_id = self._new_id
        for row in self.store.list_rows(connection):
            # Each opening of memory:// is another, empty store under the same URL.
            if row.url != self.archive.url or row.url.startswith("memory:"):
                continue
            if row.head:
                raise HeadRolledBackError(
                    f"{self.archive.url} is empty, and the database has published "
                    f"{row.sequence} entries there",
                    hint="the bucket was emptied or is another one: bring the objects back, or "
                    "begin a new archive under another prefix",
                )
            archive_id = row.archive_id
        return make_first(archive_id, self.log.read_log_id(connection), origin)

    def _check_log(self, connection: Connection, head: Head) -> None:
        log_id = self.log.read_log_id(connection)
        if head.log_id != log_id:
            raise ConfigurationError(
                f"{self.archive.url} holds the log {head.log_id}, this database has {log_id}",
                hint="give each log an archive of its own, under another prefix; a database that "
                "is to go on with this archive is made by oplog restore",
            )

    def _has_work(
        self, connection: Connection, standing: Standing, head: Head, page: NewPage
    ) -> bool:
        """Whether a head has to be published; if not, the receipt may still have to be."""
        if standing.lost or (standing.published and self.archive.single_writer):
            # Without a store's help another writer's head is never taken as it is.
            return True
        return bool(page.entries) or (head.number > 0 and self._types_changed(connection, head))

    def _types_changed(self, connection: Connection, head: Head) -> bool:
        known = (0, 0) if head.types is None else (head.types.types, head.types.keys)
        return self.store.count_types(connection) != known

    def _take_epoch(self, connection: Connection) -> None:
        footing = self._footing_seen
        if footing is None:
            raise LeaseLostError("no head was looked at", hint="publish through publish_page")
        self.archive.require_writable()
        wanted = make_blank(self.archive, footing.head, here=identify(footing.origin))
        row = self.store.take_epoch(connection, wanted)
        self.publisher = Publisher(
            self.archive, writer=self._writer, epoch=row.epoch, emit=self._emit
        )
        self._emit(Step.TAKE_EPOCH, "", 0)

    def require_publisher(self) -> Publisher:
        """What publishes under this exporter's epoch."""
        if self.publisher is None:
            raise LeaseLostError("no epoch was taken", hint="publish through run")
        return self.publisher

    def _repair_receipt(self, connection: Connection, footing: Footing, cursor: Cursor) -> None:
        """Published, and the process died before it could say so here."""
        head, row = footing.head, footing.row
        if head.number == 0:
            return
        receipt = make_receipt(
            self.archive,
            head,
            epoch=max(head.epoch, 0 if row is None else row.epoch),
            # Never the head's cursor: it may be of a server that saw other transactions.
            cursor=cursor.to_json(),
            here=identify(footing.origin),
            owner=identify(head.origin),
        )
        self.store.write_row(connection, receipt, position=head.position)

    def _report(self, head: Head, tally: _Tally, written: int) -> SyncReport:
        return SyncReport(
            tally.entries,
            tally.segments,
            written,
            head.position,
            head.sequence,
            head.generation,
            tally.lost,
        )

    # -- segments -------------------------------------------------------------------------

    def _add_page(self, connection: Connection, head: Head, page: NewPage, tally: _Tally) -> Head:
        """The head with a page of what is new, whose segments are put."""
        self._emit(Step.READ_NEWS, "", 0)
        check_whole(page.entries)
        for positions, missing in cut_entries(page.entries, self._segment_bytes):
            head = self._add_segment(connection, head, positions, missing=missing)
            tally.segments += 1
            tally.entries += len(positions)
        return replace(head, cursor=page.cursor.to_json())

    def add_news(
        self, connection: Connection, head: Head, standing: Standing, *, catch_up: bool
    ) -> Head:
        """The head with all that is new, if `catch_up`; with the database's place if not."""
        if not catch_up and not standing.published:
            return replace(head, cursor=standing.cursor.to_json())
        tally = _Tally()
        page = self._read_page(connection, standing)
        while page.entries:
            head = self._add_page(connection, head, page, tally)
            standing = Standing(head.sequence, head.chain, page.cursor)
            page = self._read_page(connection, standing)
        return self._add_types(connection, replace(head, cursor=page.cursor.to_json()))

    def _read_page(self, connection: Connection, standing: Standing) -> NewPage:
        return read_page(
            connection,
            standing,
            store=self.store,
            feed=self._feed,
            most_entries=self._page_entries,
            most_bytes=self._segment_bytes,
        )

    def _add_segment(
        self,
        connection: Connection,
        head: Head,
        positions: Sequence[int],
        *,
        missing: int,
    ) -> Head:
        entries = self.store.read_entries(connection, positions)
        metadata = self.log.read_metadata(
            connection, {entry.transaction_position for entry in entries}
        )
        return put_segment(
            self.require_publisher(),
            head,
            entries,
            metadata=metadata,
            missing=missing,
        )

    def _add_types(self, connection: Connection, head: Head) -> Head:
        if not self._types_changed(connection, head):
            return head
        types = LoggedTypes(self.log.list_types(connection), self.log.list_keys(connection))
        path = self.require_publisher().put_blob(encode_types(types), step=Step.PUT_TYPES)
        return replace(head, types=TypesRef(path, len(types.shapes), len(types.key_checks)))
