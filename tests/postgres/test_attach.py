"""Every way of making sessions that can be attached, and what ends with the session."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from unittest import mock

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import (
    ConfigurationError,
    NotCapturableError,
    SchemaDriftError,
    SchemaVersionError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.schema.tables import create_statements
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order
from tests.support import assert_replays, install_log

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES)


@pytest.fixture
def second_engine(database_url: URL) -> Iterator[Engine]:
    """Another engine on the same database; gives up waiting for locks."""
    engine = sa.create_engine(database_url, connect_args={"options": "-c lock_timeout=2s"})
    yield engine
    engine.dispose()


def make(number: int) -> Account:
    return Account(id=number, owner="ada", balance=Decimal(number))


def make_log(schema: str = "oplog") -> Oplog:
    catalog = TypeCatalog.from_models(Base, aggregates=AGGREGATES)
    return Oplog(catalog, keyring=Keyring.generate(), schema=schema)


def test_only_the_attached_sessionmaker_is_logged(db: LoggedDatabase) -> None:
    with Session(db.engine) as session, session.begin():
        session.add(make(1))
    with sessionmaker(db.engine).begin() as session:
        session.add(make(2))
    assert db.read() == []
    with pytest.raises(ConfigurationError, match="attach"):
        db.log.annotate(Session(db.engine), actor="x")


def test_a_session_subclass(db: LoggedDatabase) -> None:
    class Logged(Session):
        pass

    db.log.attach(Logged)
    with Logged(db.engine) as session, session.begin():
        db.log.annotate(session, actor="x")
        session.add(make(1))
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/1"]
    with sessionmaker(db.engine, class_=Logged).begin() as session:
        session.add(make(2))
    assert db.tell() == ["CREATE account 1", "CREATE account 2"]
    db.assert_replays()


def test_a_scoped_session(db: LoggedDatabase) -> None:
    scoped = scoped_session(sessionmaker(db.engine))
    db.log.attach(scoped)
    db.log.annotate(scoped, actor="x")
    scoped.add(make(1))
    scoped.commit()
    assert [r.aggregate for r in db.log.receipts(scoped)] == ["account/1"]
    scoped.remove()
    db.log.annotate(scoped, actor="y")
    scoped.add(make(2))
    scoped.commit()
    scoped.remove()
    assert [e.metadata for e in db.read()] == [{"actor": ["x"]}, {"actor": ["y"]}]
    db.log.detach(scoped)
    scoped.add(make(3))
    scoped.commit()
    scoped.remove()
    assert len(db.read()) == 2


def test_attaching_twice_is_attaching_once(db: LoggedDatabase) -> None:
    db.log.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(make(1))
    assert db.tell() == ["CREATE account 1"]
    db.log.detach(db.sessions)
    with db.sessions.begin() as session:
        session.add(make(2))
    assert db.tell() == ["CREATE account 1"]
    with pytest.raises(ConfigurationError, match="not attached") as caught:
        db.log.detach(db.sessions)
    assert caught.value.hint


def test_a_sessionmaker_and_its_class_are_one_log(db: LoggedDatabase) -> None:
    class Logged(Session):
        pass

    sessions = sessionmaker(db.engine, class_=Logged)
    db.log.attach(Logged)
    db.log.attach(sessions)
    with sessions.begin() as session:
        session.add(make(1))
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/1"]
    assert db.tell() == ["CREATE account 1"]
    db.assert_replays()


def test_attached_again_after_detaching(db: LoggedDatabase) -> None:
    db.log.detach(db.sessions)
    db.log.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(make(1))
    assert db.tell() == ["CREATE account 1"]
    db.assert_replays()


def test_detaching_in_the_middle_of_a_transaction_is_not_silent(db: LoggedDatabase) -> None:
    session = db.sessions()
    session.add(make(1))
    session.flush()
    db.log.detach(db.sessions)
    with pytest.raises(UnloggedWriteError):
        session.commit()
    session.close()
    assert db.count("account") == 0
    db.assert_pool_is_clean()


async def test_detaching_an_async_sessionmaker(db: LoggedDatabase, database_url: URL) -> None:
    engine = create_async_engine(database_url)

    class Mine(Session):
        pass

    sessions = async_sessionmaker(engine, sync_session_class=Mine)
    db.log.attach(sessions)
    async with sessions.begin() as session:
        assert isinstance(session.sync_session, Mine)
        session.add(make(1))
    db.log.detach(sessions)
    async with sessions.begin() as session:
        assert type(session.sync_session) is Mine
        session.add(make(2))
    plain: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    db.log.attach(plain)
    db.log.detach(plain)
    async with plain.begin() as session:
        assert type(session.sync_session) is Session
    await engine.dispose()
    assert db.tell() == ["CREATE account 1"]


@pytest.mark.parametrize("target", [Session.commit, 7, "sessions", object, int])
def test_what_makes_no_sessions_is_refused(db: LoggedDatabase, target: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot attach") as caught:
        db.log.attach(target)
    assert "sessionmaker" in caught.value.hint


def test_two_logs_in_two_schemas_for_two_sessionmakers(db: LoggedDatabase) -> None:
    with db.engine.begin() as connection:
        for statement in create_statements(schema="second", version=1):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    other = make_log("second")
    others = sessionmaker(db.engine)
    other.attach(others)
    with db.sessions.begin() as session:
        session.add(make(1))
    with others.begin() as session:
        session.add(make(2))
    with db.engine.connect() as connection:
        assert [e.aggregate for e in other.read(connection)] == ["account/2"]
    assert db.tell() == ["CREATE account 1"]


def test_two_logs_of_one_session_commit_together(db: LoggedDatabase) -> None:
    with db.engine.begin() as connection:
        for statement in create_statements(schema="second", version=1):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    other = make_log("second")
    other.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(make(1))
    assert_replays(other, db.engine)
    db.assert_replays()
    session = db.sessions()
    other.take_ticket(session, "account/1")
    session.get_one(Account, 1).owner = "lost"
    with sessionmaker(db.engine)() as raw, raw.begin():
        raw.connection().exec_driver_sql(
            "INSERT INTO second.oplog_ticket (aggregate_name, version) VALUES ('account/1', 2)"
        )
    with pytest.raises(TicketConflictError):
        session.commit()
    session.close()
    assert len(db.read()) == 1, "half of a refused transaction was stored"
    db.assert_replays()
    db.assert_pool_is_clean()


def test_one_log_on_two_engines(db: LoggedDatabase, second_engine: Engine) -> None:
    sessions = sessionmaker(second_engine)
    db.log.attach(sessions)
    with db.sessions.begin() as session:
        session.add(make(0))
    with db.sessions.begin() as first, sessions.begin() as second:
        first.add(make(1))
        second.add(make(2))
    assert sorted(db.tell()) == ["CREATE account 0", "CREATE account 1", "CREATE account 2"]
    db.assert_replays()


def test_one_session_with_two_databases(db: LoggedDatabase, bare_database_url: URL) -> None:
    elsewhere = sa.create_engine(bare_database_url)
    with elsewhere.begin() as connection:
        install_log(connection)
    Base.metadata.create_all(elsewhere)
    sessions = sessionmaker(binds={Account: db.engine, Order: elsewhere, Line: elsewhere})
    db.log.attach(sessions)
    with sessions.begin() as session:
        db.log.annotate(session, actor="x")
        session.add_all([make(1), Order(id=1, customer="c")])
    assert sorted(r.aggregate for r in db.log.receipts(session)) == ["account/1", "order/1"]
    assert db.tell() == ["CREATE account 1"]
    with elsewhere.connect() as connection:
        entries = list(db.log.read(connection))
    assert [(e.aggregate, e.metadata) for e in entries] == [("order/1", {"actor": ["x"]})]
    db.assert_replays()
    assert_replays(db.log, elsewhere)
    elsewhere.dispose()


def test_a_database_without_the_log_is_refused_with_the_line_to_add(bare_database_url: URL) -> None:
    engine = sa.create_engine(bare_database_url)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    make_log().attach(sessions)
    with pytest.raises(SchemaVersionError) as caught, sessions.begin() as session:
        session.add(make(1))
    assert "op.create_oplog(version=1)" in caught.value.hint
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM account").scalar() == 0
    engine.dispose()


def test_a_table_that_the_database_lacks_is_refused(engine: Engine) -> None:
    Base.metadata.create_all(engine, tables=[Base.metadata.tables["account"]])
    sessions = sessionmaker(engine)
    make_log().attach(sessions)
    with pytest.raises(SchemaDriftError, match="order") as caught, sessions.begin() as session:
        session.add(make(1))
    assert caught.value.hint


def test_a_view_under_a_models_name_is_refused(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE account RENAME TO base")
        connection.exec_driver_sql("CREATE VIEW account AS SELECT * FROM base")
    sessions = sessionmaker(engine)
    make_log().attach(sessions)
    with pytest.raises(NotCapturableError, match="not a table"), sessions.begin() as session:
        session.add(make(1))


# -- sessions that have nothing to do with it -----------------------------------------------------


def list_listeners() -> list[object]:
    """Who hears of every session that begins."""
    return list(Session().dispatch.after_begin)


def use_mock(spec: type | None) -> list[str]:
    """What a session asks of a bind that is no engine, such as tests of applications use."""
    bind = mock.Mock(spec=spec)
    connection = mock.Mock(spec=spec and Connection, engine=bind)
    connection.in_transaction.return_value = False
    bind.connect.return_value = connection
    with Session(bind=bind) as session:
        session.execute(sa.text("SELECT 1"))
        session.commit()
    return [name for name, _, _ in [*bind.mock_calls, *connection.mock_calls]]


@pytest.mark.parametrize("spec", [None, Engine, OptionEngine], ids=["bare", "engine", "option"])
@pytest.mark.parametrize("target", ["engine", "sessionmaker", "class"])
def test_a_session_on_a_mock_is_left_alone(engine: Engine, target: str, spec: type | None) -> None:
    class Logged(Session):
        pass

    expected = use_mock(spec)
    assert "execute" in expected
    log = make_log()
    log.attach({"engine": engine, "sessionmaker": sessionmaker(engine), "class": Logged}[target])
    assert use_mock(spec) == expected


def test_an_attached_session_on_a_mock_is_left_alone(db: LoggedDatabase) -> None:
    bind = mock.Mock()
    connection = mock.Mock(engine=bind, in_transaction=mock.Mock(return_value=False))
    bind.connect.return_value = connection
    with db.sessions(bind=bind) as session:
        session.execute(sa.text("SELECT 1"))
        session.commit()
    connection.execute.assert_called_once()


def test_a_session_on_another_database_is_left_alone(db: LoggedDatabase, tmp_path: Path) -> None:
    """Any database: nothing is asked of it, and nothing is kept of it."""
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    Base.metadata.create_all(elsewhere)
    with Session(elsewhere) as session, session.begin():
        session.add(make(1))
    with Session(elsewhere.execution_options(logging_token="x")) as session, session.begin():
        session.get_one(Account, 1).owner = "bo"
    assert not elsewhere.dispatch.begin
    assert elsewhere not in db.log._log.attachments._engines
    elsewhere.dispose()


def test_an_attached_engine_hears_of_no_session(engine: Engine) -> None:
    before = list_listeners()
    Base.metadata.create_all(engine)
    log = make_log()
    log.attach(engine)
    assert list_listeners() == before
    with Session(engine) as session, session.begin():
        session.add(make(1))
    with sessionmaker(engine.execution_options(logging_token="x")).begin() as session:
        session.add(make(2))
    with engine.connect() as connection:
        assert [e.aggregate for e in log.read(connection)] == ["account/1", "account/2"]
    assert_replays(log, engine)


def test_attaching_anything_hears_of_no_other_session(engine: Engine) -> None:
    class Logged(Session):
        pass

    before = list_listeners()
    log = make_log()
    targets = [sessionmaker(engine), scoped_session(sessionmaker(engine)), Logged, engine]
    for target in targets:
        log.attach(target)
        assert list_listeners() == before
    for target in targets:
        log.detach(target)


def test_a_stranger_that_joins_a_connection_of_the_application(engine: Engine) -> None:
    """What guards saw of it is the connection's, which commits it and says so."""
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add(make(1))
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection) as stranger:
            stranger.add(make(2))
            stranger.commit()
        outer.commit()
    assert db.tell() == ["CREATE account 1", "CREATE account 2"]
    db.assert_replays()


@pytest.mark.parametrize("guarded", [False, True])
def test_a_stranger_on_the_same_engine_stays_unlogged(engine: Engine, guarded: bool) -> None:
    """Also through an engine with options, whose connections are the same."""
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=guarded)
    with db.sessions.begin() as session:
        session.add(make(1))
    for number, bind in enumerate([engine, engine.execution_options(logging_token="x")], 2):
        session = Session(bind)
        session.add(make(number))
        if guarded:
            with pytest.raises(UnloggedWriteError):
                session.commit()
        else:
            session.commit()
        session.close()
    assert db.tell() == ["CREATE account 1"]
