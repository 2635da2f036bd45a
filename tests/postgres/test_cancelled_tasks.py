"""Tasks cancelled before their COMMIT: a definite end, and a pool that is as good as before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from oplog import Oplog
from oplog.errors import CommitOutcomeUnknownError
from tests.concurrency.workload import Base, Customer, make_log, waiting_for_lock
from tests.logged import track
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

POOL = 2


@pytest.fixture
async def pooled(engine: Engine) -> AsyncIterator[AsyncEngine]:
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    pooled = create_async_engine(engine.url, pool_size=POOL, max_overflow=0, pool_timeout=5)
    yield pooled
    await pooled.dispose()


async def update(log: Oplog, session: AsyncSession) -> None:
    await session.execute(sa.update(Customer).values(name="never"))


async def update_raw(log: Oplog, session: AsyncSession) -> None:
    await session.execute(sa.text("UPDATE customer SET name = 'never'"))


async def flush(log: Oplog, session: AsyncSession) -> None:
    customer = await session.get_one(Customer, 1)
    customer.name = "never"
    await session.flush()


async def flush_in_savepoint(log: Oplog, session: AsyncSession) -> None:
    async with session.begin_nested():
        await flush(log, session)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("work", [update, update_raw, flush, flush_in_savepoint])
@pytest.mark.parametrize("through_run", [False, True], ids=["session", "run"])
async def test_cancelled_inside_a_statement(
    engine: Engine,
    pooled: AsyncEngine,
    work: Callable[[Oplog, AsyncSession], Awaitable[None]],
    through_run: bool,
) -> None:
    log, sessions = make_log(), async_sessionmaker(pooled)
    log.attach(sessions)
    async with sessions.begin() as session:
        session.add(Customer(id=1, name="kept"))

    async def write() -> None:
        if through_run:
            await log.run_async(sessions, lambda s: work(log, s))
        else:
            async with sessions.begin() as session:
                session.add(Customer(id=2, name="never"))
                await session.flush()
                await work(log, session)

    # Oftener than there are connections: one that is lost or left in a transaction would show.
    for _ in range(POOL + 1):
        with engine.connect() as holder:
            holder.exec_driver_sql("SELECT FROM customer FOR UPDATE")
            task = asyncio.create_task(write())
            await asyncio.to_thread(wait_until_blocked, engine)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert not isinstance(caught.value, CommitOutcomeUnknownError)
    async with sessions.begin() as session:
        session.add(Customer(id=3, name="kept"))
    assert [receipt.version for receipt in log.receipts(session)] == [1]
    with engine.connect() as connection:
        names = connection.execute(sa.select(Customer.name).order_by(Customer.id)).scalars()
        assert list(names) == ["kept", "kept"]
        assert [e.aggregate for e in log.read(connection)] == ["customer/1", "customer/3"]
    assert_replays(log, engine)


def wait_until_blocked(engine: Engine) -> None:
    with waiting_for_lock(engine):
        pass
