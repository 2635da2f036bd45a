"""What asynchronous calls of `Oplog` accept, and how they give way to other tasks.

What waits for the database runs inside SQLAlchemy's `run_sync`, whose waiting lets the loop go on.
Opening records is work for the processor, during which it does not: a reader pauses in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

from sqlalchemy.util import await_only

from oplog.entry import LoggedEntry
from oplog.errors import ConfigurationError
from oplog.facade.given_target import Inside
from oplog.reading.page import Entries

_BATCH = 100
"""Entries that are fetched at once; between two batches nothing of the log runs."""


def give_way() -> None:
    """Let the loop's other tasks run; called inside `run_sync` only."""
    await_only(asyncio.sleep(0))


@asynccontextmanager
async def open_async(given: Any) -> AsyncIterator[Any]:
    """What has `run_sync`: the given object, or a connection of the given engine.

    Raises `ConfigurationError` for what is not asynchronous.
    """
    if hasattr(given, "sync_engine") and hasattr(given, "connect"):
        async with given.connect() as connection:
            yield connection
        return
    # A scoped session hands over the session of the task.
    target = given() if hasattr(given, "session_factory") and callable(given) else given
    if not hasattr(target, "run_sync"):
        raise ConfigurationError(
            f"{type(given).__name__} is neither an AsyncConnection nor an AsyncSession nor an "
            "AsyncEngine",
            hint="give one of these; for a Connection, a Session or an Engine there is the same "
            "call without _async",
        )
    yield target


class AsyncEntries(AsyncIterator[LoggedEntry]):
    """Entries one after the other, as `Oplog.read_async` gives them.

    `cursor` is as that of `Entries`. Of an engine a connection is held until the last entry, or
    `aclose`.
    """

    def __init__(self, given: Any, read: Callable[[Inside], Entries]) -> None:
        self._read = read
        self._cursor: str | None = None
        self._entries = self._iterate(given)

    async def __anext__(self) -> LoggedEntry:
        return await anext(self._entries)

    async def aclose(self) -> None:
        """Give back what is held; there are no more entries then."""
        await self._entries.aclose()

    @property
    def cursor(self) -> str | None:
        """Where the next page begins; None before the end of this one, and if it is the last."""
        return self._cursor

    async def _iterate(self, given: Any) -> AsyncGenerator[LoggedEntry, None]:
        async with open_async(given) as target:
            entries: Entries = await target.run_sync(self._read)
            while batch := await target.run_sync(lambda _: list(islice(entries, _BATCH))):
                for entry in batch:
                    yield entry
            self._cursor = entries.cursor
