"""Transactions of every sort: two-phase, nested in another, isolated, read-only, reused."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import (
    TicketConflictError,
)
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

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


def test_a_two_phase_session(db: LoggedDatabase) -> None:
    sessions = sessionmaker(db.engine, twophase=True)
    db.log.attach(sessions)
    with db.engine.connect() as connection:
        allowed = connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one()
    if int(allowed) == 0:
        with pytest.raises(sa.exc.OperationalError), sessions.begin() as session:
            session.add(make(1))
        assert db.read() == []
        return
    with sessions.begin() as session:
        session.add(make(1))
    with sessions() as session:
        session.add(make(2))
        session.flush()
        session.rollback()
    assert db.tell() == ["CREATE account 1"]
    assert [r.aggregate for r in db.log.receipts(session)] == []
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize(
    "mode", ["create_savepoint", "conditional_savepoint", "rollback_only", "control_fully"]
)
def test_a_session_inside_somebody_elses_transaction(db: LoggedDatabase, mode: str) -> None:
    """The pattern of test suites: the outer transaction is rolled back, or committed."""
    with db.engine.connect() as connection:
        outer = connection.begin()
        with db.sessions(bind=connection, join_transaction_mode=mode) as session:
            session.add(make(1))
            session.commit()
            session.add(make(2))
            session.commit()
            found = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar()
            assert found == 2
        if mode != "control_fully":
            outer.rollback()
    assert len(db.read()) == (2 if mode == "control_fully" else 0)
    db.assert_replays()
    with (
        db.engine.connect() as connection,
        connection.begin(),
        db.sessions(bind=connection, join_transaction_mode=mode) as session,
    ):
        session.add(make(3))
        session.commit()
    assert db.tell()[-1] == "CREATE account 3"
    db.assert_replays()
    db.assert_pool_is_clean()


def test_rolled_back_work_inside_an_outer_transaction(db: LoggedDatabase) -> None:
    with (
        db.engine.connect() as connection,
        connection.begin(),
        db.sessions(bind=connection, join_transaction_mode="create_savepoint") as session,
    ):
        session.add(make(1))
        session.commit()
        session.add(make(2))
        session.flush()
        session.rollback()
        session.add(make(3))
        session.commit()
    assert db.tell() == ["CREATE account 1", "CREATE account 3"]
    db.assert_replays()


def test_settings_of_an_outer_transaction_survive(db: LoggedDatabase) -> None:
    with db.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL timezone = 'Asia/Kolkata'")
        connection.exec_driver_sql("SET LOCAL bytea_output = 'escape'")
        with db.sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.add(make(1))
            session.flush()
            tomorrow = sa.text("now() + interval '1 day'")
            session.execute(sa.update(Account).where(Account.id == 1).values(opened=tomorrow))
            session.commit()
        assert connection.exec_driver_sql("SHOW timezone").scalar() == "Asia/Kolkata"
        assert connection.exec_driver_sql("SHOW bytea_output").scalar() == "escape"
    db.assert_replays()


def test_an_autocommit_connection_commits_each_statement(db: LoggedDatabase) -> None:
    sessions = sessionmaker(db.engine.execution_options(isolation_level="AUTOCOMMIT"))
    db.log.attach(sessions)
    with sessions() as session:
        session.add(make(1))
        session.flush()
        assert db.tell() == ["CREATE account 1"]
        session.rollback()
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_every_real_isolation_level(db: LoggedDatabase, level: str) -> None:
    sessions = sessionmaker(db.engine.execution_options(isolation_level=level))
    db.log.attach(sessions)
    with sessions.begin() as session:
        session.add(make(1))
    with sessions.begin() as session:
        session.get_one(Account, 1).owner = "bob"
    assert db.tell() == ["CREATE account 1", "UPDATE account 1"]
    db.assert_replays()


def test_a_read_only_session_reads(db: LoggedDatabase) -> None:
    """Nothing was logged yet: what reading stores for later must not break reading."""
    options = {"postgresql_readonly": True}
    with db.sessions() as session:
        session.connection(execution_options=options)
        assert session.scalars(sa.select(Account)).all() == []
        session.commit()


def test_two_sessions_of_one_thread_before_anything_was_logged(
    db: LoggedDatabase, second_engine: Engine
) -> None:
    """The second must not wait for what the first has stored and not committed."""
    with db.sessions() as first, db.sessions(bind=second_engine) as second:
        first.add(make(1))
        first.flush()
        second.add(make(2))
        second.commit()
        first.commit()
    assert sorted(db.tell()) == ["CREATE account 1", "CREATE account 2"]
    db.assert_replays()


def test_a_session_is_used_again_after_each_ending(db: LoggedDatabase) -> None:
    session = db.sessions()
    for number, end in enumerate([session.commit, session.rollback, session.close, session.commit]):
        db.log.annotate(session, round=str(number))
        session.add(make(number))
        session.flush()
        end()
    session.close()
    assert [(e.aggregate, e.metadata) for e in db.read()] == [
        ("account/0", {"round": ["0"]}),
        ("account/3", {"round": ["3"]}),
    ]
    db.assert_replays()
    db.assert_pool_is_clean()


def test_the_pool_stays_healthy_after_lost_tickets(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make(1))
    for number in range(12):
        session = db.sessions()
        db.log.take_ticket(session, "account/1")
        with db.sessions.begin() as other:
            other.get_one(Account, 1).owner = f"winner {number}"
        session.get_one(Account, 1).owner = "loser"
        with pytest.raises(TicketConflictError) as caught:
            session.commit()
        assert caught.value.retryable
        session.close()
    assert [e.version for e in db.read()] == list(range(1, 14))
    db.assert_replays()
    db.assert_pool_is_clean()


def test_the_first_transaction_of_all_is_rolled_back(db: LoggedDatabase) -> None:
    """It stored the types; what is logged later must not rest on rows that are gone."""
    with db.sessions() as session:
        session.add(make(1))
        session.flush()
        session.rollback()
        session.add(make(2))
        session.flush()
        session.rollback()
    with db.sessions.begin() as session:
        session.add(make(3))
    assert db.tell() == ["CREATE account 3"]
    db.assert_replays()
