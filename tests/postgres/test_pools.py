"""Connection pools as applications set them up: tests on connections, restarts, resets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from oplog import Oplog
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer, make_log
from tests.logged import track
from tests.support import assert_replays, install_log

pytestmark = pytest.mark.postgres


@pytest.fixture
def log(engine: Engine) -> Iterator[Oplog]:
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    log = make_log()
    yield log
    assert_replays(log, engine)


def write(log: Oplog, sessions: sessionmaker[Session], id: int) -> None:
    """One captured row and one that only the guards see."""
    with sessions.begin() as session:
        log.annotate(session, actor=str(id))
        session.add(Customer(id=id, name="new"))
        session.flush()
        session.execute(sa.text("UPDATE customer SET name = 'raw' WHERE id = :id"), {"id": id})
    assert [receipt.aggregate for receipt in log.receipts(session)] == [f"customer/{id}"]


POOLS: dict[str, dict[str, Any]] = {
    "pre-ping": {"pool_pre_ping": True},
    "recycled-at-once": {"pool_recycle": 0},
    "reset-rollback": {"pool_reset_on_return": "rollback"},
    "reset-commit": {"pool_reset_on_return": "commit"},
    "reset-none": {"pool_reset_on_return": None},
    "none": {"poolclass": NullPool},
    "one": {"poolclass": StaticPool},
    "last-in-first-out": {"poolclass": QueuePool, "pool_size": 2, "pool_use_lifo": True},
    "overflowing": {"pool_size": 1, "max_overflow": 4},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_pools(engine: Engine, log: Oplog, options: dict[str, Any]) -> None:
    pooled = create_engine(engine.url, **options)
    sessions = sessionmaker(pooled)
    log.attach(sessions)
    for number in range(3):
        write(log, sessions, number)
        # A transaction that is abandoned leaves nothing to the next user of its connection.
        abandoned = sessions()
        abandoned.add(Customer(id=100 + number, name="never"))
        abandoned.flush()
        abandoned.close()
    with pooled.connect() as connection:
        assert len(list(log.read(connection))) == 3
    pooled.dispose()


def test_a_pool_that_commits_on_return_commits_no_unlogged_row(engine: Engine, log: Oplog) -> None:
    """`pool_reset_on_return="commit"`: the pool's COMMIT passes by the session's events."""
    pooled = create_engine(engine.url, pool_reset_on_return="commit")
    log.attach(sessionmaker(pooled))
    connection = pooled.raw_connection()
    connection.cursor().execute("INSERT INTO customer VALUES (1, 'slipped past')")
    connection.close()
    with engine.connect() as reading:
        assert reading.exec_driver_sql("SELECT count(*) FROM customer").scalar() == 0
    pooled.dispose()


def test_many_threads_share_an_engine(engine: Engine, log: Oplog) -> None:
    pooled = create_engine(engine.url, pool_size=3, max_overflow=2, pool_pre_ping=True)
    sessions = sessionmaker(pooled)
    log.attach(sessions)
    failures: list[BaseException] = []

    def work(writer: int) -> None:
        try:
            for number in range(8):
                write(log, sessions, writer * 100 + number)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    with pooled.connect() as connection:
        assert len(list(log.read(connection))) == 80
    pooled.dispose()


@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill"])
def test_a_server_that_restarts_between_two_uses(kill: bool) -> None:
    """With pre-ping the first transaction afterwards works, and is heard by the log."""
    with EmbeddedServer(fsync=True) as server:
        engine = create_engine(server.url, pool_pre_ping=True, pool_size=2)
        with engine.begin() as connection:
            install_log(connection)
        Base.metadata.create_all(engine)
        track(engine, *Base.metadata.tables.values())
        log, sessions = make_log(), sessionmaker(engine)
        log.attach(sessions)
        write(log, sessions, 1)
        if kill:
            server.kill9()
        server.restart()
        write(log, sessions, 2)
        assert_replays(log, engine)
        engine.dispose()


def test_without_pre_ping_the_first_transaction_fails_and_the_next_works() -> None:
    with EmbeddedServer(fsync=True) as server:
        engine = create_engine(server.url, pool_size=1)
        with engine.begin() as connection:
            install_log(connection)
        Base.metadata.create_all(engine)
        log, sessions = make_log(), sessionmaker(engine)
        log.attach(sessions)
        with sessions.begin() as session:
            session.add(Customer(id=1, name="new"))
        server.restart()
        with pytest.raises(DBAPIError), sessions.begin() as session:
            session.add(Customer(id=2, name="never"))
        with sessions.begin() as session:
            session.add(Customer(id=3, name="new"))
        assert_replays(log, engine)
        engine.dispose()
