"""Which partitions go as a whole, by the archive's index, and what is counted in them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format.index import Item, make_item
from oplog.store.partition_store import Contents, Partition
from oplog.store.rows import Part
from oplog.upkeep.prune_batch import Batch
from oplog.upkeep.prune_plan import Stretch, StretchTally, plan_stretches
from tests.archived import encode_records, make_record, make_records

pytestmark = pytest.mark.unit

PARTITIONS = [Partition(n, n + 9, f"record_{n}", f"part_{n}", f"token_{n}") for n in (0, 10, 20)]
LATER = 1 << 60


def make_items(*segments: tuple[int, int]) -> list[Item]:
    """Segments of two records each, at the lowest and highest of these positions."""
    items: list[Item] = []
    for place, (low, high) in enumerate(segments):
        records = [make_records(1, first=position)[0] for position in (low, high)]
        data, header = encode_records(records, first=2 * place + 1)
        items.append(make_item(header, data))
    return items


def plan(items: list[Item], **given: int) -> list[tuple[list[int], int]]:
    settings = {"through": 1000, "cutoff": LATER, "position": 0} | given
    found = plan_stretches(items, PARTITIONS, **settings)
    return [([one.first for one in stretch.partitions], stretch.through) for stretch in found]


def test_each_goes_with_the_last_segment_that_reaches_into_it() -> None:
    items = make_items((1, 4), (5, 9), (10, 12), (13, 19), (20, 21))
    assert plan(items) == [([0], 4), ([10], 8)]


def test_the_one_that_appending_needs_stays() -> None:
    assert plan(make_items((1, 8))) == []
    assert plan(make_items((1, 9))) == [([0], 2)]
    # Later positions went before, or come later in the archive.
    assert plan(make_items((1, 8)), position=9) == [([0], 2)]
    assert plan(make_items((1, 8), (11, 12))) == [([0], 2)]
    assert plan([]) == []
    assert plan([], position=30) == []


def test_those_that_end_together_go_together() -> None:
    assert plan(make_items((1, 19), (20, 25))) == [([0, 10], 2)]
    # A transaction that took long holds back those before which it was begun.
    assert plan(make_items((1, 8), (10, 19), (9, 20))) == [([0, 10], 6)]
    assert plan(make_items((1, 12), (9, 20), (21, 22), (19, 23))) == [([0], 4), ([10], 8)]


def test_what_is_younger_or_not_published_ends_it() -> None:
    items = make_items((1, 9), (10, 19), (20, 29))
    assert plan(items) == [([0], 2), ([10], 4), ([20], 6)]
    assert plan(items, through=5) == [([0], 2), ([10], 4)]
    assert plan(items, through=3) == [([0], 2)]
    assert plan(items, cutoff=items[1].last_recorded) == [([0], 2)]
    assert plan(items, cutoff=items[1].last_recorded + 1) == [([0], 2), ([10], 4)]
    assert plan(items, cutoff=items[0].last_recorded) == []


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=8))
def test_whatever_is_planned(segments: list[tuple[int, int]]) -> None:
    items = make_items(*((low, low + width) for low, width in segments))
    stretches = plan_stretches(items, PARTITIONS, through=1000, cutoff=LATER, position=0)
    ends = [stretch.through for stretch in stretches]
    assert ends == sorted(set(ends))
    planned = [one for stretch in stretches for one in stretch.partitions]
    assert planned == sorted(set(planned))
    for stretch in stretches:
        for one in stretch.partitions:
            after = [item for item in items if item.first > stretch.through]
            assert all(i.last_position < one.first or i.first_position > one.last for i in after)
            assert any(i.last_position >= one.last for i in items)


def test_what_is_counted() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    pairs = (("actor", "ada"), ("reason", "x"))
    records = [
        make_record(3, heads, metadata=pairs, idempotency_key="k"),
        make_record(12, heads, parts=(Part(0, b"a"), Part(0, b"b"), Part(0, b"c"))),
        make_record(5, heads, idempotency_key="l"),
        make_record(25, heads, idempotency_key="m"),
        make_record(26, heads, aggregates=("adopted/x", "y"), metadata=(("adopted_rows", "3"),)),
    ]
    tally = StretchTally(Stretch(PARTITIONS[:2], 5))
    tally.add(Batch(0, records[:2]))
    tally.add(Batch(2, records[2:]))
    assert tally.contents == {
        PARTITIONS[0]: Contents(records=2, parts=0, tokens=2),
        PARTITIONS[1]: Contents(records=1, parts=2, tokens=0),
    }
    assert list(tally.others) == [25, 26]
    assert list(tally.kept) == [3, 5, 25, 26]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, False),
        ({"idempotency_key": "k"}, True),
        ({"aggregates": ("a", "adopted/x"), "metadata": (("adopted_rows", "3"),)}, True),
        ({"aggregates": ("adopted/x",), "metadata": (("retired", "x"),)}, True),
        ({"aggregates": ("adopted/x",), "metadata": (("adopted", "x"),)}, False),
        ({"aggregates": ("a",), "metadata": (("adopted_rows", "3"),)}, False),
    ],
)
def test_what_is_kept(change: dict[str, Any], kept: bool) -> None:
    record = make_record(1, {}, **change)
    assert Batch(0, [record]).list_kept() == ([record] if kept else [])
