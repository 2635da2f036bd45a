"""How records are cut into the transactions of a follower."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.recovery.follow import cut_batches
from oplog.store import SequencedPage, StoredRecord
from oplog.store.rows import Part
from tests.archived import make_record

pytestmark = pytest.mark.unit


def make_pages(sizes: Sequence[tuple[int, int]], *, page: int) -> list[SequencedPage]:
    """Records by their numbers of entries and of sealed bytes, from sequence 11 on."""
    heads: dict[str, tuple[int, bytes]] = {}
    records = [
        make_record(
            position,
            heads,
            aggregates=[f"a/{n:03}" for n in range(entries)],
            parts=(Part(0, bytes(size // 2)), Part(0, bytes(size - size // 2))),
        )
        for position, (entries, size) in enumerate(sizes, 1)
    ]
    return [
        SequencedPage(11 + start, records[start : start + page])
        for start in range(0, len(records), page)
    ]


def measure(records: Sequence[StoredRecord]) -> tuple[int, int]:
    entries = sum(len(record.aggregates) for record in records)
    return entries, sum(record.sealed_bytes for record in records)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 90)), max_size=12),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 200),
)
def test_batches_are_the_same_records_and_no_larger_than_need_be(
    sizes: list[tuple[int, int]], page: int, most: int, most_bytes: int
) -> None:
    pages = make_pages(sizes, page=page)
    batches = list(cut_batches(pages, most=most, most_bytes=most_bytes))
    records = [record for one in pages for record in one.records]
    assert [record for batch in batches for record in batch.records] == records
    reached = 11
    for number, batch in enumerate(batches, 1):
        assert batch.first == reached
        reached += len(batch.records)
        entries, size = measure(batch.records)
        if number < len(batches):
            assert entries >= most or size >= most_bytes
        # What is too much came with the last record.
        entries, size = measure(batch.records[:-1])
        assert entries < most
        assert size < most_bytes
