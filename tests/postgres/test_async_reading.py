"""Reading for asyncio gives what reading gives, on each kind of target, and lets others run."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import NullPool

from oplog.errors import ConfigurationError
from oplog.reading import reader
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True, seed="")
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="ann")
        session.add_all(
            Account(id=number, owner="ada", balance=Decimal(1)) for number in range(1, 251)
        )
    for amount in (2, 3, 4):
        with db.sessions.begin() as session:
            session.get_one(Account, 1).balance = Decimal(amount)
    return db


@pytest_asyncio.fixture
async def targets(db: LoggedDatabase) -> AsyncIterator[list[Any]]:
    engine = create_async_engine(db.engine.url, poolclass=NullPool)
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 0)
    async with engine.connect() as connection, AsyncSession(engine) as session:
        yield [connection, session, engine, scoped]
    await scoped.remove()
    await engine.dispose()


async def test_each_target_gives_what_the_blocking_one_gives(
    db: LoggedDatabase, targets: list[AsyncConnection | AsyncSession | AsyncEngine]
) -> None:
    log = db.log
    with db.engine.connect() as connection:
        entries = list(log.read(connection))
        newest = log.read(connection, newest_first=True, limit=2)
        two = list(newest)
        history = log.history(connection, Account, 1, limit=3, newest_first=True)
        found = log.search(connection, type=Account, column="balance", before=Decimal(3))
    assert len(entries) == 253
    for target in targets:
        assert [entry async for entry in log.read_async(target)] == entries
        page = log.read_async(target, newest_first=True, limit=2)
        assert [entry async for entry in page] == two
        assert page.cursor == newest.cursor is not None
        told = await log.history_async(target, Account, 1, limit=3, newest_first=True)
        assert told == history
        assert told.cursor == history.cursor is not None
        page_of = await log.search_async(target, type=Account, column="balance", before=Decimal(3))
        assert page_of == found != []
        assert (await log.verify_async(target)).ok


async def test_verify_finds_what_slipped_past(db: LoggedDatabase, targets: list[Any]) -> None:
    db.execute(
        "ALTER TABLE account DISABLE TRIGGER ALL; UPDATE account SET owner = 'eve' WHERE id = 1"
    )
    told: list[int] = []
    report = await db.log.verify_async(targets[2], progress=lambda at, last: told.append(last))
    assert not report.ok
    assert told


async def test_an_engine_keeps_no_connection_when_the_reading_ends(db: LoggedDatabase) -> None:
    engine = create_async_engine(db.engine.url)
    entries = db.log.read_async(engine)
    assert (await anext(entries)).position > 0
    assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    await entries.aclose()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with pytest.raises(StopAsyncIteration):
        await anext(entries)
    await engine.dispose()


@pytest.mark.parametrize(
    "work",
    [
        lambda log, c: log.history_async(c, Account, 1),
        lambda log, c: log.search_async(c, type=Account, column="balance", to=Decimal(9)),
    ],
)
async def test_others_run_while_records_are_opened(
    db: LoggedDatabase,
    targets: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Any, Any], Awaitable[Any]],
) -> None:
    """Between two effects that are opened, with no statement in between, another task runs."""
    monkeypatch.setattr(reader, "_PAUSE_EFFECTS", 1)
    turns: list[str] = []
    true_decode = reader.RecordReader.decode

    def decode(self: Any, stored: Any, **options: Any) -> Any:
        turns.append("record")
        return true_decode(self, stored, **options)

    monkeypatch.setattr(reader.RecordReader, "decode", decode)

    async def other() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await work(db.log, targets[0])
    task.cancel()
    places = [number for number, turn in enumerate(turns) if turn == "record"]
    assert len(places) == 4
    assert all("other" in turns[a:b] for a, b in itertools.pairwise(places))


async def test_blocking_targets_are_told_the_other_call(db: LoggedDatabase) -> None:
    with db.engine.connect() as connection:
        for given in (connection, db.engine, None, 7):
            with pytest.raises(ConfigurationError, match="AsyncConnection") as caught:
                await db.log.history_async(given, Account, 1)
            assert "without _async" in caught.value.hint
            with pytest.raises(ConfigurationError, match="AsyncConnection"):
                [entry async for entry in db.log.read_async(given)]
