"""Reading ahead: order, how much at once, and what happens to errors and to the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from oplog.archive.read_ahead import read_ahead

pytestmark = pytest.mark.unit

DEADLINE_SECONDS = 30.0


def test_results_come_in_the_order_of_the_jobs() -> None:
    # The first job ends last.
    done = [threading.Event() for _ in range(4)]

    def work(number: int) -> int:
        if number < 3:
            assert done[number + 1].wait(DEADLINE_SECONDS)
        done[number].set()
        return number * 10

    assert list(read_ahead(range(4), work, threads=4)) == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_no_more_is_begun_than_is_allowed() -> None:
    begun: list[int] = []
    found = read_ahead(range(100), begun.append, threads=2, ahead=3)
    for number in range(50):
        assert next(found)[0] == number
        assert len(begun) <= number + 4
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 54


def test_jobs_are_begun_while_the_caller_works() -> None:
    begun = [threading.Event() for _ in range(3)]
    found = read_ahead(range(3), lambda number: begun[number].set(), threads=2)
    next(found)
    assert all(one.wait(DEADLINE_SECONDS) for one in begun)
    assert [number for number, _ in found] == [1, 2]


def test_sizes_are_limited_together() -> None:
    held: list[int] = []
    lock = threading.Lock()
    most = 0

    def work(size: int) -> int:
        nonlocal most
        with lock:
            held.append(size)
            most = max(most, sum(held))
        return size

    sizes = [3, 3, 3, 8, 1, 1, 20, 2]
    for size, found in read_ahead(
        sizes, work, threads=4, ahead=7, most_bytes=9, measure=lambda size: size
    ):
        assert size == found
        with lock:
            held.remove(size)
    # The caller gives back what it holds before more is begun: one too large comes alone.
    assert most <= 20


def test_an_error_is_raised_in_the_place_of_its_job() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise KeyError(number)
        return number

    found = read_ahead(range(5), work, threads=4)
    assert [next(found), next(found)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError, match="2"):
        next(found)


def test_what_is_not_asked_for_is_not_begun() -> None:
    gate = threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number:
            assert gate.wait(DEADLINE_SECONDS)

    found = read_ahead(range(50), work, threads=1, ahead=40)
    next(found)
    threading.Timer(0.01, gate.set).start()
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2


def test_jobs_are_taken_by_the_callers_thread_alone() -> None:
    takers = set()

    def list_jobs() -> Iterator[int]:
        for number in range(20):
            takers.add(threading.get_ident())
            yield number

    assert len(list(read_ahead(list_jobs(), str, threads=3))) == 20
    assert takers == {threading.get_ident()}


def test_no_jobs_need_no_threads() -> None:
    before = threading.active_count()
    assert list(read_ahead([], str, threads=4)) == []
    assert threading.active_count() == before
