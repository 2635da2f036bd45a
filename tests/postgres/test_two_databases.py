"""One session over two databases, each with tables, guards and a log of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog.errors import CommitWouldRollBackError, UnloggedWriteError
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class First(DeclarativeBase):
    pass


class Second(DeclarativeBase):
    pass


class User(First):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Sale(Second):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


@dataclass(frozen=True)
class Pair:
    users: LoggedDatabase
    sales: LoggedDatabase
    sessions: sessionmaker[Session]

    def assert_replays(self) -> None:
        self.users.assert_replays()
        self.sales.assert_replays()


@pytest.fixture
def pair(engine: Engine, spare_engine: Engine) -> Pair:
    users = open_logged(engine, First, guarded=True)
    sales = open_logged(spare_engine, Second, guarded=True)
    sessions = sessionmaker(binds={First: engine, Second: spare_engine})
    users.log.attach(sessions)
    sales.log.attach(sessions)
    with sessions.begin() as session:
        session.add_all([User(id=1, name="ada"), Sale(id=1, total=5)])
    return Pair(users, sales, sessions)


def test_each_log_has_what_its_database_got(pair: Pair) -> None:
    with pair.sessions.begin() as session:
        session.execute(sa.update(Sale).values(total=Sale.total + 1))
    with pair.sessions.begin() as session:
        text = sa.text("UPDATE sale SET total = 9")
        session.execute(text, bind_arguments={"bind": pair.sales.engine})
    with pair.sessions.begin() as session:
        text = sa.text("UPDATE users SET name = 'bo'")
        session.execute(text, bind_arguments={"bind": pair.users.engine})
    with pair.sessions.begin() as session:
        session.execute(sa.update(Sale).values(total=1))
        session.execute(sa.update(User).values(name="cy"))
    assert pair.users.tell() == ["CREATE users 1", *["UPDATE users 1"] * 2]
    assert pair.sales.tell() == ["CREATE sale 1", *["UPDATE sale 1"] * 3]
    pair.assert_replays()


@pytest.mark.parametrize("broken", ["users", "sales"])
def test_nothing_commits_before_both_databases_took_their_entries(pair: Pair, broken: str) -> None:
    """What cannot be logged in one of them stops the other, whichever commits first."""
    session = pair.sessions()
    session.get_one(User, 1).name = "new"
    session.get_one(Sale, 1).total = 7
    session.flush()
    engine = getattr(pair, broken).engine
    with pytest.raises(sa.exc.DataError):
        session.connection(bind_arguments={"bind": engine}).exec_driver_sql("SELECT 1 / 0")
    with pytest.raises(CommitWouldRollBackError):
        session.commit()
    session.rollback()
    session.close()
    assert pair.users.tell() == ["CREATE users 1"]
    assert pair.sales.tell() == ["CREATE sale 1"]
    pair.assert_replays()


def test_a_hook_writes_in_both(pair: Pair) -> None:
    @event.listens_for(pair.sessions, "before_commit")
    def write(session: Session) -> None:
        session.execute(sa.update(User).values(name="late"))
        session.get_one(Sale, 1).total = 100

    with pair.sessions.begin() as session:
        session.get_one(User, 1).name = "new"
    assert pair.users.tell() == ["CREATE users 1", "UPDATE users 1"]
    assert pair.sales.tell() == ["CREATE sale 1", "UPDATE sale 1"]
    pair.assert_replays()


def test_the_other_log_alone_passes_nothing(pair: Pair) -> None:
    """Where the database's own log is not attached, its guards refuse."""
    pair.sales.log.detach(pair.sessions)
    with pytest.raises(UnloggedWriteError), pair.sessions.begin() as session:
        session.execute(sa.update(Sale).values(total=1))
    pair.assert_replays()


def test_asynchronous_sessions(pair: Pair) -> None:
    async def main() -> None:
        first = create_async_engine(pair.users.engine.url)
        second = create_async_engine(pair.sales.engine.url)
        sessions = async_sessionmaker(binds={First: first, Second: second})
        pair.users.log.attach(sessions)
        pair.sales.log.attach(sessions)
        async with sessions.begin() as session:
            await session.execute(sa.update(Sale).values(total=1))
            await session.execute(sa.update(User).values(name="cy"))
        await first.dispose()
        await second.dispose()

    asyncio.run(main())
    assert pair.users.tell() == ["CREATE users 1", "UPDATE users 1"]
    assert pair.sales.tell() == ["CREATE sale 1", "UPDATE sale 1"]
    pair.assert_replays()
