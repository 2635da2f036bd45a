"""What calls accept for a connection, an engine, a factory and a place, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import NullPool

from oplog import Oplog, open_archive
from oplog.errors import ConfigurationError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres

READS: dict[str, Callable[[Oplog, Any], Any]] = {
    "read": lambda log, c: [e.aggregate for e in log.read(c)],
    "tail": lambda log, c: [e.aggregate for e in log.tail(c, last=1)],
    "tail all": lambda log, c: [e.aggregate for e in log.tail(c, last=None)],
    "history": lambda log, c: [one.kind for one in log.history(c, Account, 1)],
    "as_of": lambda log, c: log.as_of(c, Account, key=1, at=10**6),
    "as_of rows": lambda log, c: list(log.as_of(c, Account, at=1)),
    "as_of select": lambda log, c: list(log.as_of(c, sa.select(Account.owner), at=1)),
    "diff": lambda log, c: [one.changes for one in log.diff(c, Account, before=1)],
    "versions": lambda log, c: log.versions(c, Account, 1),
    "verify": lambda log, c: log.verify(c).ok,
    "read_key": lambda log, c: log.read_key(c, Account, texts=["1"]),
    "check_steps": lambda log, c: log.check_steps(c).ok,
    "status": lambda log, c: log.status(c).entries,
    "list_keys": lambda log, c: [key.key_id for key in log.list_keys(c).keys],
    "list_types": lambda log, c: [one.type_name for one in log.list_types(c).shapes],
    "print_proto": lambda log, c: log.print_proto(c, "account").to_json(),
    "check_types": lambda log, c: log.check_types(c).ok,
    "list_quarantined": lambda log, c: log.list_quarantined(c),
    "diagnose": lambda log, c: len(log.diagnose(c)),
    "find_restore_problems": lambda log, c: log.find_restore_problems(c),
}
INSIDE: dict[str, Callable[[Oplog, Any], Any]] = {
    "replay": lambda log, c: log.replay(c).entries,
    "note_changes": lambda log, c: log.note_changes(c).rows,
    "store_types": lambda log, c: log.store_types(c).rows,
    "retire_key": lambda log, c: log.retire_key(c, "nothing"),
    "adopt": lambda log, c: log.adopt(c, dry_run=True).rows,
}
ENGINES: dict[str, Callable[[Oplog, Any], Any]] = {
    "subscribe": lambda log, e: log.subscribe(e, name="x"),
    "maintain": lambda log, e: log.maintain(e),
    "sync": lambda log, e: log.sync(e, open_archive("memory://")),
    "measure_lag": lambda log, e: log.measure_lag(e, open_archive("memory://")),
    "resolve": lambda log, e: log.resolve("key", e),
    "recover": lambda log, e: log.recover(open_archive("memory://"), e),
    "inspect_fork": lambda log, e: log.inspect_fork(e, open_archive("memory://")),
    "require_log": lambda log, e: log.require_log(e),
}


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=Decimal(1)))
    with db.sessions.begin() as session:
        session.get_one(Account, 1).balance = Decimal(2)
    return db


@pytest.mark.parametrize("name", READS)
def test_a_read_takes_a_connection_a_session_and_an_engine(db: LoggedDatabase, name: str) -> None:
    call = READS[name]
    with db.engine.connect() as connection:
        expected = call(db.log, connection)
    with db.sessions() as session:
        assert call(db.log, session) == expected
    with Session(db.engine) as stranger:
        assert call(db.log, stranger) == expected
    scoped = scoped_session(db.sessions)
    assert call(db.log, scoped) == expected
    scoped.remove()
    assert call(db.log, db.engine) == expected
    db.assert_pool_is_clean()


@pytest.mark.parametrize("name", INSIDE)
def test_what_writes_takes_a_session_and_no_engine(db: LoggedDatabase, name: str) -> None:
    call = INSIDE[name]
    if name != "retire_key":
        with db.sessions() as session:
            call(db.log, session)
            assert session.in_transaction()
    with pytest.raises(ConfigurationError, match="was given an engine") as caught:
        call(db.log, db.engine)
    assert "engine.begin() as connection" in caught.value.hint


@pytest.mark.parametrize("name", ENGINES)
def test_what_opens_transactions_takes_an_engine_alone(db: LoggedDatabase, name: str) -> None:
    call = ENGINES[name]
    with db.engine.connect() as connection, db.sessions() as session:
        for given in (connection, session):
            with pytest.raises(ConfigurationError, match="takes an engine") as caught:
                call(db.log, given)
            assert "connection.engine" in caught.value.hint
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        call(db.log, create_async_engine(db.engine.url))
    with pytest.raises(ConfigurationError, match="not an engine"):
        call(db.log, 7)


@pytest.mark.parametrize("name", [*READS, *INSIDE])
async def test_asynchronous_ones_are_told_how(db: LoggedDatabase, name: str) -> None:
    call = {**READS, **INSIDE}[name]
    engine = create_async_engine(db.engine.url, poolclass=NullPool)
    async with engine.connect() as connection, AsyncSession(engine) as session:
        told = [
            (connection, "await connection.run_sync"),
            (session, "await session.run_sync"),
            (engine, "await connection.run_sync"),
            (async_sessionmaker(engine), "run_sync"),
        ]
        for given, hint in told:
            with pytest.raises(ConfigurationError, match="run_sync") as caught:
                call(db.log, given)
            assert hint in caught.value.hint
        # To rebuild tables takes COPY, which needs psycopg's blocking connection.
        if name in READS and name != "verify":
            found = await session.run_sync(lambda s: call(db.log, s))
            assert found == await connection.run_sync(lambda c: call(db.log, c))


@pytest.mark.parametrize("name", [*READS, *INSIDE])
def test_anything_else_is_refused_by_name(db: LoggedDatabase, name: str) -> None:
    for given in (db.sessions, "postgresql://", 7, Account, object()):
        with pytest.raises(ConfigurationError, match="is not a connection"):
            {**READS, **INSIDE}[name](db.log, given)


def test_a_session_of_several_databases(db: LoggedDatabase, tmp_path: Path) -> None:
    other = sa.create_engine(f"sqlite:///{tmp_path}/x")
    with Session(binds={Account: db.engine, sa.Table("x", sa.MetaData()): other}) as session:
        session.connection(bind_arguments={"bind": other})
        assert READS["history"](db.log, session) == READS["history"](db.log, db.engine)
    with Session() as nothing, pytest.raises(ConfigurationError, match="gives no connection"):
        db.log.verify(nothing)


def test_an_engine_keeps_its_connection_no_longer_than_it_is_read(db: LoggedDatabase) -> None:
    entries = db.log.read(db.engine)
    assert next(entries).aggregate == "account/1"
    entries.close()
    db.assert_pool_is_clean()


# -- places ---------------------------------------------------------------------------------------


def test_a_place_is_a_position_or_a_time_everywhere(db: LoggedDatabase) -> None:
    log = db.log
    with db.engine.connect() as connection:
        first, second = log.read(connection)
        between = first.recorded_at + (second.recorded_at - first.recorded_at) / 2
        soon = datetime.now(UTC) + timedelta(hours=1)

        def read(**places: Any) -> list[int]:
            found = [e.position for e in log.read(connection, **places)]
            assert [e.position for e in log.tail(connection, **places)] == found
            assert [e.position for e in log.tail(connection, last=None, **places)] == found
            return found

        assert read(after=between) == [second.position]
        assert read(through=between) == [first.position]
        assert read(after=between, through=first.position) == []
        assert read(after=soon) == []
        for at in (between, first.position):
            row = log.as_of(connection, Account, 1, at=at)
            assert row is not None
            assert row["balance"] == 1
            assert log.as_of(connection, Account, key=1, at=at) == row
    with db.engine.begin() as connection:
        assert log.replay(connection, through=between).entries == 1


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (datetime(2025, 1, 31), "no time zone"),
        ("2025-01-31", "not a place"),
        (True, "not a place"),
        (1.5, "not a place"),
        (timedelta(hours=1), "not a place"),
    ],
)
def test_what_is_no_place_is_refused(db: LoggedDatabase, place: Any, match: str) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda c: list(db.log.read(c, after=place)),
        lambda c: list(db.log.read(c, through=place)),
        lambda c: list(db.log.tail(c, after=place)),
        lambda c: list(db.log.tail(c, through=place)),
        lambda c: db.log.replay(c, through=place),
        lambda c: db.log.as_of(c, Account, 1, at=place),
        lambda c: db.log.restore(make_archive(db), c, through=place),
    ]
    for call in calls:
        with db.engine.connect() as connection, pytest.raises(ConfigurationError, match=match):
            call(connection)


def make_archive(db: LoggedDatabase) -> Any:
    archive = open_archive("memory://")
    db.log.sync(db.engine, archive)
    return archive


# -- factories and sessions -----------------------------------------------------------------------


async def test_run_is_given_what_makes_sessions(db: LoggedDatabase) -> None:
    async def work(_session: Any) -> None: ...

    blocking: Any = db.sessions
    asynchronous: Any = async_sessionmaker(create_async_engine(db.engine.url))
    with pytest.raises(ConfigurationError, match="run was given an async_sessionmaker"):
        db.log.run(asynchronous, lambda _: None)
    with pytest.raises(ConfigurationError, match="run_async was given a sessionmaker"):
        await db.log.run_async(blocking, work)
    wrong: list[Any] = [db.engine, blocking(), 7]
    for given in wrong:
        with pytest.raises(ConfigurationError, match="makes no sessions"):
            db.log.run(given, lambda _: None)


@pytest.mark.parametrize(
    "call",
    [
        lambda log, s: log.annotate(s, actor="x"),
        lambda log, s: log.receipts(s),
        lambda log, s: log.lock(s, "account/1"),
        lambda log, s: log.take_ticket(s, "account/1"),
    ],
)
def test_what_is_no_session_is_refused(
    db: LoggedDatabase, call: Callable[[Oplog, Any], Any]
) -> None:
    for given in (db.engine, db.sessions, Account, Account(id=1), None, "x"):
        with pytest.raises(ConfigurationError, match="is not a session"):
            call(db.log, given)


async def test_resolving_asks_for_its_kind_of_engine(db: LoggedDatabase) -> None:
    with pytest.raises(ConfigurationError, match="not an AsyncEngine"):
        await db.log.resolve_async("key", db.engine)
