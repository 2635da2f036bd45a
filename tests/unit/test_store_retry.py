"""How often a store is asked again, and how long in all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from oplog.archive.objectstore.store_retry import retry
from oplog.backoff import Backoff
from oplog.errors import StorageConfigError, StoreUnavailableError

pytestmark = pytest.mark.unit


class Work:
    """Fails so many times, each attempt taking so long, then returns the number of attempts."""

    def __init__(self, failures: int, *, seconds: float = 0.0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.attempts = 0
        self._failures = failures
        self._seconds = seconds

    def __call__(self) -> int:
        self.attempts += 1
        self.now += self._seconds
        if self.attempts <= self._failures:
            raise StoreUnavailableError(f"failure {self.attempts}", hint="wait")
        return self.attempts

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def backoff(self, *, draw: Callable[[], float] = lambda: 1.0, deadline: float) -> Backoff:
        return Backoff(
            deadline_seconds=deadline,
            first_seconds=1.0,
            longest_seconds=8.0,
            clock=lambda: self.now,
            sleep=self.sleep,
            draw=draw,
        )


def never(seconds: float) -> None:
    pytest.fail(f"slept {seconds} s")


def test_first_success_needs_no_pause() -> None:
    work = Work(0)
    assert retry(work, backoff=work.backoff(deadline=1)) == 1
    assert work.pauses == []


def test_pauses_double_up_to_the_longest() -> None:
    work = Work(6)
    assert retry(work, backoff=work.backoff(deadline=1000)) == 7
    assert work.pauses == [1, 2, 4, 8, 8, 8]


def test_pauses_are_drawn_from_the_whole_range() -> None:
    draws: Iterator[float] = iter([0.0, 0.5, 0.25])
    work = Work(3)
    retry(work, backoff=work.backoff(draw=lambda: next(draws), deadline=1000))
    assert work.pauses == [0, 1, 1]


def test_deadline_counts_work_and_pauses() -> None:
    work = Work(1000, seconds=3)
    with pytest.raises(StoreUnavailableError, match=r"failure 4 \(given up after 4 attempts in 19"):
        retry(work, backoff=work.backoff(deadline=20))
    # 3 + 1 + 3 + 2 + 3 + 4 + 3, and a pause of 8 would end after the deadline.
    assert work.now == 19


def test_no_attempt_begins_after_the_deadline() -> None:
    begun = []
    work = Work(1000, seconds=0.7)

    def timed() -> int:
        begun.append(work.now)
        return work()

    with pytest.raises(StoreUnavailableError) as raised:
        retry(timed, backoff=work.backoff(deadline=30))
    assert max(begun) < 30
    assert raised.value.hint == "wait"
    assert isinstance(raised.value.__cause__, StoreUnavailableError)


def test_what_cannot_be_cured_is_told_at_once() -> None:
    attempts = count(1)

    def refused() -> None:
        raise StorageConfigError(f"denied {next(attempts)}", hint="ask")

    with pytest.raises(StorageConfigError, match="denied 1"):
        retry(refused, backoff=Backoff(sleep=never))


def test_other_errors_pass() -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        retry(broken, backoff=Backoff(sleep=never))


def test_very_many_attempts_are_no_error() -> None:
    assert Backoff(draw=lambda: 1.0).pause_seconds(5000) == 5.0
