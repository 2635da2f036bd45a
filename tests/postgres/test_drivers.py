"""Drivers other than psycopg 3 are refused before a row is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog
from oplog.errors import ConfigurationError
from tests.concurrency.workload import Base, Customer, make_log
from tests.logged import track

pytestmark = pytest.mark.postgres

RAW = sa.text("INSERT INTO customer (id, name) VALUES (1, 'raw')")


@pytest.fixture
def log(engine: Engine) -> Iterator[Oplog]:
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    yield make_log()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM customer").scalar() == 0
        assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar() == 0


def require(driver: str) -> None:
    if importlib.util.find_spec(driver) is None:
        pytest.skip(f"{driver} is not installed")


@pytest.mark.parametrize("raw", [False, True], ids=["flush", "text"])
@pytest.mark.parametrize("driver", ["psycopg2", "other"])
def test_blocking_drivers(engine: Engine, log: Oplog, driver: str, raw: bool) -> None:
    if driver == "other":
        # Whatever its name is: this one is psycopg 3 in disguise.
        other = create_engine(engine.url, poolclass=NullPool)
        other.dialect.driver = driver
    else:
        require(driver)
        other = create_engine(engine.url.set(drivername=f"postgresql+{driver}"), poolclass=NullPool)
    sessions = sessionmaker(other)
    log.attach(sessions)
    with pytest.raises(ConfigurationError, match=driver), sessions.begin() as session:
        session.execute(RAW) if raw else session.add(Customer(id=1, name="new"))
    with other.connect() as connection, pytest.raises(ConfigurationError, match=driver):
        list(log.read(connection))


@pytest.mark.parametrize("raw", [False, True], ids=["flush", "text"])
async def test_asyncpg(engine: Engine, log: Oplog, raw: bool) -> None:
    require("asyncpg")
    host = engine.url.query.get("host", engine.url.host)
    url = engine.url.set(drivername="postgresql+asyncpg", query={"host": host or ""})
    other = create_async_engine(url, poolclass=NullPool)
    sessions = async_sessionmaker(other)
    log.attach(sessions)

    async def write() -> None:
        async with sessions.begin() as session:
            if raw:
                await session.execute(RAW)
            else:
                session.add(Customer(id=1, name="new"))

    with pytest.raises(ConfigurationError, match="asyncpg"):
        await write()


def test_a_session_without_a_log_refuses_nothing(engine: Engine, log: Oplog) -> None:
    """The guards do: they need no driver."""
    other = create_engine(engine.url, poolclass=NullPool)
    other.dialect.driver = "other"
    with pytest.raises(DBAPIError, match="logged"), other.begin() as connection:
        connection.execute(RAW)
