"""Passes from the database to the archive: what is new becomes segments and a head.

In a pass records are read, content and head are put, and the receipt is written in one
transaction: no other server can have answered in between.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import uuid4

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.format.path import LATEST
from oplog.archive.ownership import identify
from oplog.errors import StoreUnavailableError
from oplog.finding import Finding
from oplog.store import Store
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore, NewPage
from oplog.store.feed import Feed
from oplog.sync.archive_row import make_receipt
from oplog.sync.divergence import is_in_step, refuse_fork
from oplog.sync.epoch import EpochHolder, EpochNeeded
from oplog.sync.fork import ForkPolicy, make_fork
from oplog.sync.head_draft import Drafted, Drafter
from oplog.sync.publish_context import Base, PublishContext, find_context
from oplog.sync.publisher import Emit, make_hint

PAGE_ENTRIES = 20_000
"""Entries published by one head, unless one record has more."""
SEGMENT_BYTES = 16 * 1024 * 1024
"""Most sealed bytes and metadata of one segment, and of all that one head adds.

Unless one record has more.
"""

FIRST_SEGMENT_BYTES = 1024 * 1024
"""Of the first page. Each page that goes through doubles it: what the line takes is not known."""
LEAST_SEGMENT_BYTES = 128 * 1024
"""What is tried at last on a line on which larger segments time out."""
_PAGES_HELD = 16
"""Pages after a failure in which nothing larger is tried: each try may cost minutes."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pass published.

    `entries` in `segments`, `bytes` put into the store for them, `position` the highest that is
    published now, `sequence` that of the last record, in `generation`. `lost` counts records that
    the database lacked and that a new generation left behind. `problems` are tables that are
    gone. `expect_at_least` is SEQUENCE:HASH of what the archive holds now; kept elsewhere, it
    lets a reader refuse an older state.
    """

    entries: int
    segments: int
    bytes: int
    position: int
    sequence: int = 0
    generation: int = 0
    lost: int = 0
    problems: tuple[Finding, ...] = ()
    expect_at_least: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


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
        self.log = Store(schema)
        self.epoch = EpochHolder(
            archive,
            store=self.store,
            writer=writer or f"oplog-{secrets.token_hex(4)}",
            emit=emit,
        )
        self.drafter = Drafter(
            log=self.log,
            store=self.store,
            feed=Feed(schema),
            emit=emit,
            page_entries=page_entries,
            segment_bytes=min(FIRST_SEGMENT_BYTES, segment_bytes),
        )
        self._fork = fork
        self._most_bytes = segment_bytes
        self._pages_held = 0
        # Drawn once: an attempt that is made again must not found another archive.
        self._new_id = uuid4()
        self.unfinished = False
        """Whether the last page left something that its transaction could see."""
        self._resumed = False

    def publish_all(self, engine: Engine) -> SyncReport:
        """Publish everything that was committed when this began.

        What is written meanwhile is left to the next pass: beside a steady writer a pass that
        chases the newest record never ends. Raises `LeaseHeldError` if another worker is at it.
        """
        total = self._publish_way(engine, SyncReport(0, 0, 0, 0))
        if self._resumed:
            # That way was begun by an earlier pass: what came after it is new as well.
            total = self._publish_way(engine, total)
        return total

    def _publish_way(self, engine: Engine, total: SyncReport) -> SyncReport:
        """Publish what the first of these pages can see, or what a way begun before aims at."""
        report = self.publish_page(engine)
        resumed = self._resumed
        total = _add(total, report)
        while self.unfinished:
            total = _add(total, self.publish_page(engine))
        self._resumed = resumed
        return total

    def publish_page(self, engine: Engine, *, seize: bool = False) -> SyncReport:
        """Publish what one head takes; a report of no entries says that nothing is new.

        `seize` goes on although another worker has the lease: of both, one publishes. Raises
        `LeaseHeldError`, and `LeaseLostError` when another one published meanwhile.
        """
        try:
            report = self.epoch.run(engine, lambda inside: self._attempt(inside, seize=seize))
        except StoreUnavailableError:
            self._shrink()
            raise
        if report.entries:
            self._grow()
        return report

    def _shrink(self) -> None:
        """A line that does not take a segment in time may take a smaller one."""
        self._pages_held = _PAGES_HELD
        self._resize(self.drafter.segment_bytes // 2)

    def _grow(self) -> None:
        """After a page that went through: twice as much, unless that failed not long ago."""
        if self._pages_held:
            self._pages_held -= 1
        else:
            self._resize(2 * self.drafter.segment_bytes)

    def _resize(self, wanted: int) -> None:
        size = max(min(LEAST_SEGMENT_BYTES, self._most_bytes), min(self._most_bytes, wanted))
        if size != self.drafter.segment_bytes:
            self.drafter = replace(self.drafter, segment_bytes=size)

    def find_context(
        self, connection: Connection, *, seize: bool = False, base: Base | None = None
    ) -> PublishContext:
        """What a transaction just begun goes on from; raises as `publish_context.find_context`."""
        return find_context(
            connection,
            self.archive,
            store=self.store,
            log=self.log,
            new_id=self._new_id,
            seize=seize,
            base=base,
        )

    def _attempt(self, connection: Connection, *, seize: bool) -> SyncReport | EpochNeeded:
        """One page, in a transaction just begun."""
        context = self.find_context(connection, seize=seize)
        if context.divergence.lost and self._fork is ForkPolicy.STOP:
            raise refuse_fork(self.archive, context.divergence, same=context.is_owner)
        self._resumed = context.divergence.cursor.target is not None
        page = self.drafter.read_page(connection, context.divergence)
        if not self._has_work(connection, context, page):
            self._catch_up(connection, context, page.cursor)
            self.unfinished = False
            return _report(Drafted(context.head))
        if not self.epoch.is_current(context):
            return EpochNeeded(context)
        return self._publish(connection, context, page)

    def _has_work(self, connection: Connection, context: PublishContext, page: NewPage) -> bool:
        """Whether a head has to be published; if not, the receipt may still have to be."""
        head, divergence = context.head, context.divergence
        if divergence.lost or (divergence.published and self.archive.single_writer):
            # Without a store's help another writer's head is never taken as it is.
            return True
        if page.records:
            return True
        if self.archive.trust.wants_head(head):
            return True
        return head.number > 0 and self.drafter.have_types_changed(connection, head)

    def _publish(
        self, connection: Connection, context: PublishContext, page: NewPage
    ) -> SyncReport:
        publisher, divergence = self.epoch.publisher, context.divergence
        before = publisher.written_bytes
        draft = replace(context.head, origin=context.origin)
        if divergence.lost:
            draft = make_fork(self.archive, publisher, draft, divergence=divergence)
        drafted = self.drafter.add_page(connection, draft, page, publisher=publisher)
        self.unfinished = page.cursor.target is not None
        draft = self.drafter.add_types(connection, drafted.head, publisher=publisher)
        published = self.epoch.publish(connection, context, draft)
        return _report(
            replace(drafted, head=published),
            written=publisher.written_bytes - before,
            lost=divergence.lost,
        )

    def _catch_up(self, connection: Connection, context: PublishContext, cursor: Cursor) -> None:
        """Mend the receipt and the hint of a worker that died after it had published."""
        head, row = context.head, context.row
        if row is None or not is_in_step(row, head):
            self._repair_receipt(connection, context, cursor)
        if self.archive.hinted > head.number > 0:
            # The older head was accepted. Readers would go on missing the one that LATEST names.
            self.archive.store.put(LATEST, make_hint(head))

    def _repair_receipt(
        self, connection: Connection, context: PublishContext, cursor: Cursor
    ) -> None:
        head, row = context.head, context.row
        if head.number == 0:
            return
        receipt = make_receipt(
            self.archive,
            head,
            epoch=max(head.epoch, 0 if row is None else row.epoch),
            # Never the head's cursor: it may be of a server that saw other transactions.
            cursor=cursor.to_json(),
            here=identify(context.origin),
            owner=identify(head.origin),
        )
        self.store.write_row(connection, receipt, position=head.position)


def _add(total: SyncReport, report: SyncReport) -> SyncReport:
    """The report of the passes so far and of one more."""
    return replace(
        report,
        entries=total.entries + report.entries,
        segments=total.segments + report.segments,
        bytes=total.bytes + report.bytes,
        lost=total.lost + report.lost,
    )


def _report(drafted: Drafted, *, written: int = 0, lost: int = 0) -> SyncReport:
    head = drafted.head
    return SyncReport(
        entries=drafted.entries,
        segments=drafted.segments,
        bytes=written,
        position=head.position,
        sequence=head.sequence,
        generation=head.generation,
        lost=lost,
        expect_at_least=str(Expectation.of(head)) if head.sequence else "",
    )
