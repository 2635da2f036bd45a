"""Where the segments are: a tree whose right edge is in the head.

A head lists the newest segments itself. Whenever a level holds `FANOUT` items they move into one
node, an object of its own, and an item for it goes one level up. So a head stays small however
long the log is, and publishing writes a constant amount. The tree can be cut at any sequence,
for a fork or to drop the oldest records, without rewriting the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, field

from oplog.archive.format.canonical_json import (
    Document,
    Flag,
    Format,
    Moment,
    Natural,
    PathText,
    Positive,
    Sha256Text,
    encode_document,
    invalid,
    list_members,
    read_document,
)
from oplog.archive.format.path import INDEX, LOG, name_content, parse_content
from oplog.archive.format.segment import SegmentHeader

FANOUT = 16
"""Items of one node."""
MAX_LEVELS = 12
MAX_NODE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """A segment, or a node of the index, and what is in it.

    Sequences `first` to `last`; the lowest and highest position and time in microseconds;
    `size_bytes` of all segments in it as stored; `chain` after its last record.
    """

    path: str
    first: int
    last: int
    first_position: int
    last_position: int
    first_recorded: int
    last_recorded: int
    size_bytes: int
    chain: bytes
    adopted: bool = False
    """Whether there are records of rows that the log met, or marks of quarantined records."""


Levels: TypeAlias = tuple[tuple[Item, ...], ...]
"""Items by level: segments first, then nodes of segments, then nodes of those."""

ReadNode: TypeAlias = Callable[[Item, int], Sequence[Item]]
"""Gives the items of a node of a level."""


class ItemJson(Document, frozen=True):
    """An item as it stands in heads and nodes."""

    path: PathText
    first: Positive
    last: Positive
    first_position: Positive
    last_position: Positive
    first_recorded: Moment
    last_recorded: Moment
    size_bytes: Positive = field(name="bytes")
    chain: Sha256Text
    adopted: Flag


LevelsJson: TypeAlias = Annotated[
    tuple[Annotated[tuple[ItemJson, ...], Meta(max_length=2 * FANOUT - 1)], ...],
    Meta(max_length=MAX_LEVELS),
]
"""Levels as they stand in heads."""


_NodeItems: TypeAlias = Annotated[tuple[ItemJson, ...], Meta(min_length=1, max_length=FANOUT)]


class NodeJson(Document, frozen=True, tag=1, tag_field="format"):
    """A node, in format 1."""

    level: Natural
    items: _NodeItems


def make_item(header: SegmentHeader, data: bytes) -> Item:
    """The item for an encoded segment."""
    return Item(
        path=name_content(LOG, header.first, data=data),
        first=header.first,
        last=header.last,
        first_position=header.first_position,
        last_position=header.last_position,
        first_recorded=header.first_recorded,
        last_recorded=header.last_recorded,
        size_bytes=len(data),
        chain=header.chain,
        adopted=header.adopted,
    )


def write_item(item: Item) -> ItemJson:
    """An item as it stands in heads and nodes."""
    changed: dict[str, Any] = {"chain": item.chain.hex(), "adopted": int(item.adopted)}
    return ItemJson(**list_members(item, ItemJson) | changed)


def read_item(document: ItemJson, *, level: int, what: str) -> Item:
    """An item of a level; `ManifestInvalidError` unless its name says the same."""
    changed = {"chain": bytes.fromhex(document.chain), "adopted": bool(document.adopted)}
    item = Item(**list_members(document, ItemJson) | changed)
    name = parse_content(item.path, LOG if level == 0 else INDEX, what=what)
    if name.number != (item.first if level == 0 else item.last) or item.last < item.first:
        raise invalid(what, f"its item {item.path} claims sequences {item.first} to {item.last}")
    return item


def check_items(items: Sequence[Item], *, what: str) -> None:
    """Raise `ManifestInvalidError` unless each item begins where the one before it ends."""
    for before, item in pairwise(items):
        if item.first != before.last + 1:
            raise invalid(
                what,
                f"after sequence {before.last} ({before.path}) comes {item.first} ({item.path})",
            )


# -- nodes --------------------------------------------------------------------------------


def encode_node(items: Sequence[Item], *, level: int) -> tuple[bytes, Item]:
    """The bytes of a node that holds `items` of `level`, and the item for it."""
    data = encode_document(NodeJson(level=level, items=tuple(write_item(item) for item in items)))
    last = items[-1]
    return data, Item(
        # By its last sequence: a node that reaches back before the oldest kept record must not look
        # like garbage while the head that needs it is being made.
        path=name_content(INDEX, last.last, data=data),
        first=items[0].first,
        last=last.last,
        first_position=min(item.first_position for item in items),
        last_position=max(item.last_position for item in items),
        first_recorded=min(item.first_recorded for item in items),
        last_recorded=max(item.last_recorded for item in items),
        size_bytes=sum(item.size_bytes for item in items),
        chain=last.chain,
        adopted=any(item.adopted for item in items),
    )


def decode_node(data: bytes, item: Item, *, level: int) -> list[Item]:
    """The items of the node that `item` (of `level`) names; they must be all it claims."""
    what = item.path
    found, items = read_document(data, NODE_FORMATS, most=MAX_NODE_BYTES, what=what)
    if found != level - 1:
        raise invalid(what, f"it holds level {found}, not {level - 1}")
    if encode_node(items, level=found)[1] != item:
        raise invalid(what, "it does not hold what the document that names it says")
    return items


def _read_node(document: NodeJson, what: str) -> tuple[int, list[Item]]:
    items = [read_item(one, level=document.level, what=what) for one in document.items]
    check_items(items, what=what)
    return document.level, items


NODE_FORMATS: Mapping[int, Format[Any, tuple[int, list[Item]]]] = MappingProxyType(
    {1: Format(NodeJson, _read_node)}
)
"""How nodes of each format are read: their level and items."""


# -- the right edge -----------------------------------------------------------------------


def add_item(levels: Levels, item: Item, *, put: Callable[[str, bytes], None]) -> Levels:
    """The levels with one more segment; full levels become nodes, handed to `put`."""
    rows = [list(row) for row in levels] or [[]]
    rows[0].append(item)
    level = 0
    while len(rows[level]) >= FANOUT:
        data, node = encode_node(rows[level], level=level)
        put(node.path, data)
        rows[level] = []
        level += 1
        if level == len(rows):
            rows.append([])
        rows[level].append(node)
    return tuple(tuple(row) for row in rows)


def iterate_items(
    levels: Levels, read_node: ReadNode, *, after: int = 0, through: int | None = None
) -> Iterator[Item]:
    """All segments with a sequence over `after` up to `through`, oldest first.

    Nodes that have none are not read.
    """
    for level in range(len(levels) - 1, -1, -1):
        for item in levels[level]:
            yield from _descend(item, level, read_node, (after, through))


def iterate_newest(levels: Levels, read_node: ReadNode, *, after: int = 0) -> Iterator[Item]:
    """All segments with a sequence over `after`, newest first."""
    for level, row in enumerate(levels):
        for item in reversed(row):
            yield from _descend_newest(item, level, read_node, after)


def _descend(
    item: Item, level: int, read_node: ReadNode, bounds: tuple[int, int | None]
) -> Iterator[Item]:
    after, through = bounds
    if item.last <= after or (through is not None and item.first > through):
        return
    if level == 0:
        yield item
        return
    for child in read_node(item, level):
        yield from _descend(child, level - 1, read_node, bounds)


def _descend_newest(item: Item, level: int, read_node: ReadNode, after: int) -> Iterator[Item]:
    if item.last <= after:
        return
    if level == 0:
        yield item
        return
    for child in reversed(read_node(item, level)):
        yield from _descend_newest(child, level - 1, read_node, after)


def cut_after(levels: Levels, sequence: int, read_node: ReadNode) -> tuple[Levels, Item | None]:
    """The levels without what is over `sequence`, and the segment that it cuts in two, if any."""
    rows: list[list[Item]] = [[] for _ in levels]
    split: Item | None = None

    def keep(item: Item, level: int) -> None:
        nonlocal split
        if item.last <= sequence:
            rows[level].append(item)
        elif item.first <= sequence:
            if level == 0:
                split = item
                return
            for child in read_node(item, level):
                keep(child, level - 1)

    for level in range(len(levels) - 1, -1, -1):
        for item in levels[level]:
            keep(item, level)
    return tuple(tuple(row) for row in rows), split


def drop_before(levels: Levels, sequence: int) -> Levels:
    """The levels without items that lie wholly before `sequence`."""
    return tuple(tuple(item for item in row if item.last >= sequence) for row in levels)


def read_levels(document: LevelsJson, *, what: str) -> Levels:
    """Levels from a head; `ManifestInvalidError` unless they follow each other."""
    rows = [
        tuple(read_item(one, level=level, what=what) for one in row)
        for level, row in enumerate(document)
    ]
    check_items([item for row in reversed(rows) for item in row], what=what)
    return tuple(rows)


def write_levels(levels: Levels) -> LevelsJson:
    """Levels as they stand in a head."""
    return tuple(tuple(write_item(item) for item in row) for row in levels)
