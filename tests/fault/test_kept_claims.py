"""Keys and locks when the server goes down: what a prepared transaction holds stays held.

A key that was free after a crash would be answered ABORTED, while the prepared transaction that
holds it may yet commit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog, Outcome
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer, add_customer, make_log
from tests.logged import track
from tests.standby import open_pair
from tests.support import assert_replays, install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


def set_up(engine: Engine) -> Oplog:
    with engine.begin() as connection:
        install_log(connection)
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    log, sessions = make_log(), sessionmaker(engine)
    log.attach(sessions)
    add_customer(sessions, 1)
    # Rows of locks are there, and a crash empties the table.
    hold(engine)
    return log


def hold(engine: Engine) -> None:
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT oplog.oplog_try_lock('prune')").scalar() is True
        connection.exec_driver_sql("SELECT oplog.oplog_lock(ARRAY['customer/1'])")


def prepare(log: Oplog, engine: Engine) -> None:
    """Leave a transaction prepared under a key."""
    factory = sessionmaker(engine, twophase=True)
    log.attach(factory)
    with factory() as session:
        log.annotate(session, idempotency_key="k")
        log.lock(session, "customer/1")
        session.add(Customer(id=2, name="prepared"))
        session.prepare()
        # Closed in the ordinary way it would roll back what is prepared.
        session.invalidate()


def finish(engine: Engine, how: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        (name,) = connection.exec_driver_sql("SELECT gid FROM pg_prepared_xacts").scalars()
        connection.exec_driver_sql(f"{how} PREPARED '{name}'")


def check_held(log: Oplog, engine: Engine) -> None:
    found = log.inquire("k", engine, wait_seconds=0)
    assert found.outcome is Outcome.PENDING
    assert [(one.process_id, one.state) for one in found.blockers] == [(0, "prepared transaction")]


HOWS = pytest.mark.parametrize(
    ("how", "outcome"), [("COMMIT", Outcome.COMMITTED), ("ROLLBACK", Outcome.ABORTED)]
)


@HOWS
def test_a_crash_keeps_the_key_of_a_prepared_transaction(how: str, outcome: Outcome) -> None:
    with EmbeddedServer() as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        log = set_up(engine)
        prepare(log, engine)
        check_held(log, engine)
        server.kill9()
        server.restart()
        check_held(log, engine)
        settle(log, engine, lambda: finish(engine, how), outcome)


def test_a_failover_keeps_the_key_of_a_prepared_transaction() -> None:
    with open_pair() as pair:
        log = set_up(pair.primary_engine)
        prepare(log, pair.primary_engine)
        pair.catch_up()
        pair.primary.kill9()
        pair.promote()
        engine = pair.standby_engine
        check_held(log, engine)
        settle(log, engine, lambda: finish(engine, "COMMIT"), Outcome.COMMITTED)


def settle(log: Oplog, engine: Engine, end: Callable[[], None], outcome: Outcome) -> None:
    end()
    assert log.resolve("k", engine) is outcome
    # The table of locks is empty, and as good as before.
    for _ in range(2):
        hold(engine)
    assert_replays(log, engine)
