"""No connection to be had: said before anything is written, and over when one is free again."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.schema.grants import RoleKind, list_grants
from tests.concurrency.workload import consume
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.support import administer

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)


@pytest.fixture
def role(db: LoggedDatabase, server_url: URL) -> Iterator[str]:
    """A role that may have a single connection."""
    name = f"oplog_one_{uuid4().hex[:8]}"
    administer(server_url, f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 1")
    db.execute(
        f"GRANT USAGE ON SCHEMA public TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
        *list_grants(name, RoleKind.APPLICATION, schema="oplog"),
    )
    yield name
    db.execute(f"DROP OWNED BY {name}")
    administer(server_url, f"DROP ROLE {name}")


def make_sessions(log: Oplog, url: URL) -> sessionmaker[Session]:
    # Waiting for a connection is the pool's: what is tried here ends at once.
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return sessions


def close(db: LoggedDatabase, sessions: sessionmaker[Session], role: str) -> None:
    """Close the pool, and wait until the server has seen it."""
    sessions.kw["bind"].dispose()
    gone = "SELECT count(*), pg_sleep(0.002) FROM pg_stat_activity WHERE usename = %s"
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(5000):
            if connection.exec_driver_sql(gone, (role,)).one()[0] == 0:
                return
    raise AssertionError(f"a connection of {role} never ended")


def add_account(session: Session) -> None:
    session.add(Account(owner="ada", balance=1))


def test_a_pool_with_nothing_left(db: LoggedDatabase) -> None:
    sessions = make_sessions(db.log, db.engine.url)
    runs = []

    def work(session: Session) -> None:
        runs.append(session)
        add_account(session)

    with sessions() as holder:
        holder.connection()
        with pytest.raises(PoolTimeoutError):
            db.log.run(sessions, work)
        with pytest.raises(PoolTimeoutError), sessions() as session:
            db.log.take_ticket(session, "account/1")
        assert db.count("account") == db.count("oplog.oplog_entry") == 0
        # More attempts would add to what there is too much of.
        assert len(runs) == 1
    db.log.run(sessions, work)
    assert db.count("account") == 1
    db.assert_replays()
    sessions.kw["bind"].dispose()


def test_a_server_with_nothing_left(db: LoggedDatabase, role: str) -> None:
    url = db.engine.url.set(username=role)
    first, second = make_sessions(db.log, url), make_sessions(db.log, url)
    with first.begin() as session:
        # Types and keys are stored on a connection apart: here that is not to be had.
        add_account(session)
        session.flush()
        with pytest.raises(OperationalError, match="too many connections"):
            db.log.run(second, add_account)
    assert db.count("account") == 1
    close(db, first, role)
    db.log.run(second, add_account)
    db.assert_replays()
    # Reading needs one connection as well, at a time.
    close(db, second, role)
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    assert len(consume(db.log, engine)) == 2
    with engine.connect() as connection:
        assert db.log.verify(connection).ok
        assert db.log.diagnose(connection)
    engine.dispose()
