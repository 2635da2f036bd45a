"""A cancellation that comes when COMMIT has been answered, while the session is being closed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from oplog import Keyring, Outcome
from oplog.errors import CommitOutcomeUnknownError
from tests.fault.counters import Base, Counter, make_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


class SlowSession(AsyncSession):
    """Waits before it closes, so that something can happen then."""

    closing: asyncio.Event
    may_close: asyncio.Event

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        await super().close()


async def test_a_run_that_is_cancelled_after_its_commit_does_not_look_undone(
    database_url: URL, tmp_path: Path
) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    log = make_log(path)
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    SlowSession.closing, SlowSession.may_close = asyncio.Event(), asyncio.Event()
    sessions = async_sessionmaker(engine, class_=SlowSession)
    log.attach(sessions)

    async def work(session: AsyncSession) -> None:
        session.add(Counter(id=1, seen=0, value=1))

    run = asyncio.create_task(log.run_async(sessions, work))
    await asyncio.wait_for(SlowSession.closing.wait(), 30)
    run.cancel()
    # Let the cancellation arrive before the session may end: the task's next step.
    await asyncio.sleep(0)
    SlowSession.may_close.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await run
    assert isinstance(raised.value, CommitOutcomeUnknownError), "told to be undone, and is done"
    assert await log.resolve_async(raised.value, engine) is Outcome.COMMITTED
    await engine.dispose()
