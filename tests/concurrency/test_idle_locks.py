"""Rows of locks that nobody holds are removed, and nobody ever holds a lock that another has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from oplog.postgres.sqlstate import SERIALIZATION_FAILURE, read_sqlstate
from oplog.schema.locks import KEPT_LOCKS
from oplog.store.housekeeping import remove_idle_locks
from oplog.upkeep.maintenance import maintain_log
from tests.concurrency.workload import waiting_for_lock

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

LOCK = "SELECT oplog.oplog_lock(ARRAY['{}'])"
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
levels = pytest.mark.parametrize("level", LEVELS)
HOLDERS = 3
TIMES = 60
ARCHIVE = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def plain(database_url: URL) -> Engine:
    """Each connection is closed when it is given back."""
    return sa.create_engine(database_url, poolclass=NullPool)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(HOLDERS + 1) as pool:
        yield pool


def begin(engine: Engine, level: str = "READ COMMITTED") -> Connection:
    """A connection in a transaction that has its snapshot."""
    connection = engine.connect().execution_options(isolation_level=level)
    connection.exec_driver_sql("SELECT FROM oplog.oplog_log")
    return connection


def hold(connection: Connection, name: str) -> None:
    connection.exec_driver_sql(LOCK.format(name))


def use(engine: Engine, *names: str) -> None:
    with engine.begin() as connection:
        for name in names:
            hold(connection, name)


def list_locks(engine: Engine) -> set[bytes]:
    with engine.connect() as connection:
        return {
            bytes(name)
            for name in connection.exec_driver_sql("SELECT name FROM oplog.oplog_lock").scalars()
        }


def name_row(*names: str) -> set[bytes]:
    return {sha256(name.encode()).digest() for name in names}


def remove(engine: Engine, limit: int = 1000) -> int:
    with engine.begin() as connection:
        return remove_idle_locks(connection, "oplog", limit=limit)


def count_removed(engine: Engine) -> int:
    return maintain_log(engine, schema="oplog").locks_removed


def test_what_nobody_holds_is_removed(plain: Engine) -> None:
    use(plain, *(f"a/{number}" for number in range(2100)))
    with begin(plain) as holder:
        hold(holder, "a/7")
        hold(holder, "new")
        assert count_removed(plain) == 2099
        assert list_locks(plain) == name_row("aggregate/a/7", "partitions")
        holder.commit()
    # A lock that was new to its holder has its row since COMMIT.
    assert count_removed(plain) == 2
    assert count_removed(plain) == 0
    # Of the first partitions.
    assert list_locks(plain) == name_row("partitions")


def test_locks_of_the_log_itself_stay(plain: Engine) -> None:
    """Those are tried for a moment only: who removes one would be taken for its holder."""
    with plain.begin() as connection:
        for name in (*KEPT_LOCKS, f"archive/{ARCHIVE}", "archive/unknown"):
            connection.exec_driver_sql("SELECT oplog.oplog_try_lock(%s)", (name,))
        connection.exec_driver_sql(
            "INSERT INTO oplog.oplog_archive (archive_id, url, epoch, generation, sequence, chain, "
            "head, origin_server, origin_database) "
            f"VALUES ('{ARCHIVE}', 'x', 0, 0, 0, '', 0, '', 0)"
        )
    assert count_removed(plain) == 1
    assert list_locks(plain) == name_row(*KEPT_LOCKS, f"archive/{ARCHIVE}")


def test_what_is_waited_for_stays(plain: Engine, pool: ThreadPoolExecutor) -> None:
    use(plain, "a")
    with begin(plain) as holder, begin(plain) as waiter:
        hold(holder, "a")
        with waiting_for_lock(plain):
            waiting = pool.submit(hold, waiter, "a")
        assert remove(plain) == 0
        holder.commit()
        waiting.result(60)
        assert remove(plain) == 0
    assert remove(plain) == 1


def test_a_savepoint_and_a_prepared_transaction_hold(plain: Engine) -> None:
    use(plain, "a", "b", "c")
    with begin(plain) as holder, holder.begin_nested():
        hold(holder, "a")
        assert remove(plain) == 2
    use(plain, "b")
    with begin(plain) as kept:
        savepoint = kept.begin_nested()
        hold(kept, "a")
        savepoint.rollback()
        assert remove(plain) == 2


@levels
def test_who_asks_while_a_row_is_being_removed(
    plain: Engine, pool: ThreadPoolExecutor, level: str
) -> None:
    """It waits for that, and holds a new row, for which the next one waits."""
    use(plain, "a")
    with begin(plain) as owner, begin(plain, level) as asks, begin(plain, level) as other:
        assert remove_idle_locks(owner, "oplog", limit=9) == 1
        with waiting_for_lock(plain):
            waiting = pool.submit(hold, asks, "a")
        owner.commit()
        waiting.result(60)
        with waiting_for_lock(plain):
            second = pool.submit(hold, other, "a")
        assert remove(plain) == 0
        asks.rollback()
        second.result(60)


@levels
def test_who_asks_between_locking_and_removing(
    plain: Engine, pool: ThreadPoolExecutor, level: str
) -> None:
    """The moment inside the statement: under a snapshot it is told to run again."""
    use(plain, "a")
    with begin(plain) as owner, begin(plain, level) as asks:
        owner.exec_driver_sql("SELECT FROM oplog.oplog_lock FOR UPDATE")
        with waiting_for_lock(plain):
            waiting = pool.submit(hold, asks, "a")
        owner.exec_driver_sql("DELETE FROM oplog.oplog_lock")
        owner.commit()
        if level != "READ COMMITTED":
            with pytest.raises(DBAPIError) as refused:
                waiting.result(60)
            assert read_sqlstate(refused.value) == SERIALIZATION_FAILURE
            asks.rollback()
            hold(asks, "a")
        else:
            waiting.result(60)
        assert remove(plain) == 0


@levels
def test_two_never_hold_one_lock(plain: Engine, pool: ThreadPoolExecutor, level: str) -> None:
    """While rows are removed all the time: each lock is new, or old, or on its way."""
    use(plain, "a", "b")
    holders = {"a": 0, "b": 0}
    done = threading.Event()

    def work(number: int) -> int:
        held = 0
        for step in range(TIMES):
            name = "ab"[(number + step) % 2]
            with plain.connect().execution_options(isolation_level=level) as connection:
                try:
                    hold(connection, name)
                except DBAPIError as error:
                    assert read_sqlstate(error) == SERIALIZATION_FAILURE  # noqa: PT017
                    continue
                holders[name] += 1
                connection.exec_driver_sql("SELECT pg_sleep(0.001)")
                assert holders[name] == 1
                holders[name] -= 1
                connection.commit()
                held += 1
        return held

    def tidy() -> int:
        removed = 0
        while not done.is_set():
            removed += remove(plain)
        return removed

    tidying = pool.submit(tidy)
    try:
        working = [pool.submit(work, number) for number in range(HOLDERS)]
        held = [one.result(120) for one in working]
    finally:
        done.set()
    assert all(held)
    assert tidying.result(60) > 0
