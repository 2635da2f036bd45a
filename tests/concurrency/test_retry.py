"""Running work again: which errors, how often, how long the pauses, and when to stop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from oplog.capture.retry import (
    BACKOFF,
    MOST_LOCKS,
    PATIENCE,
    Beginning,
    Course,
    run_async_work,
    run_work,
)
from oplog.errors import TicketConflictError
from oplog.events import WorkRetried

pytestmark = [pytest.mark.concurrency]


class OneSession(Session):
    """A session that touches no database."""


def make_beginning(prepared: list[tuple[str, ...]]) -> Beginning:
    return Beginning(
        claim=lambda session, wait_seconds: pytest.fail("there is no key"),
        prepare=lambda session, aggregates: prepared.append(aggregates),
        finish=lambda session: None,
        list_receipts=lambda session: [],
    )


PLAIN = make_beginning([])


def run(work: Callable[[Session], Any], *, course: Course[Any], sleep: Any) -> Any:
    return run_work(OneSession, work, course=course, beginning=PLAIN, sleep=sleep)


def conflict() -> TicketConflictError:
    return TicketConflictError("lost", hint="again")


def test_pauses_are_capped_and_jittered() -> None:
    longest = replace(BACKOFF, draw=lambda: 1.0)
    assert [longest.pause_seconds(n) for n in (1, 2, 3, 50, 10_000)] == [
        0.005,
        0.01,
        0.02,
        0.5,
        0.5,
    ]
    assert replace(BACKOFF, draw=lambda: 0.0).pause_seconds(9) == 0.0
    source = random.Random(1)
    drawn = [replace(BACKOFF, draw=source.random).pause_seconds(20) for _ in range(200)]
    assert len(set(drawn)) == 200
    assert max(drawn) <= 0.5
    assert min(drawn) < 0.05


def test_run_gives_up_after_its_retries() -> None:
    pauses: list[float] = []
    events: list[Any] = []
    calls: list[Session] = []

    def work(session: Session) -> None:
        calls.append(session)
        raise conflict()

    with pytest.raises(TicketConflictError, match="lost"):
        run(work, course=Course(3, keyed=False, on_event=events.append), sleep=pauses.append)
    assert len(calls) == 4
    assert len(set(map(id, calls))) == 4  # each attempt in a session of its own
    assert len(pauses) == 3
    assert events == [
        WorkRetried(n + 1, pause, "TicketConflictError") for n, pause in enumerate(pauses)
    ]


def test_run_returns_what_the_last_attempt_returned() -> None:
    answers: Iterator[str | Exception] = iter([conflict(), conflict(), "done"])

    def work(session: Session) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert run(work, course=Course(2, keyed=False), sleep=lambda _: None) == "done"


def test_after_several_conflicts_a_run_waits_in_line() -> None:
    prepared: list[tuple[str, ...]] = []
    calls: list[int] = []

    def work(session: Session) -> None:
        calls.append(1)
        raise TicketConflictError("lost", aggregates=[f"account/{len(calls) % 2}", "account/9"])

    with pytest.raises(TicketConflictError):
        run_work(
            OneSession,
            work,
            course=Course(PATIENCE + 1, keyed=False),
            beginning=make_beginning(prepared),
            sleep=lambda _: None,
        )
    last = f"account/{PATIENCE % 2}"
    assert prepared == [
        *[()] * PATIENCE,
        (last, "account/9"),
        ("account/0", "account/1", "account/9"),
    ]


def test_a_run_waits_in_line_for_a_bounded_number_of_aggregates() -> None:
    names = [f"account/{number:04}" for number in range(2 * MOST_LOCKS)]
    prepared: list[tuple[str, ...]] = []

    def work(session: Session) -> None:
        raise TicketConflictError("lost", aggregates=names[::-1])

    with pytest.raises(TicketConflictError):
        run_work(
            OneSession,
            work,
            course=Course(PATIENCE, keyed=False),
            beginning=make_beginning(prepared),
            sleep=lambda _: None,
        )
    assert prepared[-1] == tuple(names[:MOST_LOCKS])


@dataclass
class DriverError(Exception):
    """What a driver raises, with its SQLSTATE."""

    sqlstate: str


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("no"),
        KeyboardInterrupt(),
        IntegrityError("INSERT", None, DriverError("23505")),
        OperationalError("SELECT", None, DriverError("57014")),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_what_a_fresh_run_cannot_cure_passes_at_once(failure: BaseException) -> None:
    calls: list[int] = []

    def work(session: Session) -> None:
        calls.append(1)
        raise failure

    with pytest.raises(type(failure)) as caught:
        run(work, course=Course(5, keyed=False), sleep=lambda _: pytest.fail("it paused"))
    assert caught.value is failure
    assert calls == [1]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_what_postgres_asks_to_run_again_is_run_again(sqlstate: str) -> None:
    failures: list[Exception] = [OperationalError("UPDATE", None, DriverError(sqlstate))]

    def work(session: Session) -> int:
        while failures:
            raise failures.pop()
        return 1

    assert run(work, course=Course(1, keyed=False), sleep=lambda _: None) == 1


async def test_cancelling_ends_the_pause(database_url: sa.URL) -> None:
    engine = create_async_engine(database_url)
    pausing = asyncio.Event()

    async def pause(_: float) -> None:
        pausing.set()
        await asyncio.Event().wait()

    async def work(session: Any) -> None:
        await session.connection()
        raise conflict()

    running = asyncio.ensure_future(
        run_async_work(
            async_sessionmaker(engine),
            work,
            course=Course(20, keyed=False),
            beginning=PLAIN,
            sleep=pause,
        )
    )
    await pausing.wait()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await engine.dispose()
