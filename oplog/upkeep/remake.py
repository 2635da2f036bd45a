"""Damaged objects made again, byte by byte: segments from the log, nodes from segments.

Nothing is written here, and whatever is made is compared with the hash in its name. Which records
a lost segment had is not recorded: its item says where positions begin and end and what the chain
is after it, and records of other segments lie in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.index import FANOUT, Item, encode_node, make_item
from oplog.archive.format.path import LOG, parse_content
from oplog.archive.format.segment import decode_segment, encode_segment, extend_chain, start_chain
from oplog.errors import ArchiveError
from oplog.store import StoredRecord
from oplog.store.export import ExportStore
from oplog.upkeep.tree_walk import walk_tree

_PAGE = 20_000
_MOST_TRIED = 10_000


@dataclass(frozen=True, slots=True)
class Remade:
    """An object made again: under its own name, or `item` for a segment with other bytes."""

    path: str
    data: bytes
    item: Item | None = None


class SegmentMaker:
    """Makes segments of one head again, in a transaction that sees the log.

    `snapshot` shows what was published. Segments named in `damaged` are not read.
    """

    def __init__(
        self,
        connection: Connection,
        archive: Archive,
        head: Head,
        *,
        store: ExportStore,
        snapshot: str,
        damaged: Collection[str],
    ) -> None:
        self._connection = connection
        self._archive = archive
        self._head = head
        self._store = store
        self._snapshot = snapshot
        self._damaged = damaged

    def make_all(self) -> Iterator[Remade]:
        """All damaged segments that the head leads to and the log has the records of."""
        run: list[tuple[Item, bytes]] = []
        chain = start_chain(self._head.log_id) if self._head.first_sequence == 1 else None
        for item, level in self._walk():
            if level:
                yield from self._make_run(run)
                run = []
            elif item.path in self._damaged:
                if chain is not None:
                    run.append((item, chain))
            elif run:
                yield from self._make_run(run)
                run = []
            chain = item.chain
        yield from self._make_run(run)

    def _walk(self) -> Iterator[tuple[Item, int]]:
        after = self._head.first_sequence - 1
        yield from walk_tree(self._archive, self._head.levels, after=after, note=lambda _: None)

    def _make_run(self, run: Sequence[tuple[Item, bytes]]) -> Iterator[Remade]:
        """Segments in a row: what one has, the others have not."""
        if not run:
            return
        low = min(item.first_position for item, _ in run)
        high = max(item.last_position for item, _ in run)
        free = self._list_free(low, high)
        left = list(run)
        progress = True
        while left and progress:
            progress = False
            for one in list(left):
                records = self._find_records(one[0], one[1], free)
                if records is None:
                    continue
                free -= {record.position for record in records}
                left.remove(one)
                progress = True
                yield self._encode(one[0], one[1], records)

    def _list_free(self, low: int, high: int) -> set[int]:
        """Positions that were published and are in no segment that can be read."""
        free: set[int] = set()
        last = low - 1
        while last < high:
            page = self._store.list_published(
                self._connection, self._snapshot, after=last, limit=_PAGE
            )
            free.update(position for position in page if position <= high)
            last = page[-1] if page else high
        for item, level in self._walk():
            overlaps = item.first_position <= high and item.last_position >= low
            if level or item.path in self._damaged or not overlaps:
                continue
            try:
                segment = self._archive.read_segment(item)
            except ArchiveError:
                continue
            free.difference_update(record.position for record in segment.records)
        return free

    def _find_records(
        self, item: Item, chain_before: bytes, free: set[int]
    ) -> list[StoredRecord] | None:
        """The records that make `item`'s chain; None if they are not to be found."""
        inside = sorted(p for p in free if item.first_position <= p <= item.last_position)
        size = item.last - item.first + 1
        if not size <= len(inside) <= size + _MOST_TRIED:
            return None
        records = self._store.read_records(self._connection, inside)
        for start in range(len(records) - size + 1):
            window = records[start : start + size]
            positions = [record.position for record in window]
            if (min(positions), max(positions)) != (item.first_position, item.last_position):
                continue
            if extend_chain(chain_before, window, first=item.first) == item.chain:
                return window
        return None

    def _encode(self, item: Item, chain_before: bytes, records: list[StoredRecord]) -> Remade:
        # Which generation wrote it stands in its header alone.
        for generation in range(self._head.generation, -1, -1):
            data, header = encode_segment(
                records,
                log_id=self._head.log_id,
                generation=generation,
                first=item.first,
                chain_before=chain_before,
            )
            made = make_item(header, data)
            if made.path == item.path:
                return Remade(item.path, data)
            if generation == self._head.generation:
                other = Remade(item.path, data, made)
        # Another version of the compressor: the same content in other bytes, under another name.
        return other


def remake_node(
    archive: Archive, item: Item, level: int, *, known: Collection[Item]
) -> bytes | None:
    """The bytes of a node of the index; None if its segments are not to be found.

    `known` are items of segments that other documents hold; the store's listing is asked too.
    """
    by_first: dict[int, list[Item]] = {}
    for one in known:
        if item.first <= one.first and one.last <= item.last:
            by_first.setdefault(one.first, []).append(one)
    data = _fit(by_first, item, level)
    if data is not None:
        return data
    for one in _list_segments(archive, item):
        by_first.setdefault(one.first, []).append(one)
    return _fit(by_first, item, level)


def _list_segments(archive: Archive, node: Item) -> Iterator[Item]:
    for info in archive.store.list(f"{LOG}/"):
        try:
            if not node.first <= parse_content(info.path, LOG).number <= node.last:
                continue
            data = archive.read_content(info.path)
            yield make_item(decode_segment(data, what=info.path).header, data)
        except ArchiveError:
            # Damaged itself, or no segment: then it does not help.
            continue


def _fit(by_first: dict[int, list[Item]], node: Item, level: int) -> bytes | None:
    """The node's bytes, of one of the ways to put segments in a row."""
    tried = 0
    stack: list[list[Item]] = [[]]
    while stack and tried < _MOST_TRIED:
        row = stack.pop()
        tried += 1
        reached = row[-1].last if row else node.first - 1
        if reached == node.last:
            data = _encode_levels(row, level)
            if data is not None and sha256(data).digest() == parse_content(node.path).digest:
                return data
            continue
        stack += [[*row, one] for one in dict.fromkeys(by_first.get(reached + 1, []))]
    return None


def _encode_levels(row: Sequence[Item], level: int) -> bytes | None:
    """The node of `level` over segments, each node full as publishing makes them."""
    items = list(row)
    for below in range(level - 1):
        if len(items) % FANOUT:
            return None
        items = [
            encode_node(items[start : start + FANOUT], level=below)[1]
            for start in range(0, len(items), FANOUT)
        ]
    return encode_node(items, level=level - 1)[0] if len(items) <= FANOUT else None
