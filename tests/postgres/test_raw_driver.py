"""The driver's own connection, used beside SQLAlchemy: its statements, COPY and transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog.errors import NotCapturableError, OplogError
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    v: Mapped[str]


TABLE = Base.metadata.tables["item"]
RAW = "INSERT INTO item VALUES (1, 'raw')"
CORE = TABLE.insert().values(id=2, v="core")
LATER = TABLE.insert().values(id=3, v="core")
Way = Callable[[Connection], object]


def find_driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def execute(connection: Connection) -> None:
    connection.execute(CORE)
    find_driver(connection).execute(RAW)
    connection.commit()


def copy(connection: Connection) -> None:
    connection.execute(CORE)
    with find_driver(connection).cursor() as cursor, cursor.copy("COPY item FROM STDIN") as into:
        into.write("1\traw\n")
    connection.commit()


def pipeline(connection: Connection) -> None:
    connection.execute(CORE)
    with find_driver(connection).pipeline():
        find_driver(connection).execute(RAW)
    connection.commit()


def begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
    connection.execute(CORE)
    connection.commit()


def commit_text(connection: Connection) -> None:
    connection.execute(CORE)
    connection.exec_driver_sql("COMMIT")


def commit(connection: Connection) -> None:
    connection.execute(CORE)
    find_driver(connection).commit()


def commit_and_go_on(connection: Connection) -> None:
    commit(connection)
    connection.execute(LATER)
    connection.commit()


def commit_twice(connection: Connection) -> None:
    commit(connection)
    connection.commit()


def commit_pooled(connection: Connection) -> None:
    connection.execute(CORE)
    connection.connection.commit()
    connection.commit()


def roll_back_and_go_on(connection: Connection) -> None:
    connection.execute(CORE)
    find_driver(connection).rollback()
    connection.execute(LATER)
    connection.commit()


def roll_back_to(connection: Connection) -> None:
    connection.execute(CORE)
    find_driver(connection).execute("SAVEPOINT a")
    connection.execute(LATER)
    find_driver(connection).execute("ROLLBACK TO a")
    connection.commit()


def block(connection: Connection) -> None:
    with find_driver(connection).transaction():
        find_driver(connection).execute(RAW)


def block_around_core(connection: Connection) -> None:
    with find_driver(connection).transaction():
        connection.execute(CORE)


def raw_connection(connection: Connection) -> None:
    raw = connection.engine.raw_connection()
    try:
        raw.cursor().execute(RAW)
        raw.commit()
    finally:
        raw.close()


LOGGED: list[Way] = [execute, copy, pipeline, begin]
REFUSED: list[Way] = [
    *(commit, commit_and_go_on, commit_text, commit_twice, commit_pooled),
    *(roll_back_and_go_on, roll_back_to, block, block_around_core, raw_connection),
]
NOTICED: list[Way] = [commit_and_go_on, commit_twice, commit_pooled, roll_back_and_go_on]


@pytest.fixture(params=["engine", "sessions"])
def guarded(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    db = open_logged(engine, Base, guarded=True)
    if request.param == "engine":
        db.log.attach(engine)
    return db


@pytest.mark.parametrize("way", LOGGED)
def test_what_the_driver_does_in_a_logged_transaction(guarded: LoggedDatabase, way: Way) -> None:
    with guarded.engine.connect() as connection:
        way(connection)
    told = ["CREATE item 2"] if way is begin else ["CREATE item 1", "CREATE item 2"]
    assert sorted(guarded.tell()) == told
    guarded.assert_replays()
    guarded.assert_pool_is_clean()


@pytest.mark.parametrize("way", REFUSED)
def test_a_transaction_that_the_driver_ends(guarded: LoggedDatabase, way: Way) -> None:
    """The guards refuse COMMIT, whoever sends it: nothing is lost, and nothing is invented."""
    error: Exception | None = None
    with guarded.engine.connect() as connection:
        try:
            way(connection)
        except (OplogError, SQLAlchemyError, psycopg.Error) as caught:
            error = caught
    # What is rolled back by itself needs no refusal where only guards capture.
    assert error is not None or way in {roll_back_and_go_on, roll_back_to, commit_text}
    guarded.assert_replays()
    guarded.assert_pool_is_clean()


@pytest.mark.parametrize("way", NOTICED)
def test_without_a_guard_it_is_noticed_at_the_next_statement(engine: Engine, way: Way) -> None:
    """Nothing is logged of a transaction that is not what SQLAlchemy believes."""
    db = open_logged(engine, Base)
    db.log.attach(engine)
    with engine.connect() as connection:
        with pytest.raises(NotCapturableError, match="driver's own connection") as caught:
            way(connection)
        assert "oplog verify" in caught.value.hint
    assert db.tell() == []
    assert db.count("item WHERE id = 3") == 0
    db.assert_pool_is_clean()


@pytest.mark.parametrize("way", [execute, copy])
def test_without_a_guard_verify_tells(engine: Engine, way: Way) -> None:
    db = open_logged(engine, Base)
    db.log.attach(engine)
    with engine.connect() as connection:
        way(connection)
        (difference,) = db.log.verify(connection).differences
        assert (difference.kind, difference.key) == ("extra", {"id": 1})
        assert "guard-missing" in {finding.what for finding in db.log.diagnose(connection)}


@pytest.mark.parametrize("is_guarded", [False, True])
def test_an_asynchronous_driver(engine: Engine, is_guarded: bool) -> None:
    db = open_logged(engine, Base, guarded=is_guarded)

    async def main() -> None:
        own = create_async_engine(engine.url)
        db.log.attach(own)
        async with own.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await connection.execute(CORE)
            if is_guarded:
                await raw.execute(RAW)
            else:
                await raw.commit()
                with pytest.raises(NotCapturableError, match="driver's own connection"):
                    await connection.execute(LATER)
                await connection.rollback()
                await connection.execute(LATER)
            await connection.commit()
        await own.dispose()

    asyncio.run(main())
    told = ["CREATE item 1", "CREATE item 2"] if is_guarded else ["CREATE item 3"]
    assert sorted(db.tell()) == told
    if is_guarded:
        db.assert_replays()
