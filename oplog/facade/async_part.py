"""The part of `Oplog` that reads for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Engine

from oplog.entry import Change, OpType
from oplog.facade.entries_part import EntryReading
from oplog.facade.given_async import AsyncEntries, give_way, open_async
from oplog.facade.given_target import take_connection
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading, RowShape
from oplog.facade.search_part import SCAN_LIMIT, Searching
from oplog.postgres.blocking import make_blocking
from oplog.reading.page import Page
from oplog.replay import MOST_DIFFERENCES, Progress, VerifyReport
from oplog.search.found_change import SearchPage
from oplog.search.question import ANY
from oplog.search.search_run import ScanProgress


class AsyncReading:
    """Reads on an AsyncConnection, an AsyncSession or an AsyncEngine; other tasks run meanwhile.

    An archive is read by calls that block: those go into a thread, without `_async`.
    """

    def __init__(self, log: LogParts) -> None:
        self._log = log
        self._blocking = Reading(log)
        self._reading = reading = Reading(log, pause=give_way)
        self._entries = EntryReading(log, reading=reading)
        self._searching = Searching(log, reading=reading)

    def read_async(
        self,
        connection: Any,
        *,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        cursor: str | None = None,
        revisions: Mapping[str, int] | None = None,
    ) -> AsyncEntries:
        """`read` for an AsyncConnection, AsyncSession or AsyncEngine: `async for entry in ...`."""
        return AsyncEntries(
            connection,
            lambda inside: self._entries.read(
                inside,
                aggregate=aggregate,
                metadata=metadata,
                after=after,
                through=through,
                limit=limit,
                newest_first=newest_first,
                cursor=cursor,
                revisions=revisions,
            ),
        )

    async def history_async(
        self,
        connection: Any,
        model: Any,
        key: Any,
        *,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        cursor: str | None = None,
        shape: RowShape = "now",
        revisions: Mapping[str, int] | None = None,
    ) -> Page[Change]:
        """`history` for an AsyncConnection, AsyncSession or AsyncEngine."""
        async with open_async(connection) as target:
            found: Page[Change] = await target.run_sync(
                lambda inside: self._reading.history(
                    inside,
                    model,
                    key,
                    after=after,
                    through=through,
                    limit=limit,
                    newest_first=newest_first,
                    cursor=cursor,
                    shape=shape,
                    revisions=revisions,
                )
            )
            return found

    async def search_async(
        self,
        connection: Any,
        *,
        type: Any = None,
        column: str | None = None,
        to: Any = ANY,
        before: Any = ANY,
        actor: str | None = None,
        kind: OpType | str | None = None,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        scan_limit: int | None = SCAN_LIMIT,
        index: bool = True,
        progress: ScanProgress | None = None,
    ) -> SearchPage:
        """`search` for an AsyncConnection, AsyncSession or AsyncEngine."""
        async with open_async(connection) as target:
            found: SearchPage = await target.run_sync(
                lambda inside: self._searching.search(
                    inside,
                    type=type,
                    column=column,
                    to=to,
                    before=before,
                    actor=actor,
                    kind=kind,
                    aggregate=aggregate,
                    metadata=metadata,
                    after=after,
                    through=through,
                    limit=limit,
                    cursor=cursor,
                    scan_limit=scan_limit,
                    index=index,
                    progress=progress,
                )
            )
            return found

    async def verify_async(
        self,
        connection: Any,
        *,
        limit: int = MOST_DIFFERENCES,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """`verify` for an AsyncConnection, AsyncSession or AsyncEngine, in a thread.

        It takes a second connection to the same database, with the parameters of the first, and
        compares what is committed. A task that is cancelled does not end the thread. `progress` is
        called there.
        """
        async with open_async(connection) as target:
            engine: Engine = await target.run_sync(
                lambda inside: make_blocking(
                    take_connection(inside, self._log.catalog).connection.driver_connection
                )
            )
        return await asyncio.to_thread(
            self._blocking.verify, engine, limit=limit, progress=progress
        )
