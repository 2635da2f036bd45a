"""The tree of segments, held against a plain list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oplog.archive.format import index
from oplog.archive.format.canonical_json import Document, Format, encode_document, read_document
from oplog.archive.format.index import (
    FANOUT,
    Item,
    Levels,
    LevelsJson,
    add_item,
    cut_after,
    decode_node,
    drop_before,
    encode_node,
    iterate_items,
    iterate_newest,
    read_levels,
    write_item,
    write_levels,
)
from oplog.archive.format.path import INDEX, LOG, name_content
from oplog.errors import ManifestInvalidError
from tests.archived import build_levels

pytestmark = pytest.mark.unit


class Nodes:
    """Objects of the index in memory, and which of them were read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.read: list[str] = []

    def put(self, path: str, data: bytes) -> None:
        # The same node may be put again, by whoever cuts and goes on; never another.
        assert self.objects.setdefault(path, data) == data
        self.objects[path] = data

    def get(self, item: Item, level: int) -> Sequence[Item]:
        self.read.append(item.path)
        return decode_node(self.objects[item.path], item, level=level)


def make_items(sizes: Sequence[int], *, first: int = 1) -> list[Item]:
    items = []
    for size in sizes:
        last = first + size - 1
        path = name_content(LOG, first, data=b"%d" % first)
        chain = sha256(b"%d" % last).digest()
        items.append(Item(path, first, last, first * 2, last * 2, first * 10, last * 10, 99, chain))
        first = last + 1
    return items


def check(levels: Levels, items: Sequence[Item], nodes: Nodes) -> None:
    assert list(iterate_items(levels, nodes.get)) == list(items)
    assert list(iterate_newest(levels, nodes.get)) == list(reversed(items))
    assert all(len(row) < FANOUT for row in levels)
    assert read_levels(write_levels(levels), what="it") == levels


@given(st.lists(st.integers(1, 5), max_size=600), st.data())
@settings(max_examples=15, deadline=None)
def test_the_tree_is_the_list(sizes: list[int], data: st.DataObject) -> None:
    nodes, items = Nodes(), make_items(sizes)
    levels = build_levels(items, nodes.put)
    check(levels, items, nodes)
    total = sum(sizes)
    after, through = (data.draw(st.integers(0, total + 2)) for _ in range(2))
    over = [item for item in items if item.last > after]
    assert list(iterate_items(levels, nodes.get, after=after)) == over
    assert list(iterate_newest(levels, nodes.get, after=after)) == over[::-1]
    between = [item for item in over if item.first <= through]
    assert list(iterate_items(levels, nodes.get, after=after, through=through)) == between


@given(st.integers(0, 600), st.data())
@settings(max_examples=15, deadline=None)
def test_a_cut_tree_is_the_cut_list_and_grows_on(count: int, data: st.DataObject) -> None:
    nodes, items = Nodes(), make_items([3] * count)
    place = data.draw(st.integers(0, 3 * count + 4))
    levels, split = cut_after(build_levels(items, nodes.put), place, nodes.get)
    kept = [item for item in items if item.last <= place]
    check(levels, kept, nodes)
    assert split == next((i for i in items if i.first <= place < i.last), None)
    more = make_items([2] * 40, first=kept[-1].last + 1 if kept else 1)
    for item in more:
        levels = add_item(levels, item, put=nodes.put)
    check(levels, [*kept, *more], nodes)


@given(st.integers(0, 600), st.data())
@settings(max_examples=15, deadline=None)
def test_dropping_the_oldest_keeps_every_later_one(count: int, data: st.DataObject) -> None:
    nodes, items = Nodes(), make_items([3] * count)
    place = data.draw(st.integers(0, 3 * count + 4))
    levels = drop_before(build_levels(items, nodes.put), place)
    found = list(iterate_items(levels, nodes.get))
    assert found == items[len(items) - len(found) :]
    assert [i for i in found if i.last >= place] == [i for i in items if i.last >= place]
    for item in (more := make_items([1] * 40, first=3 * count + 1)):
        levels = add_item(levels, item, put=nodes.put)
    assert list(iterate_items(levels, nodes.get)) == [*found, *more]


def test_an_item_goes_once_it_lies_wholly_before() -> None:
    nodes, items = Nodes(), make_items([3] * (FANOUT + 2))
    levels = build_levels(items, nodes.put)
    edge = FANOUT * 3
    # The node ends at `edge`, and a segment ends every three sequences after it.
    assert drop_before(levels, edge) == levels
    assert drop_before(levels, edge + 1) == (levels[0], ())
    assert drop_before(levels, edge + 3) == (levels[0], ())
    assert drop_before(levels, edge + 4) == (levels[0][1:], ())
    assert drop_before(levels, edge + 7) == ((), ())


def test_levels_may_be_none_at_all() -> None:
    item = make_items([1])[0]
    assert add_item((), item, put=Nodes().put) == ((item,),)


def test_a_node_has_the_lowest_and_the_highest_of_its_items() -> None:
    # Neither positions nor times need rise with the sequence.
    low, middle, high = make_items([1, 1, 1])
    places = [(30, 40, 300, 400), (10, 90, 100, 900), (50, 60, 500, 600)]
    items = [
        replace(
            item,
            first_position=place[0],
            last_position=place[1],
            first_recorded=place[2],
            last_recorded=place[3],
        )
        for item, place in zip((low, middle, high), places, strict=True)
    ]
    data, node_item = encode_node(items, level=0)
    assert (node_item.first_position, node_item.last_position) == (10, 90)
    assert (node_item.first_recorded, node_item.last_recorded) == (100, 900)
    assert decode_node(data, node_item, level=1) == items


def test_thousands_of_segments_take_a_few_nodes() -> None:
    nodes, items = Nodes(), make_items([1] * 4500)
    levels = build_levels(items, nodes.put)
    # 4500 = 1 * 16**3 + 1 * 16**2 + 9 * 16 + 4
    assert [len(row) for row in levels] == [4, 9, 1, 1]
    check(levels, items, nodes)
    nodes.read.clear()
    assert next(iterate_items(levels, nodes.get, after=2000)).first == 2001
    assert len(nodes.read) == 3
    nodes.read.clear()
    assert next(iterate_newest(levels, nodes.get)) == items[-1]
    assert next(iterate_items(levels, nodes.get, after=4480)) == items[4480]
    assert next(iterate_items(levels, nodes.get, through=1)) == items[0]
    assert len(nodes.read) == 1 + 3
    cut, split = cut_after(levels, 2100, nodes.get)
    assert (list(iterate_items(cut, nodes.get)), split) == (items[:2100], None)


def test_the_same_segments_give_the_same_nodes() -> None:
    nodes, items = Nodes(), make_items([2] * 300)
    levels = build_levels(items, nodes.put)
    again, _ = cut_after(levels, 200, nodes.get)
    for item in items[100:]:
        again = add_item(again, item, put=nodes.put)
    assert again == levels


def test_a_node_is_named_by_its_last_sequence() -> None:
    _, item = encode_node(make_items([2, 3]), level=0)
    assert item.path.startswith(f"{INDEX}/{5:016x}-")
    assert (item.first, item.last, item.size_bytes) == (1, 5, 198)


# -- what is refused ----------------------------------------------------------------------


def node(**given: Any) -> tuple[bytes, Item]:
    """A node in the right form that says something wrong, under its right name."""
    items = make_items([2] * 4)
    _, item = encode_node(items, level=0)
    document = {
        "format": 1,
        "level": 0,
        "items": [msgspec.to_builtins(write_item(one)) for one in items],
    } | given
    data = encode_document(document)
    return data, replace(item, path=name_content(INDEX, item.last, data=data))


ROWS = [msgspec.to_builtins(write_item(item)) for item in make_items([2] * 20)]


@pytest.mark.parametrize(
    "given_",
    [
        {"items": []},
        {"items": ROWS[:3]},
        {"items": ROWS[:5]},
        {"items": ROWS[:20]},
        {"items": [ROWS[0], *ROWS[2:5]]},
        {"items": [ROWS[0], ROWS[0], *ROWS[1:4]]},
        {"items": [ROWS[1], ROWS[0], *ROWS[2:4]]},
        {"items": [ROWS[0] | {"last": 3}, *ROWS[1:4]]},
        {"items": [ROWS[0] | {"last": 0}, *ROWS[1:4]]},
        {"items": [ROWS[0] | {"first_position": 1}, *ROWS[1:4]]},
        {"items": [*ROWS[:3], ROWS[3] | {"chain": "00" * 32}]},
        {"items": [*ROWS[:3], ROWS[3] | {"last": 9}]},
        {"items": [*ROWS[:3], ROWS[3] | {"adopted": 1}]},
        {"items": [*ROWS[:3], ROWS[3] | {"adopted": True}]},
        {"items": [*ROWS[:3], ROWS[3] | {"bytes": (1 << 63) - 1}]},
        {"items": [*ROWS[:3], ROWS[3] | {"path": ROWS[2]["path"]}]},
        {"items": [*ROWS[:3], ROWS[3] | {"path": "../" + ROWS[3]["path"]}]},
        {"items": [*ROWS[:3], ROWS[3] | {"path": "x" * 1000}]},
        {"items": [*ROWS[:3], ROWS[3] | {"new": 1}]},
        {"items": [*ROWS[:3], 7]},
        {"items": "x"},
        {"level": 1},
        {"level": -1},
        {"format": 2},
        {"new": 1},
    ],
    ids=str,
)
def test_a_node_that_is_not_what_names_it_is_refused(given_: dict[str, Any]) -> None:
    good, item = node()
    assert decode_node(good, item, level=1) == make_items([2] * 4)
    data, item = node(**given_)
    with pytest.raises(ManifestInvalidError):
        decode_node(data, item, level=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda item: replace(item, first=2),
        lambda item: replace(item, last=9),
        lambda item: replace(item, first_position=1),
        lambda item: replace(item, last_position=99),
        lambda item: replace(item, first_recorded=1),
        lambda item: replace(item, last_recorded=1),
        lambda item: replace(item, size_bytes=1),
        lambda item: replace(item, chain=bytes(32)),
        lambda item: replace(item, adopted=True),
        lambda item: replace(item, path=name_content(INDEX, 8, data=b"")),
    ],
)
def test_everything_an_item_claims_is_held_against_its_node(
    change: Callable[[Item], Item],
) -> None:
    data, item = node()
    with pytest.raises(ManifestInvalidError):
        decode_node(data, change(item), level=1)


def test_a_node_of_another_level_is_refused() -> None:
    data, item = node()
    for level in (0, 2, 3):
        with pytest.raises(ManifestInvalidError, match="it holds level 0"):
            decode_node(data, item, level=level)


@given(st.data())
@settings(deadline=None)
def test_an_altered_node_is_refused(data: st.DataObject) -> None:
    good, item = node()
    bytes_ = bytearray(good)
    bytes_[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(good) - 1))
    for altered in (bytes(bytes_), good[:cut], good + b" ", data.draw(st.binary(max_size=99))):
        with pytest.raises(ManifestInvalidError):
            decode_node(altered, item, level=1)


def test_a_node_too_large_is_refused() -> None:
    _, item = node()
    with pytest.raises(ManifestInvalidError, match="over the limit"):
        decode_node(b"{" * (index.MAX_NODE_BYTES + 1), item, level=1)


class Levelled(Document, frozen=True, tag=1, tag_field="format"):
    """What a head has of levels."""

    segments: LevelsJson


LEVELS = {1: Format(Levelled, lambda document, what: read_levels(document.segments, what=what))}


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [{}],
        [1],
        [[]] * 13,
        [[ROWS[0], ROWS[2]]],
        [[ROWS[0], ROWS[1] | {"last": 2}, ROWS[1]]],
        [[ROWS[1]], [ROWS[0]]],
        [ROWS[:4] * 10],
        [[ROWS[0] | {"first": 0}]],
        [[ROWS[0] | {"bytes": 0}]],
    ],
    ids=lambda document: str(document)[:60],
)
def test_levels_that_are_none_are_refused(document: Any) -> None:
    with pytest.raises(ManifestInvalidError):
        read_document(
            encode_document({"format": 1, "segments": document}), LEVELS, most=1 << 20, what="it"
        )
