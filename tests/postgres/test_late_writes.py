"""Rows that hooks of an application write while a flush or a commit is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import NotCapturableError
from oplog.schema.tables import create_statements
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


TABLE = Base.metadata.tables["item"]
LATE = TABLE.insert().values(id=100, name="late")
Hook = Callable[[Any], object]


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    found = open_logged(engine, Base, guarded=request.param)
    found.log.detach(found.sessions)
    return found


@contextmanager
def hooked(target: Any, name: str, write: Hook, **options: Any) -> Iterator[None]:
    """The first time that the event happens, `write` gets the session or connection.

    A hook that wrote each time would write in the transaction of its own rows as well.
    """
    done: list[object] = []

    def hear(first: Any, *rest: Any) -> None:
        if not done:
            done.append(first)
            write(rest[-1] if name == "after_begin" else first)

    event.listen(target, name, hear, **options)
    try:
        yield
    finally:
        event.remove(target, name, hear)


def add(session: Session) -> None:
    session.add(Item(id=100, name="late"))


def flush(session: Session) -> None:
    add(session)
    session.flush()


def execute(target: Session | Connection) -> None:
    target.execute(LATE)


def nest(session: Session) -> None:
    with session.begin_nested():
        add(session)


def nest_below(connection: Connection) -> None:
    with connection.begin_nested():
        connection.execute(LATE)
    savepoint = connection.begin_nested()
    connection.execute(TABLE.insert().values(id=101, name="gone"))
    savepoint.rollback()


SESSION_HOOKS: list[tuple[str, Hook]] = [
    *(("before_commit", hook) for hook in (add, flush, execute, nest)),
    ("before_flush", add),
    ("after_flush", add),
    ("after_flush", execute),
    ("after_flush_postexec", add),
    ("after_begin", execute),
    ("after_transaction_end", execute),
]
ENGINE_HOOKS: list[Hook] = [execute, nest_below]


@pytest.mark.parametrize("early", [False, True], ids=["after attach", "before attach"])
@pytest.mark.parametrize(("name", "write"), SESSION_HOOKS)
def test_a_hook_of_the_session(db: LoggedDatabase, name: str, write: Hook, early: bool) -> None:
    if not early:
        db.log.attach(db.sessions)
    with hooked(db.sessions, name, write):
        if early:
            db.log.attach(db.sessions)
        with db.sessions() as session:
            session.add(Item(id=1, name="own"))
            session.commit()
            receipts = db.log.receipts(session)
            session.commit()
    assert sorted(db.tell()) == ["CREATE item 1", "CREATE item 100"]
    assert {r.aggregate for r in receipts} >= {"item/1"}
    if name != "after_transaction_end":
        assert len({entry.position for entry in db.read()}) == 1
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize("early", [False, True], ids=["after attach", "before attach"])
@pytest.mark.parametrize("session", [False, True], ids=["core", "orm"])
@pytest.mark.parametrize("write", ENGINE_HOOKS)
def test_a_commit_hook_of_the_engine(
    db: LoggedDatabase, write: Hook, session: bool, early: bool
) -> None:
    target = db.sessions if session else db.engine
    if not early:
        db.log.attach(target)
        with db.engine.connect() as connection:
            # The log listens to an engine from its first use on.
            connection.execute(sa.select(1))
    with hooked(db.engine, "commit", write):
        if early:
            db.log.attach(target)
        if session:
            with db.sessions.begin() as own:
                own.add(Item(id=1, name="own"))
        else:
            with db.engine.begin() as connection:
                connection.execute(TABLE.insert().values(id=1, name="own"))
    assert db.tell() == ["CREATE item 1", "CREATE item 100"]
    assert len({entry.transaction_id for entry in db.read()}) == 1
    db.assert_replays()
    db.assert_pool_is_clean()


def test_a_commit_hook_that_the_log_precedes_writes_a_further_record(engine: Engine) -> None:
    """Nothing is committed before the last listener was heard."""
    db = open_logged(engine, Base, guarded=True)
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="own"))

    def write(connection: Connection) -> None:
        with engine.connect() as other:
            seen.append(other.exec_driver_sql("SELECT count(*) FROM item").scalar_one())
        connection.exec_driver_sql("INSERT INTO item VALUES (100, 'late')")

    seen: list[int] = []
    with hooked(engine, "commit", write), db.sessions() as session:
        db.log.annotate(session, reason="both records")
        session.add(Item(id=2, name="own"))
        session.commit()
        receipts = db.log.receipts(session)
    assert seen == [1]
    entries = db.read()[1:]
    assert [entry.aggregate for entry in entries] == ["item/2", "item/100"]
    assert [entry.metadata["reason"] for entry in entries] == [["both records"]] * 2
    assert [r.aggregate for r in receipts] == ["item/2", "item/100"]
    assert len({r.record_id for r in receipts}) == 2
    db.assert_replays()


def test_a_hook_that_fails_commits_nothing(db: LoggedDatabase) -> None:
    db.log.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="own"))

    def write(connection: Connection) -> None:
        connection.execute(TABLE.update().where(TABLE.c.id == 1).values(name="late"))
        raise NotCapturableError("no")

    session = db.sessions()
    with hooked(db.engine, "commit", write):
        session.add(Item(id=2, name="own"))
        with pytest.raises(NotCapturableError):
            session.commit()
    session.invalidate()
    assert db.tell() == ["CREATE item 1"]
    db.assert_replays()


def test_hooks_of_mappers_and_of_execution(db: LoggedDatabase) -> None:
    db.log.attach(db.sessions)

    def insert(mapper: Any, connection: Connection, target: Item) -> None:
        if target.id == 1:
            connection.execute(LATE)

    def execute_more(state: Any) -> None:
        if state.is_select and not seen:
            seen.append(state)
            state.session.execute(TABLE.insert().values(id=101, name="read"))

    seen: list[Any] = []
    event.listen(Item, "after_insert", insert)
    event.listen(db.sessions, "do_orm_execute", execute_more)
    try:
        with db.sessions.begin() as session:
            session.add(Item(id=1, name="own"))
        with db.sessions.begin() as session:
            session.scalars(sa.select(Item)).all()
    finally:
        event.remove(Item, "after_insert", insert)
    assert db.tell() == ["CREATE item 1", "CREATE item 100", "CREATE item 101"]
    db.assert_replays()


@pytest.mark.parametrize("name", ["before_commit", "after_flush_postexec"])
@pytest.mark.parametrize("mode", ["create_savepoint", "control_fully", "rollback_only"])
def test_a_hook_in_somebody_elses_transaction(db: LoggedDatabase, mode: str, name: str) -> None:
    db.log.attach(db.sessions)
    with hooked(db.sessions, name, add), db.engine.connect() as connection:
        outer = connection.begin()
        with db.sessions(bind=connection, join_transaction_mode=mode) as session:
            session.add(Item(id=1, name="own"))
            session.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar() == 2
        if outer.is_active:
            outer.commit()
    assert sorted(db.tell()) == ["CREATE item 1", "CREATE item 100"]
    db.assert_replays()


def test_the_hook_of_a_run_with_an_idempotency_key(db: LoggedDatabase) -> None:
    db.log.attach(db.sessions)

    def work(session: Session) -> None:
        session.add(Item(id=1, name="own"))

    with hooked(db.sessions, "before_commit", flush):
        db.log.run(db.sessions, work, idempotency_key="once")
        db.log.run(db.sessions, work, idempotency_key="once")
    assert sorted(db.tell()) == ["CREATE item 1", "CREATE item 100"]
    db.assert_replays()


def test_hooks_of_asynchronous_sessions(db: LoggedDatabase) -> None:
    async def main() -> None:
        engine = create_async_engine(db.engine.url)
        sessions = async_sessionmaker(engine)
        db.log.attach(sessions)
        target = sessions.kw["sync_session_class"]
        with (
            hooked(target, "before_commit", add),
            hooked(engine.sync_engine, "commit", lambda c: c.execute(MORE)),
        ):
            async with sessions.begin() as session:
                session.add(Item(id=1, name="own"))
        await engine.dispose()

    asyncio.run(main())
    assert sorted(db.tell()) == ["CREATE item 1", "CREATE item 100", "CREATE item 101"]
    db.assert_replays()


MORE = TABLE.insert().values(id=101, name="later")


def test_two_logs_of_one_engine(db: LoggedDatabase) -> None:
    """The one that is heard last commits, and what a hook after both writes is in both."""
    db.execute(*create_statements(schema="second"))
    second = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate(), schema="second")
    db.log.attach(db.sessions)
    second.attach(db.sessions)
    with hooked(db.sessions, "before_commit", add), db.sessions.begin() as session:
        session.add(Item(id=1, name="own"))
    for log in (db.log, second):
        with db.engine.connect() as connection:
            assert len(list(log.read(connection))) == 2


# -- statements that are rewritten on their way


def rewrite(engine: Engine, change: Callable[[str, Any], tuple[str, Any]]) -> Callable[..., Any]:
    def hear(connection: Any, cursor: Any, statement: str, *rest: Any) -> tuple[str, Any]:
        parameters = rest[0]
        return (
            change(statement, parameters)
            if '"item"' in statement or " item" in statement
            else (
                statement,
                parameters,
            )
        )

    event.listen(engine, "before_cursor_execute", hear, retval=True)
    return hear


def comment(statement: str, parameters: Any) -> tuple[str, Any]:
    return f"/* app */ {statement} -- traceparent='00'", parameters


def upper(statement: str, parameters: Any) -> tuple[str, Any]:
    return statement.replace("SET name=%(name)s", "SET name=upper(%(name)s)"), parameters


def swap(statement: str, parameters: Any) -> tuple[str, Any]:
    if isinstance(parameters, dict) and "name" in parameters:
        parameters = {**parameters, "name": "swapped"}
    return statement, parameters


def swap_in_place(statement: str, parameters: Any) -> tuple[str, Any]:
    if isinstance(parameters, dict) and "name" in parameters:
        parameters["name"] = "swapped"
    return statement, parameters


def write(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.get_one(Item, 1).name = "changed"


def prepare(db: LoggedDatabase) -> None:
    db.log.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add_all([Item(id=1, name="own"), Item(id=2, name="own")])
    db.log.detach(db.sessions)


@pytest.mark.parametrize("early", [False, True], ids=["after attach", "before attach"])
def test_comments_around_statements(engine: Engine, early: bool) -> None:
    db = open_logged(engine, Base)
    own = sa.create_engine(engine.url)
    sessions = sessionmaker(own)
    if early:
        rewrite(own, comment)
    db.log.attach(sessions)
    with sessions.begin() as session:
        session.add_all([Item(id=1, name="own"), Item(id=2, name="own")])
    if not early:
        rewrite(own, comment)
    write(sessions)
    with sessions.begin() as session:
        session.add_all([Item(id=n, name="own") for n in range(3, 6)])
        session.execute(sa.update(Item), [{"id": 1, "name": "a"}, {"id": 9, "name": "b"}][:1])
    assert len(db.tell()) == 7
    db.assert_replays()
    own.dispose()


@pytest.mark.parametrize("change", [upper, swap, swap_in_place])
def test_a_rewritten_statement_is_never_logged_as_it_was(
    db: LoggedDatabase, change: Callable[[str, Any], tuple[str, Any]]
) -> None:
    """A listener after the log: refused at first, then left to the guard."""
    prepare(db)
    own = sa.create_engine(db.engine.url)
    sessions = sessionmaker(own)
    db.log.attach(sessions)
    with sessions() as session:
        session.scalars(sa.select(Item)).all()
    rewrite(own, change)
    with pytest.raises(NotCapturableError, match="rewrote") as caught:
        write(sessions)
    assert db.count("item WHERE name = 'own'") == 2
    if caught.value.retryable:
        write(sessions)
        assert db.read_last().fields["name"] in {"CHANGED", "swapped"}
    db.assert_replays()
    own.dispose()


@pytest.mark.parametrize("change", [upper, swap, swap_in_place])
def test_a_listener_before_the_log(
    engine: Engine, change: Callable[[str, Any], tuple[str, Any]]
) -> None:
    """The guard tells what was written."""
    db = open_logged(engine, Base, guarded=True)
    prepare(db)
    own = sa.create_engine(engine.url)
    sessions = sessionmaker(own)
    rewrite(own, change)
    db.log.attach(sessions)
    write(sessions)
    assert db.read_last().fields["name"] in {"CHANGED", "swapped"}
    db.assert_replays()
    own.dispose()


@pytest.mark.parametrize("guarded", [False, True])
def test_batches_that_are_rewritten(engine: Engine, guarded: bool) -> None:
    """A list of rows is sent in statements of its own text."""
    db = open_logged(engine, Base, guarded=guarded)
    own = sa.create_engine(engine.url)
    sessions = sessionmaker(own)

    def change(statement: str, parameters: Any) -> tuple[str, Any]:
        if isinstance(parameters, dict):
            parameters = {k: "swapped" if v == "own" else v for k, v in parameters.items()}
        return statement, parameters

    rewrite(own, change)
    db.log.attach(sessions)
    rows = [{"id": n, "name": "own"} for n in range(1, 5)]
    if guarded:
        with sessions.begin() as session:
            session.execute(sa.insert(Item).returning(Item.id), rows)
        assert len(db.tell()) == 4
    else:
        with pytest.raises(NotCapturableError, match="rewrote"), sessions.begin() as session:
            session.execute(sa.insert(Item).returning(Item.id), rows)
        assert db.count("item") == 0
    db.assert_replays()
    own.dispose()
