"""Sequences, defaults and DDL that are executed by themselves: the same as without the log.

They have no compiled statement and no result, which everything that watches must bear.
"""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateSequence, DropSequence

from tests.logged import LoggedDatabase, open_logged

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.filterwarnings("ignore:Using the .execute:sqlalchemy.exc.SADeprecationWarning"),
]

METADATA = sa.MetaData()
NUMBERS = sa.Sequence("numbers", start=5, metadata=METADATA)
ITEM = sa.Table(
    "item",
    METADATA,
    sa.Column("id", sa.Integer, NUMBERS, primary_key=True),
    sa.Column("name", sa.Text, default=sa.func.upper("none")),
    sa.Column("size", sa.Integer, sa.ColumnDefault(lambda: 3)),
)


def run_all(session: Any) -> list[Any]:
    """Everything that is executed without a statement of its own, on a session or connection."""
    name, size = ITEM.c.name.default, ITEM.c.size.default
    assert name is not None
    assert size is not None
    return [
        session.scalar(NUMBERS),
        session.execute(NUMBERS),
        session.scalar(NUMBERS.next_value()),
        session.scalar(sa.select(NUMBERS.next_value())),
        session.scalar(name),
        session.execute(size),
        session.scalar(sa.func.upper("x")),
        session.scalar(sa.text("SELECT 1")),
        session.execute(CreateSequence(sa.Sequence("other"))).returns_rows,
        session.execute(DropSequence(sa.Sequence("other"))).returns_rows,
    ]


EXPECTED = [5, 6, 7, 8, "NONE", 3, "X", 1, False, False]


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    return open_logged(engine, METADATA, guarded=request.param)


@pytest.mark.parametrize("written", [False, True], ids=["alone", "after a write"])
def test_on_an_attached_session(db: LoggedDatabase, written: bool) -> None:
    with db.sessions.begin() as session:
        if written:
            session.execute(sa.insert(ITEM), [{"id": 1, "name": "x"}])
        assert run_all(session) == EXPECTED
    assert db.tell() == (["CREATE item 1"] if written else [])
    db.assert_replays()


@pytest.mark.parametrize("whose", ["a sessionmaker's engine", "an attached engine"])
def test_on_a_connection(db: LoggedDatabase, whose: str) -> None:
    if whose == "an attached engine":
        db.log.attach(db.engine)
    with db.engine.begin() as connection:
        assert run_all(connection) == EXPECTED
    with sessionmaker(db.engine).begin() as stranger:
        assert stranger.scalar(NUMBERS) == 9
    assert db.tell() == []


def test_a_row_gets_its_key_from_an_executed_sequence(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        number = session.scalar(NUMBERS)
        session.execute(sa.insert(ITEM), [{"id": number}])
        session.execute(sa.insert(ITEM).values(name="y"))
    assert db.tell() == ["CREATE item 5", "CREATE item 6"]
    db.assert_replays()


async def test_asynchronously(db: LoggedDatabase, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)
    async with sessions.begin() as session:
        assert await session.scalar(NUMBERS) == 5
        executed: Any = await session.execute(NUMBERS)
        assert executed == 6
        await session.execute(sa.insert(ITEM), [{"id": 1}])
        assert await session.run_sync(Session.scalar, NUMBERS) == 7
    async with engine.begin() as connection:
        assert await connection.run_sync(sa.Connection.scalar, NUMBERS) == 8
    await engine.dispose()
    assert db.tell() == ["CREATE item 1"]
    db.assert_replays()


def test_what_is_expected_is_what_happens_without_a_log(database_url: URL) -> None:
    engine = sa.create_engine(database_url)
    METADATA.create_all(engine)
    with sessionmaker(engine).begin() as session:
        assert run_all(session) == EXPECTED
    engine.dispose()


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("level", ["READ COMMITTED", "AUTOCOMMIT"])
def test_before_the_statement_that_they_are_for(engine: Engine, level: str, guarded: bool) -> None:
    """They are executed with its context, which has no parameters yet."""
    metadata = sa.MetaData()
    sequence = sa.Sequence("tickets", metadata=metadata)
    table = sa.Table(
        "ticket",
        metadata,
        sa.Column("id", sa.Integer, sequence, primary_key=True),
        sa.Column("name", sa.Text),
        implicit_returning=False,
    )
    db = open_logged(engine, metadata, guarded=guarded)
    other = engine.execution_options(isolation_level=level)
    db.log.attach(other)
    with other.connect() as connection:
        for name in ("a", "b"):
            connection.execute(sa.insert(table).values(name=name))
        connection.commit()
    assert db.tell() == ["CREATE ticket 1", "CREATE ticket 2"]
    db.assert_replays()
