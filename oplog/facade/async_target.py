"""Asynchronous forms of calls that wait: the same work, inside SQLAlchemy's `run_sync`.

What is given is an AsyncConnection, an AsyncSession or its scope, an AsyncEngine, or None for an
archive alone, which is read in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from oplog.facade.given_async import open_async
from oplog.past.look_back import Moment

T = TypeVar("T")
Run: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function of a blocking connection or session, and of more arguments."""

_CHUNK = 200
"""Items that are taken at a time: each turn costs a change of stacks."""


class AsyncMoment:
    """A `Moment` whose rows are awaited; made by `Oplog.moment_async`."""

    def __init__(self, then: Moment, run: Run) -> None:
        self.position = then.position
        """The last position that counts."""
        self._then = then
        self._run = run

    async def rows(self, asked: Any, *, limit: int | None = None) -> list[Mapping[str, Any]]:
        """The rows of then, as `Moment.rows` gives them."""
        found: list[Mapping[str, Any]] = await self._run(
            lambda _: list(self._then.rows(asked, limit=limit))
        )
        return found


@asynccontextmanager
async def open_runner(given: Any) -> AsyncIterator[Run]:
    """What runs work on the given; of an AsyncEngine a connection is taken for the block."""
    if given is None:
        yield lambda work, *more: asyncio.to_thread(work, None, *more)
    else:
        async with open_async(given) as target:
            yield target.run_sync


async def run_on(given: Any, work: Callable[[Any], T]) -> T:
    """Run `work` on a blocking connection or session that stands for the given."""
    async with open_runner(given) as run:
        found: T = await run(work)
        return found


@asynccontextmanager
async def enter_on(
    given: Any, make: Callable[[Any], AbstractContextManager[T]]
) -> AsyncIterator[tuple[T, Run]]:
    """Enter what `make` gives for the given, and leave it in the end."""
    stack = ExitStack()
    async with open_runner(given) as run:
        entered: T = await run(lambda inside: stack.enter_context(make(inside)))
        try:
            yield entered, run
        except BaseException as error:
            await run(lambda _, cause=error: stack.__exit__(type(cause), cause, None))
            raise
        await run(lambda _: stack.close())


async def iterate_on(given: Any, make: Callable[[Any], Iterator[T]]) -> AsyncIterator[T]:
    """What the iterator that `make` gives for the given yields."""
    async with open_runner(given) as run:
        items: Iterator[T] = await run(make)
        try:
            while chunk := await run(lambda _: list(islice(items, _CHUNK))):
                for item in chunk:
                    yield item
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                await run(lambda _: close())
