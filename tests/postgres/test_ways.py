"""Every way of writing is captured as the database stored it, or its COMMIT is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from oplog import Oplog
from oplog.errors import UnloggedWriteError
from tests.logged import LoggedDatabase, brief, open_logged
from tests.models.depot import AGGREGATES, OBJECTS, TABLES, Base, Part
from tests.older import mark_cases, name_cases
from tests.ways import SEED, WAYS, Way

pytestmark = pytest.mark.postgres

each_way = pytest.mark.parametrize("way", mark_cases(WAYS))
SEEN = {
    "orm nothing matched",
    "on conflict do nothing",
    "object moves to another partition",
    "object in a partition",
    "object only",
}
"""Ways that need no image: the application sees for itself which rows they change."""


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(
        engine, Base, guarded=True, objects=OBJECTS, seed=SEED, aggregates=AGGREGATES
    )


def tell(db: LoggedDatabase, *, after: int) -> list[str]:
    with db.engine.connect() as connection:
        entries = list(db.log.read(connection, after=after))
    return sorted(brief(o) for entry in entries for o in entry.operations)


def last(db: LoggedDatabase) -> int:
    return max(entry.position for entry in db.read())


@pytest.mark.sampled(26)
@each_way
def test_captured(db: LoggedDatabase, way: Way) -> None:
    before = last(db)
    with db.sessions.begin() as session:
        assert way.write(session) == way.returns
    db.assert_replays()
    assert tell(db, after=before) == sorted(way.tells)
    assert db.count("oplog.oplog_image") == 0
    db.assert_pool_is_clean()


@pytest.mark.sampled(16)
@each_way
def test_captured_around_savepoints(db: LoggedDatabase, way: Way) -> None:
    before = last(db)
    with db.sessions.begin() as session:
        with suppress(ZeroDivisionError), session.begin_nested():
            way.write(session)
            session.flush()
            raise ZeroDivisionError
        with session.begin_nested():
            assert way.write(session) == way.returns
    db.assert_replays()
    told = [line for line in tell(db, after=before) if "movement" not in line]
    assert told == sorted(line for line in way.tells if "movement" not in line)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", name_cases(WAYS))
def test_not_captured_when_images_are_lost(
    db: LoggedDatabase, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the capture of images, whatever needs it is refused, never lost."""
    for transactions in db.log._log.attachments._engines.values():
        monkeypatch.setattr(transactions, "_collect", lambda _: None)
    before = (snapshot(db), last(db))
    session = db.sessions()
    WAYS[name].write(session)
    committed = False
    with suppress(UnloggedWriteError):
        session.commit()
        committed = True
    session.close()
    assert committed == (name in SEEN)
    if not committed:
        assert (snapshot(db), last(db)) == before
    db.assert_replays()
    db.assert_pool_is_clean()


def snapshot(db: LoggedDatabase) -> dict[str, list[str]]:
    with db.engine.connect() as connection:
        return {
            name: sorted(connection.exec_driver_sql(f"SELECT t::text FROM {name} t").scalars())
            for name in TABLES
        }


@pytest_asyncio.fixture
async def asynchronous(
    db: LoggedDatabase, database_url: URL
) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(database_url)
    made = async_sessionmaker(engine)
    db.log.attach(made)
    yield made
    await engine.dispose()


@pytest.mark.sampled(16)
@pytest.mark.parametrize("way", mark_cases({n: w for n, w in WAYS.items() if n != "copy"}))
async def test_captured_async(
    db: LoggedDatabase, asynchronous: async_sessionmaker[AsyncSession], way: Way
) -> None:
    before = last(db)
    async with asynchronous.begin() as session:
        assert await session.run_sync(way.write) == way.returns
    db.assert_replays()
    assert tell(db, after=before) == sorted(way.tells)


def test_a_deferred_trigger_in_the_first_transaction_of_a_process(
    db: LoggedDatabase, database_url: URL
) -> None:
    """Nothing is known of the database yet when the raw statement is sent."""
    engine = sa.create_engine(database_url)
    sessions = sessionmaker(engine)
    log = Oplog(db.log.catalog, keyring=db.log.keyring)
    log.attach(sessions)
    with sessions.begin() as session:
        session.execute(sa.text("UPDATE part SET note = 'late' WHERE id = 1"))
    engine.dispose()
    assert db.count("movement") == 1
    db.assert_replays()


def test_a_driver_that_passes_no_messages_on(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.connection()
    for transactions in db.log._log.attachments._engines.values():
        for state in transactions._notices._states.values():
            state.no_notices = True
    assert db.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    raw: Any = db.engine.raw_connection()
    raw.driver_connection._notice_handlers.clear()
    raw.close()
    with db.sessions.begin() as session:
        session.execute(sa.text("UPDATE part SET note = 'x'"))
    with db.sessions.begin() as session:
        session.execute(sa.text("SET TRANSACTION READ ONLY"))
        session.execute(sa.select(Part))
    db.assert_replays()
