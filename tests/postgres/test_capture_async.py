"""The same capture under AsyncSession: savepoints, errors, annotations, receipts."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from oplog import Entry, Operation
from oplog.errors import ConfigurationError, TicketConflictError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES)


@pytest_asyncio.fixture
async def sessions(db: LoggedDatabase, database_url: URL) -> AsyncIterator[Sessions]:
    engine = create_async_engine(database_url)
    made = async_sessionmaker(engine)
    db.log.attach(made)
    yield made
    await engine.dispose()


async def add(session: AsyncSession, number: int) -> None:
    session.add(Account(id=number, owner="ada", balance=Decimal(number)))
    await session.flush()


async def test_rows_annotations_and_receipts(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        db.log.annotate(session, actor="u_42")
        await add(session, 2)
        session.add(Account(id=1, owner="sql", balance=sa.literal(2) + 1))
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/1", "account/2"]
    async with sessions.begin() as session:
        (await session.get_one(Account, 1)).owner = "bob"
        await session.delete(await session.get_one(Account, 2))
    assert db.tell()[2:] == ["UPDATE account 1", "DELETE account 2"]
    assert [e.metadata for e in db.read()[:2]] == [{"actor": ["u_42"]}] * 2
    db.assert_replays()


@pytest.mark.parametrize("outcomes", list(itertools.product("ck", repeat=3)), ids="".join)
async def test_three_deep_in_every_combination(
    db: LoggedDatabase, sessions: Sessions, outcomes: tuple[str, ...]
) -> None:
    """c: commit (release), k: roll back; from the innermost to the outermost savepoint."""
    async with sessions.begin() as session:
        await add(session, 1)
        savepoints = []
        for level in (1, 2, 3):
            savepoints.append(await session.begin_nested())
            await add(session, 10 + level)
        for level, outcome in zip((3, 2, 1), outcomes, strict=True):
            savepoint = savepoints.pop()
            await (savepoint.commit() if outcome == "c" else savepoint.rollback())
            await add(session, 20 + level)
    db.assert_replays()
    survivors = {int(t.split()[-1]) for t in db.tell()}
    assert (13 in survivors) == (outcomes == ("c", "c", "c"))
    assert (11 in survivors) == (outcomes[2] == "c")


async def test_a_caught_integrity_error(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await add(session, 1)
        savepoint = await session.begin_nested()
        await add(session, 2)
        with pytest.raises(IntegrityError):
            await session.execute(sa.insert(Account).values(id=1, owner="twice", balance=0))
        await savepoint.rollback()
        await add(session, 3)
    assert db.tell() == ["CREATE account 1", "CREATE account 3"]
    db.assert_replays()


async def test_savepoints_written_by_hand(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await add(session, 1)
        await session.execute(sa.text("SAVEPOINT mine"))
        await add(session, 2)
        await session.execute(sa.text("ROLLBACK TO mine"))
        await session.execute(sa.text("RELEASE mine"))
        session.expunge_all()
        await add(session, 3)
    assert db.tell() == ["CREATE account 1", "CREATE account 3"]
    db.assert_replays()


async def test_annotations_go_with_their_savepoint(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        db.log.annotate(session, actor="outer")
        await add(session, 1)
        savepoint = await session.begin_nested()
        db.log.annotate(session, actor="inner")
        await savepoint.rollback()
    assert db.read()[0].metadata == {"actor": ["outer"]}
    db.assert_replays()


async def test_a_rolled_back_session_is_used_again(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions() as session:
        await add(session, 1)
        await session.rollback()
        await add(session, 2)
        await session.commit()
        await add(session, 3)
    assert db.tell() == ["CREATE account 2"]
    db.assert_replays()


async def test_a_conflict_leaves_nothing_behind(db: LoggedDatabase, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await add(session, 1)
    async with sessions() as session:
        await session.run_sync(lambda inner: db.log.take_ticket(inner, "account/1"))
        with db.sessions.begin() as other:
            other.get_one(Account, 1).owner = "other"
        (await session.get_one(Account, 1)).owner = "mine"
        with pytest.raises(TicketConflictError):
            await session.commit()
        await session.rollback()
        assert (await session.get_one(Account, 1)).owner == "other"
    db.assert_replays()


async def test_explicit_entries(db: LoggedDatabase, sessions: Sessions) -> None:
    operation = Operation.delete("account", key={"id": 1})
    async with sessions() as session:
        with pytest.raises(ConfigurationError, match="run_sync"):
            db.log.take_ticket(session, "account/1")

        def work(inner: sa.orm.Session) -> None:
            ticket = db.log.take_ticket(inner, "account/1")
            db.log.append(inner, Entry("account/1", [operation]), ticket)

        await session.run_sync(work)
        await session.commit()
    assert db.tell() == ["DELETE account 1"]


async def test_scoped_sessions_are_unwrapped(db: LoggedDatabase, sessions: Sessions) -> None:
    scoped = async_scoped_session(sessions, scopefunc=lambda: 1)
    db.log.annotate(scoped, actor="u_42")
    scoped.add(Account(id=1, owner="ada", balance=Decimal(1)))
    await scoped.commit()
    assert [r.aggregate for r in db.log.receipts(scoped)] == ["account/1"]
    await scoped.remove()
    assert db.read()[0].metadata == {"actor": ["u_42"]}
    db.assert_replays()
