"""Pauses between attempts: their lengths, their jitter, and when there are no more."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oplog.backoff import Backoff

pytestmark = pytest.mark.unit

FULL = Backoff(draw=lambda: 1.0, deadline_seconds=math.inf)


class Clock:
    """Goes on by what is slept, and by what each attempt takes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_pauses_double_up_to_the_longest() -> None:
    pauses = replace(FULL, first_seconds=1.0, longest_seconds=8.0).begin()
    assert list(islice(pauses, 6)) == [1, 2, 4, 8, 8, 8]
    assert pauses.failures == 6


def test_very_many_failures_are_no_error() -> None:
    assert FULL.pause_seconds(5000) == 5.0


@pytest.mark.parametrize(
    ("jitter", "draw", "expected"),
    [(1.0, 0.0, 0.0), (1.0, 0.25, 1.0), (0.5, 0.0, 2.0), (0.5, 0.5, 3.0), (0.0, 0.7, 4.0)],
)
def test_jitter_is_the_share_that_is_drawn(jitter: float, draw: float, expected: float) -> None:
    backoff = Backoff(first_seconds=4.0, longest_seconds=4.0, jitter=jitter, draw=lambda: draw)
    assert backoff.pause_seconds(1) == expected


def test_pauses_are_drawn_anew_each_time() -> None:
    backoff = Backoff(first_seconds=1.0, longest_seconds=1.0)
    assert len({backoff.pause_seconds(1) for _ in range(100)}) > 90


def test_no_pause_ends_after_the_deadline() -> None:
    clock = Clock()
    backoff = replace(FULL, first_seconds=1.0, deadline_seconds=4.0, clock=clock)
    pauses = backoff.begin()
    assert next(pauses) == 1
    clock.now += 1.5
    assert next(pauses) == 2
    clock.now += 2.0
    assert next(pauses, None) is None
    assert (pauses.failures, pauses.spent_seconds) == (3, 3.5)


def test_the_last_pause_may_be_cut_at_the_deadline() -> None:
    clock = Clock()
    backoff = replace(FULL, first_seconds=1.0, deadline_seconds=4.0, cut_last=True, clock=clock)
    pauses = backoff.begin()
    for expected in (1, 2, 1):
        pause = next(pauses)
        assert pause == expected
        clock.sleep(pause)
    assert next(pauses, None) is None


def test_each_piece_of_work_counts_for_itself() -> None:
    first, second = FULL.begin(), FULL.begin()
    next(first)
    next(first)
    assert next(second) == 0.1


@given(
    first=st.floats(0.001, 10),
    longest=st.floats(0.001, 100),
    jitter=st.floats(0, 1),
    deadline=st.floats(0, 200),
    cut_last=st.booleans(),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    works=st.lists(st.floats(0, 20), min_size=1, max_size=20),
)
def test_every_course_of_failures(
    *,
    first: float,
    longest: float,
    jitter: float,
    deadline: float,
    cut_last: bool,
    draws: list[float],
    works: list[float],
) -> None:
    """No pause is longer than the longest, or than is left; and what gives up had to."""
    assume(first <= longest)
    clock = Clock()
    took, drawn = iter(works), iter(draws * len(works))
    backoff = Backoff(
        first_seconds=first,
        longest_seconds=longest,
        jitter=jitter,
        deadline_seconds=deadline,
        cut_last=cut_last,
        clock=clock,
        sleep=clock.sleep,
        draw=lambda: next(drawn),
    )
    pauses = backoff.begin()
    end = clock.now + deadline
    slack = 1e-9
    for failed, work in enumerate(took, 1):
        clock.now += work
        pause = next(pauses, None)
        limit = min(longest, first * 2 ** (failed - 1))
        left = end - clock.now
        if pause is None:
            assert left <= (slack if cut_last else limit + slack)
            break
        assert 0 <= pause <= min(limit, left) + slack
        if not cut_last:
            assert pause >= limit * (1 - jitter) - slack
        backoff.sleep(pause)
    assert pauses.failures <= len(works)
