"""Where a page of new records is cut into segments."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.store.export import Novelty
from oplog.sync.batch import cut_records

pytestmark = pytest.mark.unit


def cut(most: int, *sizes: int) -> list[list[int]]:
    """Positions, from 1 on, of records of these sizes."""
    records = [Novelty(position, 1, size) for position, size in enumerate(sizes, 1)]
    return list(cut_records(records, most))


def test_segments_are_filled_and_not_exceeded() -> None:
    assert cut(10) == []
    assert cut(10, 4, 6) == [[1, 2]]
    assert cut(10, 4, 7) == [[1], [2]]
    assert cut(10, 4, 6, 1) == [[1, 2], [3]]
    assert cut(10, 0, 0, 0) == [[1, 2, 3]]


def test_a_larger_record_has_a_segment_of_its_own() -> None:
    assert cut(10, 50) == [[1]]
    assert cut(10, 3, 50, 3) == [[1], [2], [3]]
    assert cut(10, 50, 50) == [[1], [2]]
    assert cut(10, 10, 1) == [[1], [2]]


def test_entries_do_not_matter() -> None:
    assert list(cut_records([Novelty(1, 900, 1), Novelty(2, 900, 1)], 10)) == [[1, 2]]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 20))
def test_nothing_is_lost_and_no_cut_is_in_vain(sizes: list[int], most: int) -> None:
    segments = cut(most, *sizes)
    assert [position for segment in segments for position in segment] == [
        position for position, _ in enumerate(sizes, 1)
    ]
    weights = [[sizes[position - 1] for position in segment] for segment in segments]
    for weight in weights:
        assert len(weight) == 1 or sum(weight) <= most
    for before, after in pairwise(weights):
        assert sum(before) + after[0] > most
