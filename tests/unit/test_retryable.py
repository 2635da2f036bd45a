"""Which errors a fresh run can cure, when a run ends, and what it says then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self
from uuid import UUID

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from oplog.capture.retry import (
    BACKOFF,
    CLAIM_SECONDS,
    PATIENCE,
    Beginning,
    Course,
    KeyUsedError,
    is_retryable,
    run_async_work,
    run_work,
)
from oplog.errors import (
    CommitCancelledError,
    CommitOutcomeUnknownError,
    OplogError,
    TicketConflictError,
)
from oplog.events import WorkRetried
from oplog.receipt import Receipt

pytestmark = pytest.mark.unit

RECEIPTS = [Receipt(UUID(int=1), "a", 1, b"h")]


class RefusedError(Exception):
    """A driver's error."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def failed(sqlstate: str | None) -> DBAPIError:
    return OperationalError("SELECT", None, RefusedError(sqlstate))


def conflict(*aggregates: str) -> TicketConflictError:
    error = TicketConflictError("lost", hint="again")
    error.aggregates = aggregates
    return error


def lost() -> CommitOutcomeUnknownError:
    return CommitOutcomeUnknownError("unknown", hint="resolve")


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_what_postgres_asks_to_run_again_is_retryable(sqlstate: str) -> None:
    assert is_retryable(failed(sqlstate)) is True


@pytest.mark.parametrize("sqlstate", ["23505", "40002", "57014", None])
def test_other_errors_of_the_database_are_not(sqlstate: str | None) -> None:
    assert is_retryable(failed(sqlstate)) is False


def test_an_error_without_a_state_is_not() -> None:
    assert is_retryable(OperationalError("SELECT", None, Exception("gone"))) is False
    assert is_retryable(ValueError("40001")) is False
    assert is_retryable(RefusedError("40001")) is False
    # An error of somebody else's that happens to look like SQLAlchemy's.
    foreign = ValueError()
    foreign.orig = RefusedError("40001")  # type: ignore[attr-defined]
    assert is_retryable(foreign) is False


@pytest.mark.parametrize("retryable", [True, False])
def test_our_own_errors_say_it_themselves(retryable: bool) -> None:
    error = OplogError("message", hint="hint")
    error.retryable = retryable
    assert is_retryable(error) is retryable


def test_pauses_double_up_to_half_a_second() -> None:
    half = replace(BACKOFF, draw=lambda: 0.5)
    pauses = [half.pause_seconds(failures) for failures in range(1, 40)]
    assert pauses[:4] == [0.0025, 0.005, 0.01, 0.02]
    assert max(pauses) == 0.25


# -- what follows from an error -----------------------------------------------------------


def make(*, retries: int = 5, keyed: bool = True, on_event: Callable[..., None] = print) -> Any:
    return Course[Any](retries, keyed, on_event)


def test_a_retry_is_counted_and_told() -> None:
    events: list[Any] = []
    course = make(on_event=events.append)
    pauses = [course.decide(conflict()), course.decide(failed("40001"))]
    assert course.attempt == 2
    assert events == [
        WorkRetried(1, pauses[0], "TicketConflictError"),
        WorkRetried(2, pauses[1], "OperationalError"),
    ]
    assert all(0 <= pause <= 0.01 for pause in pauses)


def test_retries_are_used_up() -> None:
    course = make(retries=2)
    for _ in range(2):
        course.decide(conflict())
    error = conflict()
    with pytest.raises(TicketConflictError) as caught:
        course.decide(error)
    assert caught.value is error


@pytest.mark.parametrize("keyed", [True, False])
def test_what_a_fresh_run_cannot_cure_ends_it(keyed: bool) -> None:
    course = make(keyed=keyed)
    error = failed("23505")
    with pytest.raises(OperationalError) as caught:
        course.decide(error)
    assert caught.value is error


def test_a_lost_commit_is_run_again_only_under_a_key() -> None:
    error = lost()
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        make(keyed=False).decide(error)
    assert caught.value is error
    course = make()
    course.decide(error)
    assert course.lost is error


def test_a_run_that_was_interrupted_is_not_run_again() -> None:
    with pytest.raises(CommitOutcomeUnknownError):
        make().decide(CommitCancelledError("unknown", hint="resolve"))


def test_a_loss_is_what_the_application_learns_when_retries_are_used_up() -> None:
    course = make(retries=1)
    first, last = lost(), conflict()
    course.decide(first)
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.decide(last)
    assert caught.value is first
    assert caught.value.__cause__ is last
    again = lost()
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.decide(again)
    assert caught.value is again
    assert caught.value.__cause__ is None


def test_while_the_lost_session_holds_the_key_nobody_can_know() -> None:
    course = make()
    first, late = lost(), failed("55P03")
    course.decide(first)
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.decide(late)
    assert caught.value is first
    assert caught.value.__cause__ is late
    course, final = make(), OplogError("final", hint="h")
    course.decide(first)
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.decide(final)
    assert caught.value is first
    assert caught.value.__cause__ is final
    course = make()
    course.decide(failed("55P03"))
    assert course.attempt == 1


def test_after_a_loss_even_a_broken_connection_is_tried_again() -> None:
    course = make()
    course.decide(lost())
    course.decide(failed("08006"))
    course.decide(conflict())
    assert course.attempt == 3


def test_after_some_conflicts_a_run_waits_in_line() -> None:
    course = make(retries=9)
    for _ in range(PATIENCE - 1):
        course.decide(conflict("b"))
    assert course.contended == ()
    course.decide(failed("40001"))
    assert course.contended == ()
    course.decide(conflict("b", "a"))
    assert course.contended == ("a", "b")
    course.decide(conflict(*"zyxcwvu"))
    course.decide(conflict())
    assert course.contended == tuple("abcuvwxyz")


# -- what a run returns -------------------------------------------------------------------


def finish(course: Any, *values: Any) -> Any:
    """What a run returns whose work returned these, one after the other, and was committed."""
    for value in values:
        course.keep(value)
    course.done(RECEIPTS)
    return course.finish()


def test_a_run_returns_what_its_work_returned() -> None:
    for keyed in (True, False):
        assert finish(make(keyed=keyed), 7, 8) == 8
    assert finish(make(keyed=False), None) is None
    assert finish(make(), None) == RECEIPTS
    assert finish(make()) == RECEIPTS
    assert make().finish() == []


def test_a_used_key_gives_the_value_only_of_this_runs_own_loss() -> None:
    course = make()
    course.keep(7)
    assert course.find_first(RECEIPTS) == RECEIPTS
    course.keep(7)
    course.decide(lost())
    assert course.find_first(RECEIPTS) == 7
    course.forget_loss()
    assert course.lost is None
    assert course.values == []
    assert course.find_first(RECEIPTS) == RECEIPTS


def test_a_cancellation_does_not_hide_what_is_done_or_may_be() -> None:
    course = make()
    course.explain_end(ValueError())
    cancelled = asyncio.CancelledError()
    course.explain_end(cancelled)
    first = CommitOutcomeUnknownError("lost", receipts=RECEIPTS, idempotency_key="k")
    course.decide(first)
    course.explain_end(ValueError())
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.explain_end(cancelled)
    assert isinstance(caught.value, asyncio.CancelledError)
    assert (caught.value.receipts, caught.value.idempotency_key) == (RECEIPTS, "k")
    assert caught.value.__cause__ is cancelled
    other = [Receipt(UUID(int=2), "b", 1, b"h")]
    course.done(other)
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        course.explain_end(cancelled)
    assert caught.value.receipts == other
    assert caught.value.__cause__ is cancelled


# -- runs ---------------------------------------------------------------------------------


class OneSession(Session):
    """A session that touches no database."""

    rolled_back = 0
    answers: ClassVar[list[BaseException]] = []
    """What its COMMITs raise."""

    def rollback(self) -> None:
        self.rolled_back += 1

    @contextmanager
    def begin(self) -> Iterator[Any]:  # type: ignore[override]
        yield self
        if self.answers:
            raise self.answers.pop()


class AsyncSession:
    """An async session over one that touches no database."""

    def __init__(self) -> None:
        self.sync_session = OneSession()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        with self.sync_session.begin():
            yield self

    async def run_sync(self, work: Callable[[Any], Any]) -> Any:
        return work(self.sync_session)


class Transactions:
    """Answers of a database to `claim`, and what was asked of it."""

    def __init__(self, *firsts: list[Receipt]) -> None:
        self.firsts = list(firsts)
        self.claimed: list[float | None] = []
        self.prepared: list[tuple[str, ...]] = []
        self.finished = 0
        self.pauses: list[float] = []
        self.used = False
        self.end: BaseException | None = None
        self.beginning = Beginning(self.claim, self.prepare, self.finish, self.list_receipts)

    def claim(self, session: Any, wait_seconds: float | None) -> list[Receipt]:
        assert isinstance(session, OneSession)
        self.session = session
        self.claimed.append(wait_seconds)
        return self.firsts.pop(0) if self.firsts else []

    def prepare(self, session: Any, aggregates: tuple[str, ...]) -> None:
        assert isinstance(session, Session)
        self.prepared.append(aggregates)

    def finish(self, session: Any) -> None:
        assert isinstance(session, Session)
        self.finished += 1
        if self.used:
            raise KeyUsedError(RECEIPTS)

    def list_receipts(self, session: Any) -> list[Receipt]:
        assert isinstance(session, Session)
        return RECEIPTS

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        if self.end is not None:
            raise self.end


Run = Callable[[Any, Any, Transactions], Any]


async def run_sync(work: Any, course: Any, at: Transactions) -> Any:
    return run_work(OneSession, work, course=course, beginning=at.beginning, sleep=at.sleep)


async def run_async(work: Any, course: Any, at: Transactions) -> Any:
    async def asynchronous(session: Any) -> Any:
        return work(session)

    async def sleep(pause: float) -> None:
        at.sleep(pause)

    return await run_async_work(
        AsyncSession, asynchronous, course=course, beginning=at.beginning, sleep=sleep
    )


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield request.param
    OneSession.answers.clear()


class Failing:
    """Work that fails with these errors first, then says how often it ran."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.runs = 0

    def __call__(self, session: object) -> int:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.runs


async def test_work_runs_until_it_succeeds(run: Run) -> None:
    at = Transactions()
    assert await run(Failing(conflict(), conflict()), make(keyed=False), at) == 3
    assert len(at.pauses) == 2
    assert (at.claimed, at.prepared, at.finished) == ([], [(), (), ()], 1)


async def test_work_ends_with_its_retries(run: Run) -> None:
    work = Failing(*[conflict() for _ in range(9)])
    with pytest.raises(TicketConflictError):
        await run(work, make(retries=2), Transactions())
    assert work.runs == 3


async def test_other_errors_pass_through(run: Run) -> None:
    with pytest.raises(ValueError, match="mine"):
        await run(Failing(ValueError("mine")), make(), Transactions())


async def test_a_used_key_keeps_the_work_from_running(run: Run) -> None:
    at, work = Transactions(RECEIPTS), Failing()
    assert await run(work, make(), at) == RECEIPTS
    assert (work.runs, at.claimed, at.prepared) == (0, [None], [])


async def test_a_key_that_was_used_meanwhile_gives_its_receipts(run: Run) -> None:
    at = Transactions()
    at.used = True
    assert await run(Failing(), make(), at) == RECEIPTS


async def test_a_key_that_was_not_used_lets_it_run(run: Run) -> None:
    at = Transactions()
    assert await run(Failing(), make(), at) == 1
    assert at.session.rolled_back == 1
    assert await run(lambda _session: None, make(), at) == RECEIPTS
    assert at.claimed == [None, None]


async def test_after_a_loss_the_key_is_waited_for(run: Run) -> None:
    at, course = Transactions([], []), make()
    assert await run(Failing(lost()), course, at) == 2
    assert at.claimed == [None, CLAIM_SECONDS]
    assert course.lost is None


async def test_the_value_of_a_lost_commit_that_happened_is_returned(run: Run) -> None:
    OneSession.answers.append(lost())
    work = Failing()
    assert await run(work, make(), Transactions([], RECEIPTS)) == 1
    assert work.runs == 1


async def test_contended_aggregates_are_waited_for(run: Run) -> None:
    at = Transactions()
    assert await run(Failing(*[conflict("a") for _ in range(PATIENCE)]), make(), at) == PATIENCE + 1
    assert at.prepared == [*[()] * PATIENCE, ("a",)]


async def test_a_cancellation_in_a_pause_says_what_is_owed(run: Run) -> None:
    at = Transactions()
    at.end = asyncio.CancelledError()
    with pytest.raises(CommitOutcomeUnknownError):
        await run(Failing(lost()), make(), at)
    with pytest.raises(asyncio.CancelledError) as caught:
        await run(Failing(conflict()), make(), at)
    assert not isinstance(caught.value, CommitOutcomeUnknownError)


async def test_a_cancellation_in_the_work_says_what_is_owed(run: Run) -> None:
    course = make(keyed=False)
    course.lost = lost()
    with pytest.raises(CommitOutcomeUnknownError):
        await run(Failing(asyncio.CancelledError()), course, Transactions())
    with pytest.raises(asyncio.CancelledError) as caught:
        await run(Failing(asyncio.CancelledError()), make(), Transactions())
    assert not isinstance(caught.value, CommitOutcomeUnknownError)


def test_a_key_is_asked_for_apart_at_first_and_for_a_lost_commit_only() -> None:
    assert not make(keyed=False).asks
    course = make()
    asked = [course.asks]
    course.attempt = 1
    asked.append(course.asks)
    course.lost = lost()
    asked.append(course.asks)
    assert asked == [True, False, True]
