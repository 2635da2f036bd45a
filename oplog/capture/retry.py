"""Running work again after conflicts, and after a COMMIT whose answer was lost.

Only errors that a fresh run can cure are retried, after pauses that are capped and jittered: an
uncapped doubling reaches hours. A lost COMMIT is such an error only under an idempotency key, which
lets one run of the work have its effect and shows which one it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from oplog.backoff import Backoff
from oplog.capture.sending import describe_loss
from oplog.errors import CommitOutcomeUnknownError, OplogError, TicketConflictError
from oplog.events import EventSink, WorkRetried, ignore_event
from oplog.postgres.sqlstate import LOCK_NOT_AVAILABLE, may_run_again, read_sqlstate
from oplog.receipt import Receipt

T = TypeVar("T")

BACKOFF = Backoff(first_seconds=0.005, longest_seconds=0.5)
"""Between two runs of the work. How many there are is said by `Course.retries` alone."""
RETRIES = 20
CLAIM_SECONDS = 10.0
"""How long a run waits for a session that it lost to let go of the key."""
PATIENCE = 3
"""Conflicts in a row after which a run waits in line rather than try its luck again."""
MOST_LOCKS = 256
"""Most aggregates that a run waits in line for. Runs over the same aggregates meet at the first
ones."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run asks of its transaction before the work, and after it.

    `claim(session, wait_seconds)` takes the run's idempotency key in a transaction of the
    session, `prepare(session, aggregates)` sees to it that the next transaction begins with the
    key, if there is one, and in line for the aggregates; it raises `KeyUsedError` inside the
    work. `finish(session)` does so where the work never came to the database.
    `list_receipts(session)` are those of the commit just made.
    """

    claim: Callable[[Session, float | None], list[Receipt]]
    prepare: Callable[[Session, tuple[str, ...]], None]
    finish: Callable[[Session], None]
    list_receipts: Callable[[Session], list[Receipt]]


class KeyUsedError(BaseException):
    """Somebody else had the key's effect meanwhile. Not for the work to handle."""

    def __init__(self, receipts: list[Receipt]) -> None:
        super().__init__("the idempotency key was used")
        self.receipts = receipts


def is_retryable(error: BaseException) -> bool:
    """Whether the same work, run again from its start, may succeed."""
    if isinstance(error, OplogError):
        return error.retryable
    return may_run_again(error)


@dataclass(slots=True)
class Course(Generic[T]):
    """One run: what happened so far, and what follows from it."""

    retries: int
    keyed: bool
    on_event: EventSink = ignore_event
    attempt: int = 0
    conflicts: int = 0
    contended: tuple[str, ...] = ()
    """Aggregates to wait for in the next attempt."""
    lost: CommitOutcomeUnknownError | None = None
    """The COMMIT whose answer is still owed."""
    values: list[T] = field(default_factory=list)
    """What the work returned whose COMMIT was lost."""
    receipts: list[Receipt] | None = None
    """Of the COMMIT that was answered."""

    @property
    def asks(self) -> bool:
        """The key is to be asked for apart: at first, and for a COMMIT that was lost."""
        return self.keyed and (self.attempt == 0 or self.lost is not None)

    def keep(self, value: T) -> None:
        """The work is done; its COMMIT may yet be lost."""
        self.values = [value]

    def done(self, receipts: list[Receipt]) -> None:
        """COMMIT was answered."""
        self.receipts = receipts

    def finish(self) -> T | list[Receipt]:
        """What the run returns: the work's value if that is known and not None."""
        if self.values and (self.values[0] is not None or not self.keyed):
            return self.values[0]
        return self.receipts or []

    def find_first(self, receipts: list[Receipt]) -> T | list[Receipt]:
        """What the run returns when its key was used: by itself if a COMMIT of its was lost."""
        if self.lost is None:
            self.values = []
        self.receipts = receipts
        return self.finish()

    def explain_end(self, cause: BaseException) -> None:
        """Raise what a cancellation must not hide: the work is done, or may be."""
        if isinstance(cause, Exception):
            return
        if self.receipts is not None:
            # Cancelled while the session was closed: COMMIT has been answered.
            raise describe_loss(cause, self.receipts, None) from cause
        if self.lost is not None:
            lost = describe_loss(cause, self.lost.receipts, None)
            lost.idempotency_key = self.lost.idempotency_key
            raise lost from cause

    def forget_loss(self) -> None:
        """The key is held and was not used: the lost COMMIT never happened, and never will."""
        self.lost = None
        self.values = []

    def decide(self, error: OplogError | DBAPIError) -> float:
        """Seconds to pause before the next attempt; raises if there is to be none."""
        if isinstance(error, CommitOutcomeUnknownError):
            if not self.keyed or error.interrupted:
                raise error
            self.lost = error
        elif self.lost is None:
            if not is_retryable(error):
                raise error
        elif read_sqlstate(error) == LOCK_NOT_AVAILABLE or (
            isinstance(error, OplogError) and not error.retryable
        ):
            # The lost session lives and holds the key: nobody can know yet.
            raise self.lost from error
        if self.attempt >= self.retries:
            # The database's state is what the application must learn, not the last mishap.
            if self.lost is not None and error is not self.lost:
                raise self.lost from error
            raise error
        self._note(error)
        self.attempt += 1
        pause = BACKOFF.pause_seconds(self.attempt)
        self.on_event(WorkRetried(self.attempt, pause, type(error).__name__))
        return pause

    def _note(self, error: OplogError | DBAPIError) -> None:
        if not isinstance(error, TicketConflictError):
            return
        self.conflicts += 1
        if self.conflicts >= PATIENCE and error.aggregates:
            contended = sorted({*self.contended, *error.aggregates})
            self.contended = tuple(contended[:MOST_LOCKS])


def run_work(
    sessions: Callable[[], Session],
    work: Callable[[Session], T],
    *,
    course: Course[T],
    beginning: Beginning,
    sleep: Callable[[float], None] = time.sleep,
) -> T | list[Receipt]:
    """`work(session)` committed; the last error when the retries were not enough."""
    while True:
        try:
            with sessions() as session:
                if course.asks and (first := _ask(course, beginning, session)):
                    return course.find_first(first)
                with session.begin():
                    beginning.prepare(session, course.contended)
                    course.keep(work(session))
                    beginning.finish(session)
                course.done(beginning.list_receipts(session))
            return course.finish()
        except KeyUsedError as used:
            return course.find_first(used.receipts)
        except (OplogError, DBAPIError) as error:
            pause = course.decide(error)
        except BaseException as cause:
            course.explain_end(cause)
            raise
        try:
            sleep(pause)
        except BaseException as cause:
            course.explain_end(cause)
            raise


async def run_async_work(
    sessions: Callable[[], Any],
    work: Callable[[Any], Awaitable[T]],
    *,
    course: Course[T],
    beginning: Beginning,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T | list[Receipt]:
    """`run_work` for async sessions; a cancellation during a pause ends it at once."""
    while True:
        try:
            async with sessions() as session:
                if course.asks and (
                    first := await session.run_sync(lambda s: _ask(course, beginning, s))
                ):
                    return course.find_first(first)
                async with session.begin():
                    beginning.prepare(session.sync_session, course.contended)
                    course.keep(await work(session))
                    await session.run_sync(beginning.finish)
                course.done(beginning.list_receipts(session.sync_session))
            return course.finish()
        except KeyUsedError as used:
            return course.find_first(used.receipts)
        except (OplogError, DBAPIError) as error:
            pause = course.decide(error)
        except BaseException as cause:
            course.explain_end(cause)
            raise
        try:
            await sleep(pause)
        except BaseException as cause:
            course.explain_end(cause)
            raise


def _ask(course: Course[T], beginning: Beginning, session: Session) -> list[Receipt]:
    """Receipts under the run's key, asked for before the work.

    In a transaction apart: the work's own begins with what the work asks of it, such as an
    isolation level, which a transaction that has begun does not take any more.
    """
    first = beginning.claim(session, None if course.lost is None else CLAIM_SECONDS)
    session.rollback()
    if not first:
        course.forget_loss()
    return first
