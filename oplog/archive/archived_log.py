"""An archive as a log to be read: the entries of one head, in the order of their sequence.

What a database finds by index is found by the index's items, which say the positions, times and
adoptions of a segment, so that the archive need not be read whole for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from oplog.archive.archive import Archive
from oplog.archive.format.body import Pairs
from oplog.archive.format.head import Head
from oplog.archive.format.index import Item
from oplog.archive.format.segment import Segment
from oplog.archive.history import read_chain_at
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.payload.shape import Shape
from oplog.store import BrokenLink, EntryFilter, SequencedPage, StoredEntry
from oplog.store.adopted import Turns, join_turns, name_adoption, read_turns
from oplog.store.rows import write_microseconds

_REMEMBERED = 8
"""Segments whose metadata is kept after their entries were given."""


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
        self._metadata: OrderedDict[int, Mapping[int, Pairs]] = OrderedDict()
        self._first: dict[int, int] = {}

    # -- what it is -----------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Which fork of the log this is."""
        return self.head.generation

    @property
    def first_sequence(self) -> int:
        """Sequence of the oldest entry that is kept."""
        return self.head.first_sequence

    @property
    def sequence(self) -> int:
        """Sequence of the newest entry; 0 for an empty log."""
        return self._through

    @property
    def whole(self) -> bool:
        """Whether the log's first entry is kept."""
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
        """The head's name: all of its entries are one snapshot."""
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

    # -- entries --------------------------------------------------------------------------

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        """Pages of the entries whose sequence is over `after`."""
        for item, entries, metadata in self._iterate(self._iterate_all(after)):
            skip = max(0, after + 1 - item.first)
            yield SequencedPage(item.first + skip, list(entries[skip:]), metadata)

    def iterate(
        self,
        filter: EntryFilter,
        *,
        snapshot: str = "",
        chain: ChainCheck | None = None,
    ) -> Iterator[list[StoredEntry]]:
        """Pages of entries that fit, none empty, in the order of their sequence.

        Links are checked if all are read, with `chain` if it is given: what comes after these
        entries can then be held to them.
        """
        links = (chain or ChainCheck(whole=self.whole)) if filter.takes_all else None
        chosen = (item for item in self._list_items() if _may_hold(item, filter))
        segments = (
            self._iterate_all(0)
            if links is not None
            else ((item, self.archive.read_segment(item)) for item in chosen)
        )
        for _, entries, metadata in self._iterate(segments):
            if links is not None:
                check_links(entries, links)
            page = [entry for entry in entries if _fits(entry, filter, metadata)]
            if page:
                yield page

    def _iterate_all(self, after: int) -> Iterator[tuple[Item, Segment]]:
        after = max(after, self.head.first_sequence - 1)
        return self.archive.iterate_segments(self.head.levels, after=after, through=self._through)

    def _list_items(self) -> Iterator[Item]:
        after = self.head.first_sequence - 1
        return self.archive.iterate_items(self.head.levels, after=after, through=self._through)

    def _cut(self, item: Item, segment: Segment) -> Sequence[StoredEntry]:
        return segment.entries[: self._through + 1 - item.first]

    def _iterate(
        self, segments: Iterable[tuple[Item, Segment]]
    ) -> Iterator[tuple[Item, Sequence[StoredEntry], Mapping[int, Pairs]]]:
        """Segments' entries with all their transactions' metadata, also of one begun before."""
        carried: dict[int, Pairs] = {}
        for item, segment in segments:
            metadata = {**carried, **segment.metadata}
            last = segment.entries[-1].transaction_position
            carried = {last: metadata.get(last, [])} if item.missing else {}
            self._metadata[item.first] = metadata
            entries = self._cut(item, segment)
            self._first = {
                entry.position: sequence for sequence, entry in enumerate(entries, item.first)
            }
            if len(self._metadata) > _REMEMBERED:
                self._metadata.popitem(last=False)
            yield item, entries, metadata

    def find_sequence(self, position: int) -> int | None:
        """The sequence of an entry of the page given last."""
        return self._first.get(position)

    def read_metadata(self, positions: Iterable[int]) -> Mapping[int, Pairs]:
        """Metadata pairs in their order, by transaction position; left out where there are none."""
        found: dict[int, Pairs] = {}
        for position in set(positions):
            pairs = self._find_metadata(position)
            if pairs:
                found[position] = pairs
        return found

    def _find_metadata(self, position: int) -> Pairs:
        for metadata in reversed(self._metadata.values()):
            if position in metadata:
                return metadata[position]
        for item in self._list_items():
            if item.first in self._metadata:
                continue
            if item.first_position <= position <= item.last_position:
                metadata = self.archive.read_segment(item).metadata
                if position in metadata:
                    return metadata[position]
        return []

    # -- what a database finds by index ---------------------------------------------------

    def find_position(self, at: datetime, *, snapshot: str = "") -> int:
        """The highest position recorded at or before `at`; 0 when there is none."""
        moment = write_microseconds(at)
        found = 0
        for item in self._list_items():
            if item.first_recorded > moment or item.last_position <= found:
                continue
            if item.last_recorded <= moment and item.last <= self._through:
                found = item.last_position
                continue
            for entry in self._cut(item, self.archive.read_segment(item)):
                if entry.recorded_at <= at:
                    found = max(found, entry.position)
        return found

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str = "", through: int | None = None
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        names = {name_adoption(name): name for name in types}
        return join_turns(
            (names[entry.aggregate], read_turns(entry.position, pairs))
            for item in self._list_items()
            if item.adopted
            for segment in [self.archive.read_segment(item)]
            for entry in self._cut(item, segment)
            if entry.aggregate in names and (through is None or entry.position <= through)
            for pairs in [segment.metadata.get(entry.transaction_position, [])]
        )

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        """None: links are checked while entries are read, and a broken one is an error there."""
        return []


def check_links(entries: Iterable[StoredEntry], chain: ChainCheck) -> None:
    """Raise `ChainBrokenError` where an entry does not follow those that `chain` has met."""
    for entry in entries:
        chain.require(
            entry,
            hint="rows of oplog_entry were altered or removed, in the database or before they "
            "were archived: run verify on the database",
        )


def _may_hold(item: Item, filter: EntryFilter) -> bool:
    after = filter.after is None or item.last_position > filter.after
    through = filter.through is None or item.first_position <= filter.through
    return after and through


def _fits(entry: StoredEntry, filter: EntryFilter, metadata: Mapping[int, Pairs]) -> bool:
    if filter.after is not None and entry.position <= filter.after:
        return False
    if filter.through is not None and entry.position > filter.through:
        return False
    if filter.aggregate is not None and entry.aggregate != filter.aggregate:
        return False
    if filter.aggregates and entry.aggregate not in filter.aggregates:
        return False
    pairs = metadata.get(entry.transaction_position, [])
    return all(pair in pairs for pair in filter.metadata)
