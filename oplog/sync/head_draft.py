"""Drafts of heads: what is new in the log becomes segments behind the head, types are kept up.

Sealed bytes pass as they are: no keys are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from oplog.archive.format.head import Head, TypesRef
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.step import Step
from oplog.store import Store
from oplog.store.export import ExportStore, NewPage
from oplog.store.feed import Feed
from oplog.sync.batch import cut_records, put_segment
from oplog.sync.divergence import Divergence
from oplog.sync.news import read_page
from oplog.sync.publisher import Emit, Publisher
from oplog.sync.record_check import check_publishable


@dataclass(frozen=True, slots=True)
class Drafted:
    """A draft of a head, and how many entries in how many segments were added to it.

    A record has as many entries as aggregates.
    """

    head: Head
    entries: int = 0
    segments: int = 0


@dataclass(frozen=True, slots=True)
class Drafter:
    """Adds what is new to drafts.

    A page has at most `page_entries` entries and `segment_bytes` bytes of sealed parts and
    metadata, and a segment as many bytes, unless one record has more.
    """

    log: Store
    store: ExportStore
    feed: Feed
    emit: Emit
    page_entries: int
    segment_bytes: int

    def read_page(self, connection: Connection, divergence: Divergence) -> NewPage:
        """The next page of what is new."""
        return read_page(
            connection,
            divergence,
            store=self.store,
            feed=self.feed,
            most_entries=self.page_entries,
            most_bytes=self.segment_bytes,
        )

    def add_page(
        self, connection: Connection, head: Head, page: NewPage, *, publisher: Publisher
    ) -> Drafted:
        """The draft with a page of what is new, whose segments are put."""
        self.emit(Step.READ_NEWS, "", 0)
        segments = 0
        for positions in cut_records(page.records, self.segment_bytes):
            stored = self.store.read_records(connection, positions)
            for record in stored:
                check_publishable(record)
            head = put_segment(publisher, head, stored)
            segments += 1
        entries = sum(record.entries for record in page.records)
        return Drafted(replace(head, cursor=page.cursor.to_json()), entries, segments)

    def add_all(
        self, connection: Connection, head: Head, divergence: Divergence, *, publisher: Publisher
    ) -> Head:
        """The draft with all that the transaction sees, and the log's types."""
        page = self.read_page(connection, divergence)
        while page.records:
            head = self.add_page(connection, head, page, publisher=publisher).head
            page = self.read_page(connection, Divergence(head.sequence, head.chain, page.cursor))
        draft = replace(head, cursor=page.cursor.to_json())
        return self.add_types(connection, draft, publisher=publisher)

    def add_types(self, connection: Connection, head: Head, *, publisher: Publisher) -> Head:
        """The draft with the log's types and key check values, if they changed."""
        if not self.have_types_changed(connection, head):
            return head
        types = LoggedTypes(self.log.list_types(connection), self.log.list_keys(connection))
        path = publisher.put_blob(encode_types(types), step=Step.PUT_TYPES)
        ref = TypesRef(path=path, types=len(types.shapes), keys=len(types.key_checks))
        return replace(head, types=ref)

    def have_types_changed(self, connection: Connection, head: Head) -> bool:
        """Whether the log has types or keys that the head does not name."""
        known = (0, 0) if head.types is None else (head.types.types, head.types.keys)
        return self.store.count_types(connection) != known
