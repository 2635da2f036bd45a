"""The functions that hold keys, aggregates and leases: who waits, and what ends a lock.

Each test is about what advisory locks did too: nobody is to notice another way of locking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog
from oplog.postgres.sqlstate import read_sqlstate
from tests.concurrency.workload import Customer, waiting_for_lock

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

KEY = "SELECT oplog.oplog_claim('{}')"
AGGREGATE = "SELECT oplog.oplog_lock(ARRAY['{}'])"
ARCHIVE = "SELECT oplog.oplog_lease('00000000-0000-0000-0000-00000000000{}')"
NAMED = "SELECT oplog.oplog_try_lock('{}')"
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
waits = pytest.mark.parametrize("ask", [KEY, AGGREGATE], ids=["key", "aggregate"])
tries = pytest.mark.parametrize("ask", [ARCHIVE, NAMED], ids=["archive", "named"])
levels = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture
def plain(database_url: URL) -> Engine:
    """Each connection is closed when it is given back."""
    return sa.create_engine(database_url, poolclass=NullPool)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def begin(engine: Engine, level: str = "READ COMMITTED") -> Connection:
    """A connection in a transaction that has its snapshot."""
    connection = engine.connect().execution_options(isolation_level=level)
    connection.exec_driver_sql("SELECT FROM oplog.oplog_log")
    return connection


def say(connection: Connection, statement: str) -> object:
    return connection.exec_driver_sql(statement).scalar()


def held(engine: Engine, statement: str) -> bool:
    """Whether another transaction holds it."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '20ms'")
        try:
            return say(connection, statement) is False
        except DBAPIError as error:
            if read_sqlstate(error) != "55P03":
                raise
            return True


def use(engine: Engine, *statements: str) -> None:
    """Hold and give back what has never been held."""
    with engine.begin() as connection:
        for statement in statements:
            say(connection, statement)


@levels
@waits
def test_a_second_one_waits_at_every_level(
    plain: Engine, pool: ThreadPoolExecutor, ask: str, level: str
) -> None:
    use(plain, ask.format("a"))
    for ends in ("commit", "rollback"):
        with begin(plain, level) as first, begin(plain, level) as second:
            say(first, ask.format("a"))
            with waiting_for_lock(plain):
                waiting = pool.submit(say, second, ask.format("a"))
            assert not waiting.done()
            getattr(first, ends)()
            waiting.result(60)
            assert held(plain, ask.format("a"))
            second.commit()
        assert not held(plain, ask.format("a"))


@levels
@waits
def test_a_first_one_waits_at_every_level(
    plain: Engine, pool: ThreadPoolExecutor, ask: str, level: str
) -> None:
    """Who has waited for an aggregate that was never locked before has an old snapshot."""
    with begin(plain, level) as first, begin(plain, level) as second:
        say(first, ask.format("a"))
        with waiting_for_lock(plain):
            waiting = pool.submit(say, second, ask.format("a"))
        first.commit()
        if ask is KEY or level == "READ COMMITTED":
            waiting.result(60)
        else:
            with pytest.raises(DBAPIError) as caught:
                waiting.result(60)
            assert read_sqlstate(caught.value) == "40001"


@levels
@tries
def test_who_tries_does_not_wait(plain: Engine, ask: str, level: str) -> None:
    """Neither the first time, nor later; and who has it is not in its own way."""
    for _ in range(2):
        with begin(plain, level) as first, begin(plain, level) as second:
            assert say(first, ask.format("1")) is True
            assert say(first, ask.format("1")) is True
            second.exec_driver_sql("SET LOCAL statement_timeout = '10s'")
            assert say(second, ask.format("1")) is False
            assert say(second, ask.format("2")) is True
            # A lock that was not got is no error, and its own patience is nobody else's.
            assert say(second, "SHOW lock_timeout") == "0"
            second.commit()
            assert held(plain, ask.format("1"))
            first.rollback()
        assert not held(plain, ask.format("1"))


@pytest.mark.parametrize("level", LEVELS[1:])
@tries
def test_what_an_old_snapshot_does_not_show_is_another_ones(
    plain: Engine, ask: str, level: str
) -> None:
    """Held for the first time, and given back, since then: an answer all the same."""
    with begin(plain, level) as old:
        use(plain, ask.format("1"))
        assert say(old, ask.format("1")) is False
        assert say(old, ask.format("2")) is True
        old.commit()
    assert not held(plain, ask.format("1"))


@pytest.mark.parametrize("ask", [KEY, AGGREGATE, ARCHIVE, NAMED])
def test_a_savepoint_gives_back_what_was_taken_in_it(plain: Engine, ask: str) -> None:
    one, two = ask.format("1"), ask.format("2")
    with begin(plain) as connection:
        say(connection, one)
        inner = connection.begin_nested()
        say(connection, one)
        say(connection, two)
        assert held(plain, two)
        inner.rollback()
        assert not held(plain, two)
        assert held(plain, one)
        inner = connection.begin_nested()
        say(connection, two)
        inner.commit()
        assert held(plain, two)
        connection.commit()
    assert not held(plain, one)
    assert not held(plain, two)


@pytest.mark.parametrize("ask", [KEY, AGGREGATE, ARCHIVE, NAMED])
def test_a_session_that_is_ended_holds_nothing(plain: Engine, ask: str) -> None:
    with begin(plain) as connection:
        say(connection, ask.format("1"))
        process_id = say(connection, "SELECT pg_backend_pid()")
        with plain.begin() as other:
            ended = say(other, f"SELECT pg_terminate_backend({process_id}, 60000)")
            assert ended is True
        assert not held(plain, ask.format("1"))
        connection.invalidate()


@waits
@pytest.mark.parametrize("stop", ["lock_timeout", "statement_timeout", "cancel"])
def test_who_waits_can_be_stopped(
    plain: Engine, pool: ThreadPoolExecutor, ask: str, stop: str
) -> None:
    with begin(plain) as first, begin(plain) as second:
        say(first, ask.format("a"))
        process_id = say(second, "SELECT pg_backend_pid()")
        if stop != "cancel":
            say(second, f"SELECT set_config('{stop}', '50', true)")
        with waiting_for_lock(plain):
            waiting = pool.submit(say, second, ask.format("a"))
        if stop == "cancel":
            say(first, f"SELECT pg_cancel_backend({process_id})")
        with pytest.raises(DBAPIError) as caught:
            waiting.result(60)
        assert read_sqlstate(caught.value) == ("55P03" if stop == "lock_timeout" else "57014")


@waits
def test_a_deadlock_is_found(plain: Engine, pool: ThreadPoolExecutor, ask: str) -> None:
    with begin(plain) as first, begin(plain) as second:
        say(first, ask.format("a"))
        say(second, ask.format("b"))
        with waiting_for_lock(plain):
            waiting = pool.submit(say, second, ask.format("a"))
        states: list[str | None] = []
        try:
            say(first, ask.format("b"))
        except DBAPIError as error:
            states.append(read_sqlstate(error))
            first.rollback()
        else:
            first.commit()
        try:
            waiting.result(60)
        except DBAPIError as error:
            states.append(read_sqlstate(error))
        assert states == ["40P01"]


def test_aggregates_are_taken_in_the_order_given(plain: Engine, pool: ThreadPoolExecutor) -> None:
    with begin(plain) as holder, begin(plain) as other:
        say(holder, AGGREGATE.format("m"))
        with waiting_for_lock(plain):
            waiting = pool.submit(say, other, "SELECT oplog.oplog_lock(ARRAY['z', 'm', 'a'])")
        assert held(plain, AGGREGATE.format("z"))
        assert not held(plain, AGGREGATE.format("a"))
        holder.commit()
        waiting.result(60)
        assert held(plain, AGGREGATE.format("a"))


def test_those_who_wait_for_an_aggregate_are_in_line(
    plain: Engine, pool: ThreadPoolExecutor
) -> None:
    use(plain, AGGREGATE.format("a"))
    order: list[int] = []

    def take(number: int) -> None:
        with plain.begin() as connection:
            say(connection, AGGREGATE.format("a"))
            order.append(number)

    with begin(plain) as holder:
        say(holder, AGGREGATE.format("a"))
        waiting = []
        for number in range(3):
            with waiting_for_lock(plain, count=number + 1):
                waiting.append(pool.submit(take, number))
        holder.commit()
        for one in waiting:
            one.result(60)
    assert order == [0, 1, 2]


TURNS: Sequence[tuple[str, str]] = (
    # What each of two transactions does in turn; names are new, or have been held before.
    (KEY, "abcd"),
    (AGGREGATE, "abcd"),
    (AGGREGATE, "wxyz"),
    (ARCHIVE, "1234"),
)


@pytest.mark.parametrize(("ask", "names"), TURNS)
def test_different_locks_are_no_conflict_at_serializable(
    plain: Engine, ask: str, names: str
) -> None:
    """A look-up in an index would be: each reads what the other writes."""
    use(plain, *(AGGREGATE.format(name) for name in "wxyz"))
    with begin(plain, "SERIALIZABLE") as first, begin(plain, "SERIALIZABLE") as second:
        for turn, name in enumerate(names):
            say((first, second)[turn % 2], ask.format(name))
        first.commit()
        second.commit()


@levels
@waits
def test_the_same_lock_after_another_is_no_conflict(plain: Engine, ask: str, level: str) -> None:
    use(plain, ask.format("a"))
    with begin(plain, level) as first, begin(plain, level) as second:
        say(second, ask.format("a"))
        second.commit()
        say(first, ask.format("a"))
        first.commit()


def test_a_lock_leaves_nothing_that_an_old_snapshot_would_keep(plain: Engine) -> None:
    """Whoever locks a hot aggregate would read all of it, for as long as the snapshot is open."""
    use(plain, AGGREGATE.format("a"))
    size = "SELECT pg_relation_size('oplog.oplog_lock'), pg_relation_size('oplog.oplog_lock_pkey')"
    with begin(plain, "REPEATABLE READ") as old:
        before = old.exec_driver_sql(size).one()
        with plain.connect() as connection:
            for _ in range(500):
                say(connection, AGGREGATE.format("a"))
                connection.commit()
            assert connection.exec_driver_sql(size).one() == before


def test_the_table_of_locks_may_be_emptied(plain: Engine, pool: ThreadPoolExecutor) -> None:
    """That waits for holders; what is held afterwards is held, whatever snapshots there are."""
    lock = AGGREGATE.format("a")
    use(plain, lock)
    with begin(plain) as holder, begin(plain, "REPEATABLE READ") as old, plain.begin() as owner:
        say(holder, lock)
        with waiting_for_lock(plain):
            emptying = pool.submit(owner.exec_driver_sql, "TRUNCATE oplog.oplog_lock")
        holder.commit()
        emptying.result(60)
        owner.commit()
        say(old, lock)
        assert held(plain, lock)


def test_a_claim_leaves_no_row(plain: Engine) -> None:
    use(plain, KEY.format("a"), KEY.format("a"), KEY.format("b"))
    with plain.connect() as connection:
        assert say(connection, "SELECT count(*) FROM oplog.oplog_claim") == 0


def test_names_of_any_length_and_kind(plain: Engine) -> None:
    long = "".join(chr(0x4E00 + number) for number in range(8000))
    use(plain, *(ask.format(long) for ask in (KEY, AGGREGATE, NAMED)))
    # A lock of the log's own is no aggregate's, whatever that is called.
    with begin(plain) as first, begin(plain) as second:
        say(first, "SELECT oplog.oplog_lock(ARRAY['prune', 'archive/x', '../prune', ''])")
        assert say(second, NAMED.format("prune")) is True


def test_what_a_prepared_transaction_holds(
    log: Oplog, prepared_sessions: sessionmaker[Session], plain: Engine
) -> None:
    with prepared_sessions() as session:
        log.annotate(session, idempotency_key="k")
        session.add(Customer(id=1, name="a"))
        session.prepare()
        (found,) = log.inquire("k", plain, wait_seconds=0).blockers
        assert (found.process_id, found.state) == (0, "prepared transaction")
        session.commit()
    assert not held(plain, KEY.format("k"))


def test_a_retry_finds_its_way_past_an_old_snapshot(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    """The first to lock an aggregate commits while a run at REPEATABLE READ has its snapshot."""
    with sessions.begin() as session:
        session.add(Customer(id=1, name="a"))
    factory = sessionmaker(engine.execution_options(isolation_level="REPEATABLE READ"))
    log.attach(factory)
    tried: list[int] = []

    def work(session: Session) -> None:
        tried.append(1)
        session.execute(sa.text("SELECT FROM customer"))
        if len(tried) == 1:
            use(engine, AGGREGATE.format("customer/1"))
        log.lock(session, "customer/1")
        session.get_one(Customer, 1).name = "b"

    log.run(factory, work)
    assert len(tried) == 2
