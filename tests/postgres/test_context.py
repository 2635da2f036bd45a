"""Who and why from a context: what follows where, what goes first, and what is refused."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Oplog, carry_context, context, current_context
from oplog.errors import ConfigurationError, InvalidMetadataError, MissingMetadataError
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True)


def write(db: LoggedDatabase, key: int) -> None:
    with db.sessions.begin() as session:
        session.add(Note(id=key))


def read_metadata(db: LoggedDatabase) -> dict[int, dict[str, list[str]]]:
    """By the key of the note that was written, in the order of the log."""
    return {
        int(operation.key["id"]): dict(entry.metadata)
        for entry in db.read()
        for operation in entry.operations
    }


def reopen(db: LoggedDatabase, **settings: Any) -> LoggedDatabase:
    """The same database with a log of other settings."""
    db.log.detach(db.sessions)
    log = Oplog(db.log.catalog, keyring=db.log.keyring, **settings)
    sessions = sessionmaker(db.engine)
    log.attach(sessions)
    return LoggedDatabase(db.engine, log, sessions)


def test_every_commit_inside_has_it(db: LoggedDatabase) -> None:
    write(db, 1)
    with context(actor="ada", reason=["import", "night"]):
        write(db, 2)
        with context(actor="bob", request="r-1"):
            write(db, 3)
        write(db, 4)
    write(db, 5)
    outer = {"actor": ["ada"], "reason": ["import", "night"]}
    assert read_metadata(db) == {
        1: {},
        2: outer,
        3: outer | {"actor": ["bob"], "request": ["r-1"]},
        4: outer,
        5: {},
    }
    with db.engine.connect() as connection:
        found = db.log.read(connection, metadata={"actor": "ada"})
        assert [entry.aggregate for entry in found] == ["note/2", "note/4"]


def test_what_a_transaction_says_itself_goes_first(db: LoggedDatabase) -> None:
    with context(actor="ada", request="r-1"), db.sessions.begin() as session:
        session.add(Note(id=1))
        db.log.annotate(session, actor="bob")
        savepoint = session.begin_nested()
        db.log.annotate(session, request="inner")
        savepoint.rollback()
    assert read_metadata(db)[1] == {"actor": ["bob"], "request": ["r-1"]}


def test_a_transaction_has_what_is_in_force_at_its_commit(db: LoggedDatabase) -> None:
    session = db.sessions()
    with context(actor="ada"):
        session.add(Note(id=1))
        session.flush()
    with context(actor="bob"):
        session.commit()
    session.close()
    assert read_metadata(db)[1] == {"actor": ["bob"]}


def test_what_is_known_late_is_asked_for_at_commit(db: LoggedDatabase) -> None:
    user: dict[str, str | None] = {"actor": None}
    with context(lambda: user), db.sessions.begin() as session:
        session.add(Note(id=1))
        user["actor"] = "ada"
    with context(lambda: user):
        user["actor"] = None
        write(db, 2)
    assert read_metadata(db) == {1: {"actor": ["ada"]}, 2: {}}


def test_savepoints_have_what_is_in_force_at_the_commit(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        with context(actor="ada"), session.begin_nested():
            session.add(Note(id=1))
        with context(actor="bob"):
            nested = session.begin_nested()
            session.add(Note(id=2))
            session.flush()
            nested.rollback()
        with context(actor="eve"):
            session.add(Note(id=3))
            session.commit()
    assert read_metadata(db) == {1: {"actor": ["eve"]}, 3: {"actor": ["eve"]}}


def write_and_fail(db: LoggedDatabase, key: int) -> None:
    write(db, key)
    raise InterruptedError


def test_an_error_restores_what_was_in_force(db: LoggedDatabase) -> None:
    with context(actor="ada", request="r-1"):
        with pytest.raises(InterruptedError), context(actor="bob", step="two"):
            write_and_fail(db, 1)
        write(db, 2)
    assert current_context() == {}
    assert read_metadata(db) == {
        1: {"actor": ["bob"], "request": ["r-1"], "step": ["two"]},
        2: {"actor": ["ada"], "request": ["r-1"]},
    }


def fail() -> dict[str, str]:
    raise LookupError("no user")


@pytest.mark.parametrize(
    ("describe", "error"),
    [(fail, LookupError), (lambda: {"actor": 7}, InvalidMetadataError)],
    ids=["raises", "gives what cannot be stored"],
)
def test_where_nobody_can_say_who_nothing_is_committed(
    db: LoggedDatabase, describe: Callable[[], Any], error: type[Exception]
) -> None:
    with pytest.raises(error), context(describe):
        write(db, 1)
    assert db.count("note") == 0
    write(db, 1)
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize("value", ["", [], 7, "\x00", "x" * 1025])
def test_bad_metadata_is_refused_where_it_is_given(value: Any) -> None:
    if value == "":
        with context(actor=value):
            assert current_context() == {"actor": [""]}
        return
    with pytest.raises(InvalidMetadataError), context(actor=value):
        raise AssertionError("entered")
    assert current_context() == {}


# -- threads and tasks ------------------------------------------------------------------------


def test_threads_have_it_if_it_is_carried(db: LoggedDatabase) -> None:
    with ThreadPoolExecutor(2) as pool, context(actor="ada"):
        pool.submit(write, db, 1).result()
        pool.submit(carry_context(write), db, 2).result()
        carried = carry_context(partial(write, db))
        list(pool.map(carried, [3, 4]))
        job = current_context()
    with context(**job):
        write(db, 5)
    ada = {"actor": ["ada"]}
    assert read_metadata(db) == {1: {}, 2: ada, 3: ada, 4: ada, 5: ada}


def test_a_function_that_is_carried_runs_in_two_threads_at_once() -> None:
    meet = threading.Barrier(2, timeout=60)

    def work() -> dict[str, list[str]]:
        meet.wait()
        return current_context()

    with ThreadPoolExecutor(2) as pool:
        with context(actor="ada"):
            carried = carry_context(work)
        assert [one.result() for one in [pool.submit(carried), pool.submit(carried)]] == [
            {"actor": ["ada"]}
        ] * 2


def test_tasks_do_not_see_one_another(db: LoggedDatabase) -> None:
    engine = create_async_engine(db.engine.url)
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)
    meet = asyncio.Barrier(2)

    async def work(key: int, actor: str) -> None:
        with context(actor=actor):
            async with sessions.begin() as session:
                session.add(Note(id=key))
                await session.flush()
                await meet.wait()
            await asyncio.create_task(add(key + 10))
            await asyncio.to_thread(write, db, key + 20)

    async def add(key: int) -> None:
        async with sessions.begin() as session:
            session.add(Note(id=key))

    async def main() -> None:
        await asyncio.gather(work(1, "ada"), work(2, "bob"))
        await engine.dispose()

    asyncio.run(main())
    db.log.detach(sessions)
    ada, bob = {"actor": ["ada"]}, {"actor": ["bob"]}
    assert read_metadata(db) == {1: ada, 2: bob, 11: ada, 12: bob, 21: ada, 22: bob}


def test_left_in_another_thread_than_entered_says_so() -> None:
    manager = context(actor="ada")
    contextvars.copy_context().run(manager.__enter__)
    with pytest.raises(ConfigurationError, match="entered in one task or thread and left in"):
        manager.__exit__(None, None, None)


def test_the_error_of_the_application_is_not_replaced() -> None:
    manager = context(actor="ada")
    contextvars.copy_context().run(manager.__enter__)
    error = KeyError("of the application")
    assert not manager.__exit__(KeyError, error, None)


# -- settings of a log ------------------------------------------------------------------------


def test_a_log_may_know_who_it_is(db: LoggedDatabase) -> None:
    own = reopen(db, context=lambda: {"actor": "service", "host": "one", "user": None})
    write(own, 1)
    with context(actor="ada"):
        write(own, 2)
    assert read_metadata(own) == {
        1: {"actor": ["service"], "host": ["one"]},
        2: {"actor": ["ada"], "host": ["one"]},
    }


WAYS: list[str] = ["ORM", "bulk", "text", "engine", "AUTOCOMMIT", "by hand"]


def write_in(way: str, db: LoggedDatabase) -> None:
    if way in {"engine", "AUTOCOMMIT"}:
        engine = db.engine
        if way == "AUTOCOMMIT":
            engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
        db.log.attach(engine)
        try:
            with engine.connect() as connection:
                connection.execute(sa.insert(Note), {"id": 1})
                if way == "engine":
                    connection.commit()
        finally:
            db.log.detach(engine)
        return
    with db.sessions.begin() as session:
        if way == "ORM":
            session.add(Note(id=1))
        elif way == "bulk":
            session.execute(sa.insert(Note), [{"id": 1}, {"id": 2}])
        elif way == "text":
            session.execute(sa.text("INSERT INTO note (id) VALUES (1)"))
        else:
            session.execute(sa.text("DELETE FROM note"))
            session.execute(sa.text("INSERT INTO note (id) SELECT 1"))


@pytest.mark.parametrize("way", WAYS)
def test_without_an_actor_nothing_is_committed(db: LoggedDatabase, way: str) -> None:
    strict = reopen(db, require=("actor", "reason"))
    with pytest.raises(MissingMetadataError) as caught:
        write_in(way, strict)
    assert "says nothing of actor, reason, which this log requires" in str(caught.value)
    assert "oplog.context" in caught.value.hint
    assert strict.count("note") == 0
    with context(actor="ada", reason="because"):
        write_in(way, strict)
    assert strict.count("note") > 0
    strict.assert_replays()
    strict.assert_pool_is_clean()


def test_the_requirement_is_of_records_only(db: LoggedDatabase) -> None:
    strict = reopen(db, require=["actor"])
    with strict.sessions.begin() as session:
        assert session.scalars(sa.select(Note)).all() == []
        session.execute(sa.text("UPDATE note SET text = 'x'"))
    with pytest.raises(MissingMetadataError):
        write(strict, 1)
    with strict.sessions.begin() as session:
        session.add(Note(id=1))
        strict.log.annotate(session, actor="ada")
    assert read_metadata(strict) == {1: {"actor": ["ada"]}}


@pytest.mark.parametrize("require", ["actor", [""], [7]])
def test_a_requirement_that_no_transaction_can_meet_is_refused(
    db: LoggedDatabase, require: Iterable[Any]
) -> None:
    with pytest.raises((ConfigurationError, InvalidMetadataError)):
        reopen(db, require=require)
