"""An archive as a log to be read: the records of one head, in the order of their sequence.

What a database finds by index is found by the index's items, which say the positions, times and
adoptions of a segment, so that the archive need not be read whole for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.index import Item
from oplog.archive.format.segment import Segment
from oplog.archive.history import read_chain_at
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.payload.shape import Shape
from oplog.store import BrokenLink, EntryFilter, SequencedPage
from oplog.store.adopted import Turns, join_turns, name_adoption, read_turns
from oplog.store.page_cursor import PageCursor
from oplog.store.quarantined import is_quarantine_mark
from oplog.store.rows import StoredRecord, write_microseconds


class ArchivedLog:
    """The log as one head of an archive has it; what is published later is not seen.

    `schema` is that of the log's tables, where the archive was made. Not shared between threads.
    """

    ordered = False

    def __init__(
        self, archive: Archive, head: Head, *, schema: str = "oplog", through: int | None = None
    ) -> None:
        """`through` is the last sequence to be seen, the head's own unless it is given."""
        self.archive = archive
        self.head = head
        self.schema = schema
        self._through = head.sequence if through is None else through
        self._types = archive.read_types(head)
        self._sequences: dict[int, int] = {}
        """By position, of the page given last."""
        self._marks: list[StoredRecord] | None = None

    @property
    def page_base(self) -> int:
        """The newest record's sequence: all are read from the archive."""
        return self.sequence

    # -- what it is -----------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Which fork of the log this is."""
        return self.head.generation

    @property
    def first_sequence(self) -> int:
        """Sequence of the oldest record that is kept."""
        return self.head.first_sequence

    @property
    def sequence(self) -> int:
        """Sequence of the newest record; 0 for an empty log."""
        return self._through

    @property
    def whole(self) -> bool:
        """Whether the log's first record is kept."""
        return self.first_sequence == 1

    def find_chain(self, sequence: int) -> bytes | None:
        """The hash over all up to `sequence`; None where this log does not reach."""
        if not self.head.first_sequence - 1 <= sequence <= self._through:
            return None
        return read_chain_at(self.archive, self.head, sequence)

    def read_log_id(self) -> UUID:
        """The identity of the log."""
        return self.head.log_id

    def read_snapshot(self) -> str:
        """The head's name: all of its records are one snapshot."""
        return f"head {self.head.number}"

    @property
    def shapes(self) -> Sequence[Shape]:
        """Every stored revision of every type, revisions rising."""
        return self._types.shapes

    def list_types(self) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        return list(self.shapes)

    def list_keys(self) -> Mapping[str, bytes]:
        """Check values of data keys by key id."""
        return self._types.key_checks

    # -- records --------------------------------------------------------------------------

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        """Pages of the records whose sequence is over `after`."""
        for item, records in self._iterate(self._iterate_all(after)):
            skip = max(0, after + 1 - item.first)
            yield SequencedPage(item.first + skip, list(records[skip:]))

    def iterate(
        self,
        filter: EntryFilter,
        *,
        snapshot: str = "",
        chain: ChainCheck | None = None,
    ) -> Iterator[list[StoredRecord]]:
        """Pages of records with an entry that fits, none empty, in the order of their sequence.

        Links are checked if all are read, with `chain` if it is given: what comes after these
        records can then be held to them.
        """
        links = (chain or ChainCheck(whole=self.whole)) if filter.takes_all else None
        chosen = (item for item in self._list_items() if _may_hold(item, filter))
        segments = (
            self._iterate_all(0)
            if links is not None
            else ((item, self.archive.read_segment(item)) for item in chosen)
        )
        for _, records in self._iterate(segments):
            if links is not None:
                check_links(records, links)
            page = [record for record in records if fits(record, filter)]
            if page:
                yield page

    def iterate_pages(
        self,
        filter: EntryFilter,
        *,
        snapshot: str = "",
        newest_first: bool,
        expected: int = 0,
        start: PageCursor | None = None,
    ) -> Iterator[list[StoredRecord]]:
        """The same in either direction, beginning at the place `start`, a segment at a time."""
        order = self._list_newest() if newest_first else self._list_items()
        chosen = (item for item in order if _may_hold(item, filter))
        segments = ((item, self.archive.read_segment(item)) for item in chosen)
        for item, records in self._iterate(segments):
            page = [
                record
                for sequence, record in enumerate(records, item.first)
                if fits(record, filter) and (start is None or start.takes(record, sequence))
            ]
            if page:
                yield page[::-1] if newest_first else page

    def _list_newest(self) -> Iterator[Item]:
        items = self.archive.iterate_newest(self.head.levels, after=self.head.first_sequence - 1)
        return (item for item in items if item.first <= self._through)

    def _iterate_all(self, after: int) -> Iterator[tuple[Item, Segment]]:
        after = max(after, self.head.first_sequence - 1)
        return self.archive.iterate_segments(self.head.levels, after=after, through=self._through)

    def _list_items(self) -> Iterator[Item]:
        after = self.head.first_sequence - 1
        return self.archive.iterate_items(self.head.levels, after=after, through=self._through)

    def _cut(self, item: Item, segment: Segment) -> Sequence[StoredRecord]:
        return segment.records[: self._through + 1 - item.first]

    def _iterate(
        self, segments: Iterable[tuple[Item, Segment]]
    ) -> Iterator[tuple[Item, Sequence[StoredRecord]]]:
        for item, segment in segments:
            records = self._cut(item, segment)
            self._sequences = {
                record.position: sequence for sequence, record in enumerate(records, item.first)
            }
            yield item, records

    def find_sequence(self, position: int) -> int | None:
        """The sequence of a record of the page given last."""
        return self._sequences.get(position)

    # -- what a database finds by index ---------------------------------------------------

    def find_position(self, at: datetime, *, snapshot: str = "") -> int:
        """The highest position up to which no record was recorded after `at`; 0 for none."""
        later = self.find_later(at)
        found = 0
        for item in self._list_items():
            if item.last_position <= found or (later is not None and item.first_position >= later):
                continue
            whole = item.last <= self._through
            if whole and (later is None or item.last_position < later):
                found = item.last_position
                continue
            for record in self._cut(item, self.archive.read_segment(item)):
                if later is None or record.position < later:
                    found = max(found, record.position)
        return found

    def find_later(self, at: datetime, *, snapshot: str = "") -> int | None:
        """The lowest position recorded after `at`; None when there is none."""
        moment = write_microseconds(at)
        found: int | None = None
        for item in self._list_items():
            if item.last_recorded <= moment or (found is not None and item.first_position >= found):
                continue
            if item.first_recorded > moment and item.last <= self._through:
                found = item.first_position
                continue
            for record in self._cut(item, self.archive.read_segment(item)):
                if record.recorded_at > at and (found is None or record.position < found):
                    found = record.position
        return found

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str = "", through: int | None = None
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        names = {name_adoption(name): name for name in types}
        return join_turns(
            (names[aggregate], read_turns(record.position, record.metadata))
            for item in self._list_items()
            if item.adopted
            for record in self._cut(item, self.archive.read_segment(item))
            if through is None or record.position <= through
            for aggregate in record.aggregates
            if aggregate in names
        )

    def list_quarantine_marks(self) -> list[StoredRecord]:
        """Every mark by which the owner has quarantined a record, oldest first.

        Of the whole head: what is seen only up to some sequence may be quarantined after it.
        """
        if self._marks is None:
            after = self.head.first_sequence - 1
            items = self.archive.iterate_items(
                self.head.levels, after=after, through=self.head.sequence
            )
            self._marks = [
                record
                for item in items
                if item.adopted
                for record in self.archive.read_segment(item).records
                if is_quarantine_mark(record)
            ]
        return self._marks

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        """None: links are checked while records are read, and a broken one is an error there."""
        return []


def check_links(records: Iterable[StoredRecord], chain: ChainCheck) -> None:
    """Raise `ChainBrokenError` where a record does not follow those that `chain` has met."""
    for record in records:
        chain.require(
            record.list_links(),
            hint="rows of oplog_record were altered or removed, in the database or before they "
            "were archived: run verify on the database",
        )


def _may_hold(item: Item, filter: EntryFilter) -> bool:
    after = filter.after is None or item.last_position > filter.after
    through = filter.through is None or item.first_position <= filter.through
    return after and through


def fits(record: StoredRecord, filter: EntryFilter) -> bool:
    """Whether a record has an entry that the filter takes."""
    if filter.after is not None and record.position <= filter.after:
        return False
    if filter.through is not None and record.position > filter.through:
        return False
    if filter.aggregate is not None and filter.aggregate not in record.aggregates:
        return False
    if filter.aggregates:
        # One entry has to fit both conditions.
        named = record.aggregates if filter.aggregate is None else (filter.aggregate,)
        if not any(aggregate in filter.aggregates for aggregate in named):
            return False
    if filter.tagged is not None:
        key, values = filter.tagged
        if not any(name == key and value in values for name, value in record.metadata):
            return False
    return all(pair in record.metadata for pair in filter.metadata)
