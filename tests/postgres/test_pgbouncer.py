"""Everything through a real PgBouncer in transaction pooling, which shares two connections.

A client meets another server connection in each transaction: what is kept per session is lost,
or found by somebody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog, Outcome
from oplog.errors import TicketConflictError
from oplog.events import EntriesAppended, Event
from tests.concurrency.workload import Base, Customer, Invoice, Member, consume, make_log
from tests.logged import track
from tests.pgbouncer import open_pgbouncer
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

SERVER_CONNECTIONS = 2
CLIENTS = 8
ARGUMENTS = {"prepare_threshold": None}


@pytest.fixture
def pooled(engine: Engine) -> Iterator[Engine]:
    """An engine whose connections are PgBouncer's clients."""
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    with open_pgbouncer(engine.url, size=SERVER_CONNECTIONS) as url:
        pooled = create_engine(url, connect_args=ARGUMENTS, pool_size=CLIENTS)
        yield pooled
        pooled.dispose()


@pytest.fixture
def events() -> list[Event]:
    """What the log has reported."""
    return []


@pytest.fixture
def log(engine: Engine, pooled: Engine, events: list[Event]) -> Iterator[Oplog]:
    log = make_log(on_event=events.append)
    yield log
    # Through PgBouncer, and beside it.
    assert_replays(log, pooled)
    assert_replays(log, engine)


@pytest.fixture
def sessions(log: Oplog, pooled: Engine) -> sessionmaker[Session]:
    factory = sessionmaker(pooled)
    log.attach(factory)
    return factory


def test_clients_really_share_server_connections(pooled: Engine) -> None:
    with pooled.connect() as one, pooled.connect() as two:
        pids = set()
        for connection in (one, two) * 4:
            pids.add(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            connection.commit()
        told = {c.connection.driver_connection.info.backend_pid for c in (one, two)}  # type: ignore[union-attr]
    assert len(pids) <= SERVER_CONNECTIONS
    # What a driver takes for its server's process is none.
    assert not told & pids


def test_every_way_of_writing(log: Oplog, sessions: sessionmaker[Session]) -> None:
    for number in range(6):
        with sessions.begin() as session:
            log.annotate(session, actor=f"a{number}")
            session.add(Customer(id=number, name="new"))
            session.flush()
            # Seen by the guards alone: their message has to reach this client.
            session.execute(sa.text(f"UPDATE customer SET name = 'raw {number}'"))
            session.execute(sa.update(Customer).values(name=Customer.name + "!"))
            with session.begin_nested() as savepoint:
                session.add(Invoice(id=number, customer_id=number, amount=1))
                session.flush()
                savepoint.rollback()
            session.add(Invoice(id=100 + number, customer_id=number, amount=2))
        assert len(log.receipts(session)) == number + 2
    with sessions() as session:
        entries = list(log.read(session.connection()))
    assert len(entries) == sum(number + 2 for number in range(6))


def test_raw_statements_alone_are_captured(log: Oplog, sessions: sessionmaker[Session]) -> None:
    for number in range(6):
        with sessions.begin() as session:
            session.execute(sa.text(f"INSERT INTO customer VALUES ({number}, 'raw')"))
        assert [receipt.version for receipt in log.receipts(session)] == [1]


def test_nothing_of_a_transaction_reaches_the_next_client(
    log: Oplog, pooled: Engine, sessions: sessionmaker[Session]
) -> None:
    """Settings, also those of transactions that ended badly, and cursors of reads cut short."""
    names = "SELECT name FROM pg_settings WHERE name LIKE 'oplog.%%' AND setting <> ''"
    for number in range(6):
        with sessions() as session:
            session.add(Customer(id=number, name="kept" if number % 2 else "rolled back"))
            session.flush()
            if number % 2:
                session.commit()
        with pooled.connect() as connection:
            assert list(connection.exec_driver_sql(names).scalars()) == []
            next(iter(log.read(connection)), None)
    # A writer without a log meets server connections that logged before: refused all the same.
    bare = create_engine(pooled.url, connect_args=ARGUMENTS)
    for _ in range(4):
        with pytest.raises(DBAPIError, match="logged"), bare.begin() as connection:
            connection.exec_driver_sql("UPDATE customer SET name = 'slipped past'")
    bare.dispose()


def test_conflicts_are_found_and_run_again(
    log: Oplog, pooled: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        session.add(Customer(id=1, name=""))
    with sessions() as slow:
        log.take_ticket(slow, "customer/1")
        with sessions.begin() as fast:
            fast.get_one(Customer, 1).name = "fast"
        slow.get_one(Customer, 1).name = "slow"
        with pytest.raises(TicketConflictError):
            slow.commit()
    both_have_read = threading.Barrier(2)
    tries: list[str] = []

    def work(session: Session) -> None:
        log.take_ticket(session, "customer/1")
        customer = session.get_one(Customer, 1)
        tries.append(customer.name)
        if len(tries) <= 2:
            both_have_read.wait(30)
        customer.name += "+"

    threads = [threading.Thread(target=log.run, args=(sessions, work)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert tries == ["fast", "fast", "fast+"]
    with sessions() as session:
        assert session.get_one(Customer, 1).name == "fast++"


def test_a_lost_answer_is_resolved(
    log: Oplog, engine: Engine, pooled: Engine, sessions: sessionmaker[Session]
) -> None:
    """The process id that the driver knows is PgBouncer's invention: it must not be relied on."""
    with sessions.begin() as session:
        session.add(Customer(id=1, name="kept"))
    (kept,) = log.receipts(session)
    lost = replace(kept, entry_id=uuid4())
    for there in (pooled, engine):
        assert log.resolve(kept, there) is Outcome.COMMITTED
        assert log.resolve(lost, there) is Outcome.ABORTED

    def work(session: Session) -> None:
        session.get_one(Customer, 1).name += "!"

    for _ in range(3):
        log.run(sessions, work, idempotency_key="once")
    assert log.resolve("once", pooled) is Outcome.COMMITTED
    with sessions() as session:
        assert session.get_one(Customer, 1).name == "kept!"


def test_a_transaction_that_is_still_open_is_not_called_aborted(
    log: Oplog, pooled: Engine, sessions: sessionmaker[Session], events: list[Event]
) -> None:
    with sessions.begin() as session:
        session.add(Customer(id=1, name="new"))
    (kept,) = log.receipts(session)
    prepared = sessionmaker(pooled, twophase=True)
    log.attach(prepared)
    with prepared() as open_session:
        open_session.get_one(Customer, 1).name = "open"
        # Its record is written and not visible; no server process belongs to it any more.
        open_session.prepare()
        appended = events[-1]
        assert isinstance(appended, EntriesAppended)
        still_open = replace(kept, entry_id=appended.record_id)
        resolution = log.inquire(still_open, pooled, wait_seconds=0.2)
        assert resolution.outcome is Outcome.PENDING
        assert [blocker.state for blocker in resolution.blockers] == ["prepared transaction"]
        # Another one is not kept waiting by it.
        other = replace(kept, entry_id=uuid4())
        assert log.resolve(other, pooled) is Outcome.ABORTED
        open_session.commit()
    assert log.resolve(still_open, pooled) is Outcome.COMMITTED
    assert log.resolve(other, pooled) is Outcome.ABORTED


def test_many_threads(log: Oplog, sessions: sessionmaker[Session]) -> None:
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        def work(session: Session) -> None:
            customer = Customer(id=writer * 100 + step, name="new")
            session.add(customer)
            session.flush()
            session.execute(
                sa.text("INSERT INTO invoice (customer_id, amount) VALUES (:id, 1)"),
                {"id": customer.id},
            )
            session.execute(sa.update(Customer).where(Customer.id == customer.id).values(name="x"))

        try:
            for step in range(10):  # noqa: B007 - `work` reads it, before the next one
                log.run(sessions, work)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=write, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    with sessions() as session:
        entries = list(log.read(session.connection()))
    assert len(entries) == CLIENTS * 10 * 2


def test_async_sessions(log: Oplog, pooled: Engine) -> None:
    async def write() -> list[int]:
        engine = create_async_engine(pooled.url, connect_args=ARGUMENTS)
        factory = async_sessionmaker(engine)
        log.attach(factory)

        async def work(session: object, number: int) -> None:
            session.add(Customer(id=number, name="new"))  # type: ignore[attr-defined]
            await session.flush()  # type: ignore[attr-defined]
            await session.execute(  # type: ignore[attr-defined]
                sa.text("UPDATE customer SET name = 'raw' WHERE id = :id"), {"id": number}
            )

        await asyncio.gather(
            *(log.run_async(factory, lambda s, n=n: work(s, n)) for n in range(CLIENTS))  # type: ignore[misc]
        )
        async with factory() as session:
            found = await session.run_sync(lambda s: list(log.read(s.connection())))
        await engine.dispose()
        return [entry.version for entry in found]

    assert asyncio.run(write()) == [1] * CLIENTS


def test_consumers_replay_and_adoption(
    log: Oplog, engine: Engine, pooled: Engine, sessions: sessionmaker[Session]
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'rows from before the log'")
        connection.exec_driver_sql("INSERT INTO member (id, team, points) VALUES (1, 'a', 1)")
    with sessions.begin() as session:
        session.add_all(Customer(id=number, name="new") for number in range(3))
    with pooled.connect() as connection:
        report = log.adopt(connection, [Member])
        assert sum(adopted.rows for adopted in report.types) == 1
    with pooled.connect() as connection:
        assert log.replay(connection, into="elsewhere").rows == 4
    # Three customers, the adopted row, and the end of its adoption.
    assert len(consume(log, pooled, max_entries=2)) == 5
    with pooled.connect() as connection:
        assert [change.version for change in log.read(connection, aggregate="customer/1")] == [1]


def test_prepared_statements_fail_with_an_old_pgbouncer_and_lose_nothing(
    log: Oplog, engine: Engine, pooled: Engine
) -> None:
    """Without `prepare_threshold=None` statements fail, clearly and before anything commits."""
    careless = create_engine(pooled.url, pool_size=CLIENTS)
    factory = sessionmaker(careless)
    log.attach(factory)
    failures: list[str] = []
    with factory() as one, factory() as two:
        for number in range(40):
            session = (one, two)[number % 2]
            try:
                session.add(Customer(id=number, name="new"))
                session.commit()
            except DBAPIError as error:
                failures.append(str(error.orig))
                session.rollback()
    careless.dispose()
    assert all("prepared statement" in failure for failure in failures)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(sa.func.count()).select_from(Customer)).scalar_one()
        assert rows == len(list(log.read(connection))) == 40 - len(failures)
