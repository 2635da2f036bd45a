"""Ids that grow with time, and are unique whatever the clock says."""

from __future__ import annotations

import time
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.ordered_id import draw_ordered_id

pytestmark = pytest.mark.unit


def draw(nanoseconds: int, bits: int) -> UUID:
    return draw_ordered_id(lambda: nanoseconds, lambda _: bits)


def test_the_example_of_the_standard() -> None:
    """RFC 9562, appendix A.6: the time is 2022-02-22 14:22:22 -5:00."""
    drawn = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert draw(1645557742000 * 1_000_000, drawn) == UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


@given(st.integers(0, 2**80), st.integers(0, 2**74 - 1))
def test_version_and_variant(nanoseconds: int, bits: int) -> None:
    found = draw(nanoseconds, bits)
    assert (found.version, found.variant) == (7, RFC_4122)


@given(st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_other_bits_give_another_id(one: int, other: int) -> None:
    assert (draw(5, one) == draw(5, other)) == (one == other)


def test_a_later_millisecond_sorts_later() -> None:
    assert draw(7_000_000, 2**74 - 1) < draw(8_000_000, 0)


def test_it_is_now_and_never_twice() -> None:
    before = time.time_ns() // 1_000_000
    drawn = [draw_ordered_id() for _ in range(1000)]
    assert before <= drawn[0].int >> 80 <= time.time_ns() // 1_000_000
    assert len(set(drawn)) == 1000
