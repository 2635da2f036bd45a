"""Sessions, errors, listeners and several logs on connections in AUTOCOMMIT."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from oplog import Entry, Operation, Oplog, TypeCatalog
from oplog.capture.writer import RecordWriter
from oplog.errors import (
    ConfigurationError,
    NotCapturableError,
    TicketConflictError,
    UnloggedWriteError,
)
from tests.logged import open_logged
from tests.postgres.autocommitted import (
    DOC,
    ITEM,
    NOTE,
    Base,
    Database,
    Doc,
    Item,
    open_database,
    status,
)
from tests.support import assert_replays, install_log

pytestmark = pytest.mark.postgres


@pytest.fixture
def guarded(engine: Engine) -> Iterator[Database]:
    yield from open_database(engine, guarded=True)


@pytest.fixture(params=["guarded", "unguarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from open_database(engine, guarded=request.param == "guarded")


@pytest.mark.parametrize("kind", ["engine", "options", "connection"])
def test_sessions(db: Database, kind: str) -> None:
    engine = db.auto
    if kind == "options":
        engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
    sessions = sessionmaker(db.engine if kind == "connection" else engine)
    db.log.attach(sessions)
    with sessions() as session:
        if kind == "connection":
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        db.log.annotate(session, actor="ada")
        session.add_all([Item(id=1, name="a"), Item(id=2, name="b")])
        session.flush()
        if db.count("doc") == 0:
            session.add(Doc(id=1, item_id=1))
        session.flush()
        assert {e.metadata["actor"][0] for e in db.read()} == {"ada"}
        # The statement is what commits, and has a record.
        assert len({entry.position for entry in db.read()}) == 2
        session.get_one(Item, 1).name = "c"
        session.commit()
        receipts = db.log.receipts(session)
        assert {"item/1", "item/2", "doc/1"} <= {r.aggregate for r in receipts}
        session.delete(session.get_one(Doc, 1))
        session.commit()
    db.check()


def test_a_rollback_takes_nothing_back(db: Database) -> None:
    sessions = sessionmaker(db.auto)
    db.log.attach(sessions)
    with sessions() as session:
        session.add(Item(id=1, name="a"))
        session.flush()
        session.rollback()
    assert db.count("item") == 1
    db.check()


def test_errors_are_as_without_the_log(db: Database) -> None:
    sessions = sessionmaker(db.auto)
    db.log.attach(sessions)
    with db.auto.connect() as connection:
        connection.execute(sa.insert(ITEM).values(id=1, name="a"))
        with pytest.raises(IntegrityError, match="item_pkey"):
            connection.execute(sa.insert(ITEM).values(id=1, name="b"))
        assert status(connection) == "IDLE"
        with pytest.raises(IntegrityError, match="doc_item_id_fkey"):
            connection.execute(sa.insert(DOC).values(id=1, item_id=77, version=1))
        assert status(connection) == "IDLE"
        with pytest.raises(ProgrammingError, match="nowhere"):
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(ITEM), [{"id": n, "name": "x"} for n in (5, 6, 7)])
        connection.execute(sa.insert(ITEM).values(id=2, name="b"))
    with sessions() as session:
        doc = Doc(id=5)
        session.add(doc)
        session.flush()
        session.connection().execute(sa.update(DOC).where(DOC.c.id == 5).values(version=9))
        doc.item_id = 1
        with pytest.raises(StaleDataError):
            session.flush()
    assert (db.count("item"), db.count("doc")) == (2, 1)
    db.check()


def test_what_is_refused_is_not_written(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row and its record commit together or not at all."""

    def refuse(*given: Any, **options: Any) -> Any:
        raise TicketConflictError("as another would have been first", hint="")

    with db.auto.connect() as connection:
        connection.execute(sa.insert(ITEM).values(id=1, name="a"))
        with monkeypatch.context() as patched:
            patched.setattr(RecordWriter, "send", refuse)
            with pytest.raises(TicketConflictError):
                connection.execute(sa.insert(ITEM).values(id=2, name="b"))
        assert status(connection) == "IDLE"
        connection.execute(sa.insert(ITEM).values(id=3, name="c"))
    assert db.tell() == ["CREATE item 1", "CREATE item 3"]
    db.check()


def test_a_listener_that_raises(db: Database) -> None:
    with db.auto.connect() as connection:

        def fail(*given: Any) -> None:
            raise RuntimeError("of the application")

        for name in ("after_cursor_execute", "after_execute"):
            event.listen(connection, name, fail)
            with pytest.raises(RuntimeError):
                connection.execute(sa.insert(ITEM).values(id=1, name="a"))
            event.remove(connection, name, fail)
    with db.auto.connect() as connection:
        connection.execute(sa.insert(ITEM).values(id=2, name="b"))
    db.check()


def make_auto(engine: Engine, *, skip_rollback: bool) -> Engine:
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_size": 1}
    try:
        return sa.create_engine(engine.url, skip_autocommit_rollback=skip_rollback, **options)
    except TypeError:
        # Before SQLAlchemy 2.0.43.
        return sa.create_engine(engine.url, **options)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("what", ["raises", "writes"])
def test_a_listener_that_came_before_the_log(engine: Engine, what: str, skip: bool) -> None:
    """It keeps the log from seeing the statement's end, or writes within it."""
    opened = open_logged(engine, Base, guarded=True, seed="")
    auto = make_auto(engine, skip_rollback=skip)
    insert = sa.insert(NOTE).values(text="of a listener")
    on = True

    @event.listens_for(auto, "after_execute")
    def listen(connection: Connection, *given: Any) -> None:
        nonlocal on
        if on and given[0] is not insert:
            on = False
            if what == "raises":
                raise RuntimeError("of the application")
            connection.execute(insert)

    opened.log.attach(auto)
    with auto.connect() as connection:
        expected = RuntimeError if what == "raises" else NotCapturableError
        with pytest.raises(expected):
            connection.execute(sa.insert(ITEM).values(id=1, name="a"))
        if what == "raises":
            with pytest.raises(NotCapturableError, match="had ended"):
                connection.execute(sa.insert(ITEM).values(id=2, name="b"))
        on = what == "raises"
        with pytest.raises(expected) if on else nullcontext():
            connection.execute(sa.insert(ITEM).values(id=4, name="d"))
    with auto.connect() as connection:
        if skip and what == "raises":
            # Its connection came back from the pool in the transaction of the one before.
            with pytest.raises(NotCapturableError, match="had ended"):
                connection.execute(sa.insert(ITEM).values(id=5, name="e"))
        connection.execute(sa.insert(ITEM).values(id=3, name="c"))
        assert status(connection) == "IDLE"
    auto.dispose()
    assert (
        opened.tell() == ["CREATE item 3"]
        if what == "raises"
        else ["CREATE item 4", "CREATE item 3"]
    )
    opened.assert_replays()


def test_routines_and_transactions_by_hand_are_refused(guarded: Database) -> None:
    with guarded.auto.connect() as connection:
        with pytest.raises(UnloggedWriteError) as refused:
            connection.exec_driver_sql("DO 'BEGIN INSERT INTO note (text) VALUES (1); END'")
        assert "AUTOCOMMIT" in refused.value.hint
        connection.exec_driver_sql("BEGIN")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            connection.execute(sa.insert(ITEM).values(id=1, name="a"))
        connection.exec_driver_sql("ROLLBACK")
    assert (guarded.count("note"), guarded.count("item")) == (0, 0)
    guarded.check()


@pytest.mark.parametrize("db", ["unguarded"], indirect=True)
def test_a_statement_that_is_not_known_without_a_guard(db: Database) -> None:
    with db.auto.connect() as connection, pytest.raises(NotCapturableError):
        connection.execute(sa.update(ITEM).values(n=1))
    db.check()


def test_connections_of_a_factory(guarded: Database) -> None:
    """As in transactions, what guards record of an attached factory's engine is logged."""
    other = sa.create_engine(guarded.engine.url, isolation_level="AUTOCOMMIT")
    sessions = sessionmaker(other)
    guarded.log.attach(sessions)
    with sessions() as session:
        session.add(Item(id=1, name="a"))
        session.commit()
    with other.connect() as connection:
        connection.execute(sa.insert(ITEM).values(id=2, name="b"))
        connection.exec_driver_sql("UPDATE item SET n = 1")
        assert [r.aggregate for r in guarded.log.receipts(connection)]
    stranger = sessionmaker(other)
    with stranger() as session, pytest.raises(UnloggedWriteError):
        session.execute(sa.insert(ITEM).values(id=3, name="c"))
    other.dispose()
    guarded.check()


def test_two_logs(guarded: Database) -> None:
    with guarded.engine.begin() as connection:
        install_log(connection, schema="audit")
    audit = Oplog(TypeCatalog.from_models(Base), plaintext=True, schema="audit")
    audit.attach(guarded.auto)
    with guarded.auto.connect() as connection:
        connection.execute(sa.insert(ITEM), [{"id": n, "name": str(n)} for n in range(5)])
        connection.execute(sa.update(ITEM).where(ITEM.c.id == 1).values(n=1))
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(ITEM).values(id=1, name="z"))
        connection.execute(sa.delete(ITEM).where(ITEM.c.id == 2))
        assert status(connection) == "IDLE"
    guarded.check()
    assert_replays(audit, guarded.engine)


def test_what_needs_a_transaction(db: Database) -> None:
    with db.auto.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            db.log.annotate(connection, idempotency_key="once")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            db.log.lock(connection, "item/1")
        connection.execute(sa.insert(ITEM).values(id=1, name="a"))
    db.check()


def test_a_run(db: Database) -> None:
    """Its work would be repeated after it had committed."""
    sessions = sessionmaker(db.auto)
    db.log.attach(sessions)

    def work(session: Session) -> None:
        session.add(Item(id=1, name="a"))

    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        db.log.run(sessions, work)
    assert db.count("item") == 0
    db.check()


def test_writers_of_one_row(db: Database) -> None:
    """Nobody conflicts: each statement waits for the row, and reads nothing before it."""
    with db.auto.connect() as connection:
        connection.execute(sa.insert(ITEM).values(id=1, name="a", n=0))
    auto = sa.create_engine(db.engine.url, isolation_level="AUTOCOMMIT")
    db.log.attach(auto)

    def write(number: int) -> None:
        with auto.connect() as connection:
            for _ in range(20):
                connection.execute(
                    sa.update(ITEM).where(ITEM.c.id == 1).values(n=ITEM.c.n + number)
                )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, (1, 10, 100)))
    with auto.connect() as connection:
        assert connection.execute(sa.select(ITEM.c.n)).scalar_one() == 20 * 111
    auto.dispose()
    assert len(db.read()) == 61
    db.check()


def test_receipts_do_not_grow_for_ever(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session or connection in AUTOCOMMIT may never end its transaction."""
    monkeypatch.setattr("oplog.capture.frame._MOST_RECEIPTS", 3)
    sessions = sessionmaker(db.auto)
    db.log.attach(sessions)
    with sessions() as session:
        for n in range(5):
            session.execute(sa.insert(ITEM).values(id=n, name=str(n)))
        session.commit()
        assert [r.aggregate for r in db.log.receipts(session)] == ["item/2", "item/3", "item/4"]
        session.execute(sa.insert(ITEM), [{"id": n, "name": str(n)} for n in range(10, 15)])
        session.commit()
        assert len(db.log.receipts(session)) == 5
    with db.auto.connect() as connection:
        for n in (5, 6):
            connection.execute(sa.insert(ITEM).values(id=n, name=str(n)))
        assert [r.aggregate for r in db.log.receipts(connection)] == ["item/6"]
    db.check()


def test_explicit_entries_and_tickets(db: Database) -> None:
    sessions = sessionmaker(db.auto)
    db.log.attach(sessions)
    with sessions() as session:
        ticket = db.log.take_ticket(session, "item/1")
        create = Operation.create("item", key={"id": 1}, fields={"id": 1, "name": "a", "n": 7})
        db.log.append(session, Entry("item/1", [create]), ticket)
        session.commit()
    assert db.tell() == ["CREATE item 1"]
    db.assert_pool_is_clean()


async def test_async(db: Database, database_url: URL) -> None:
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)
    async with sessions() as session:
        db.log.annotate(session, actor="ada")
        session.add_all([Item(name="a"), Item(name="b")])
        await session.flush()
        assert db.count("item") == 2
        session.add(Item(name="a"))
        with pytest.raises(IntegrityError):
            await session.flush()
        await session.rollback()
        (await session.get_one(Item, 1)).n = 4
        await session.commit()
    await engine.dispose()
    assert {entry.metadata["actor"][0] for entry in db.read()[:2]} == {"ada"}
    db.check()


async def test_async_engine(guarded: Database, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    guarded.log.attach(engine)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(sa.insert(ITEM), [{"name": "a"}, {"name": "b"}])
        await connection.execute(sa.text("UPDATE item SET n = 1"))
        with pytest.raises(IntegrityError):
            await connection.execute(sa.insert(ITEM).values(id=1, name="c"))
        await connection.execute(sa.insert(ITEM).values(id=9, name="d"))
    await engine.dispose()
    guarded.check()


def test_ordinary_transactions_are_as_before(guarded: Database) -> None:
    guarded.sent.clear()
    engine = guarded.auto.execution_options(isolation_level="READ COMMITTED")
    with engine.begin() as connection:
        connection.execute(sa.insert(ITEM).values(id=1, name="a"))
        connection.exec_driver_sql("UPDATE item SET n = 1")
        assert status(connection) == "INTRANS"
    assert len({entry.position for entry in guarded.read()}) == 1
    guarded.check()
