"""Running work again after a conflict.

Must not know what the work does. The hard thing is when to stop: pauses are capped and
jittered (an uncapped doubling once reached hours), and only errors that a fresh run can cure
are retried.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from oplog.errors import OplogError
from oplog.events import EventSink, WorkRetried, ignore_event

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5
RETRYABLE_STATES = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: Postgres asks for the transaction to be run again."""


def is_retryable(error: BaseException) -> bool:
    """Whether the same work, run again from its start, may succeed."""
    if isinstance(error, OplogError):
        return error.retryable
    if isinstance(error, DBAPIError):
        return getattr(error.orig, "sqlstate", None) in RETRYABLE_STATES
    return False


def draw_pause(attempt: int, *, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait before retry number `attempt` (from 0): full jitter under a cap."""
    longest: float = FIRST_PAUSE_SECONDS * 2 ** min(attempt, 16)
    return draw() * min(LONGEST_PAUSE_SECONDS, longest)


def run_work(
    sessions: Callable[[], Session],
    work: Callable[[Session], T],
    *,
    retries: int,
    sleep: Callable[[float], None] = time.sleep,
    on_event: EventSink = ignore_event,
) -> T:
    """`work(session)` committed; the last error when `retries` retries were not enough."""
    attempt = 0
    while True:
        try:
            with sessions() as session, session.begin():
                return work(session)
        except (OplogError, DBAPIError) as error:
            if attempt >= retries or not is_retryable(error):
                raise
            pause = draw_pause(attempt)
            on_event(WorkRetried(attempt + 1, pause, type(error).__name__))
        sleep(pause)
        attempt += 1


async def run_async_work(
    sessions: Callable[[], Any],
    work: Callable[[Any], Awaitable[T]],
    *,
    retries: int,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_event: EventSink = ignore_event,
) -> T:
    """`run_work` for async sessions; a cancellation during a pause ends it at once."""
    attempt = 0
    while True:
        try:
            async with sessions() as session, session.begin():
                return await work(session)
        except (OplogError, DBAPIError) as error:
            if attempt >= retries or not is_retryable(error):
                raise
            pause = draw_pause(attempt)
            on_event(WorkRetried(attempt + 1, pause, type(error).__name__))
        await sleep(pause)
        attempt += 1
