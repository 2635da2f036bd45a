"""COMMITs lost on their way there or back: nobody knows, says the product, and can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Event, Keyring, Oplog, Outcome, WorkRetried
from oplog.errors import CommitOutcomeUnknownError
from oplog.testing import EmbeddedServer
from tests.fault.counters import Counter, create_tables, make_log
from tests.fault.cutter import Cut, Cutter

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

TRUTHS = [
    (Cut.REQUEST, Outcome.ABORTED),
    (Cut.ANSWER, Outcome.COMMITTED),
    # Asked while the COMMIT is still on its way.
    (Cut.LATE, Outcome.COMMITTED),
]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        engine = sa.create_engine(server.url)
        create_tables(engine)
        engine.dispose()
        yield server


@pytest.fixture
def direct(server: EmbeddedServer) -> Iterator[Engine]:
    engine = sa.create_engine(server.url)
    with engine.begin() as connection:
        # Tests share the log, whose keys are one test's own.
        connection.exec_driver_sql("TRUNCATE counter")
    yield engine
    engine.dispose()


@pytest.fixture
def cutter(server: EmbeddedServer) -> Iterator[Cutter]:
    with Cutter(server.directory / ".s.PGSQL.5432") as cutter:
        yield cutter


@pytest.fixture
def log(tmp_path: Path) -> Oplog:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return make_log(path)


@pytest.fixture
def through(server: EmbeddedServer, cutter: Cutter) -> URL:
    bare = make_url(server.url).difference_update_query(["host"])
    return bare.set(host="127.0.0.1", port=cutter.port)


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(Counter)).scalar_one()


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth[0].name)
def test_a_lost_commit_is_unknown_and_then_known(
    through: URL, direct: Engine, cutter: Cutter, log: Oplog, truth: tuple[Cut, Outcome]
) -> None:
    cut, outcome = truth
    engine = sa.create_engine(through)
    sessions: sessionmaker[Session] = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:  # the first write looks at the database, with own COMMITs
        session.add(Counter(id=0, seen=0, value=1))
    cutter.arm(cut)
    with pytest.raises(CommitOutcomeUnknownError) as raised, sessions.begin() as session:
        session.add(Counter(id=1, seen=0, value=1))
    assert log.resolve(raised.value, direct) is outcome
    assert count(direct) == 1 + (outcome is Outcome.COMMITTED)
    assert cutter.done[cut] == 1
    engine.dispose()


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth[0].name)
async def test_a_lost_commit_of_an_async_session_too(
    through: URL, direct: Engine, cutter: Cutter, log: Oplog, truth: tuple[Cut, Outcome]
) -> None:
    cut, outcome = truth
    engine = create_async_engine(through)
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    log.attach(sessions)
    async with sessions.begin() as session:
        session.add(Counter(id=0, seen=0, value=1))
    cutter.arm(cut)
    with pytest.raises(CommitOutcomeUnknownError) as raised:
        async with sessions.begin() as session:
            session.add(Counter(id=1, seen=0, value=1))
    assert log.resolve(raised.value, direct) is outcome
    assert count(direct) == 1 + (outcome is Outcome.COMMITTED)
    await engine.dispose()


async def test_a_run_cancelled_before_it_knew_of_its_lost_commit_says_so(
    through: URL, direct: Engine, cutter: Cutter, tmp_path: Path
) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    engine = create_async_engine(through)

    def cancel(event: Event) -> None:
        if isinstance(event, WorkRetried):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # strikes in the pause that follows

    log = make_log(path, on_event=cancel)
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    log.attach(sessions)
    async with sessions.begin() as session:
        session.add(Counter(id=0, seen=0, value=1))

    async def work(session: AsyncSession) -> None:
        session.add(Counter(id=1, seen=0, value=1))

    cutter.arm(Cut.ANSWER)
    run = asyncio.create_task(log.run_async(sessions, work, idempotency_key="lost"))
    with pytest.raises(asyncio.CancelledError) as raised:
        await run
    assert count(direct) == 2
    assert isinstance(raised.value, CommitOutcomeUnknownError), "told to be undone, and is done"
    assert log.resolve(raised.value, direct) is Outcome.COMMITTED
    await engine.dispose()
