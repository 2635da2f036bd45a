"""Adoption while others write, and while others adopt: nothing twice, nothing missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.adoption import AdoptionTarget, LockWait, adopt_tables
from oplog.backoff import Backoff
from oplog.errors import ConflictError
from tests.concurrency.workload import Customer, Invoice, waiting_for_lock
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

CUSTOMERS, INVOICES = 60, 400
SERIES = "FROM generate_series(1, {}) n"


@pytest.fixture
def rows(engine: Engine, log: Oplog) -> None:
    """What was there before the log."""
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO customer SELECT n, 'old ' || n {SERIES.format(CUSTOMERS)}",
            f"INSERT INTO invoice SELECT n, 1 + mod(n, 60), n {SERIES.format(INVOICES)}",
            f"SELECT setval('customer_id_seq', {CUSTOMERS})",
            f"SELECT setval('invoice_id_seq', {INVOICES})",
        ):
            connection.exec_driver_sql(statement)


class Writer:
    """Changes whatever rows there are, through the log, one transaction after another."""

    def __init__(self, log: Oplog, sessions: sessionmaker[Session], *, seed: int) -> None:
        self.log = log
        self.sessions = sessions
        self.random = random.Random(seed)
        self.done = 0

    def work(self, session: Session) -> None:
        customer = session.get(Customer, self.random.randint(1, CUSTOMERS))
        if customer is not None:
            customer.name = f"changed {self.random.random()}"
            session.add(Invoice(customer_id=customer.id, amount=1))
        for _ in range(3):
            number = self.random.randint(1, INVOICES + 50)
            invoice = session.get(Invoice, number, with_for_update={"nowait": True})
            if invoice is not None and self.random.random() < 0.4:
                session.delete(invoice)
            elif invoice is not None:
                invoice.amount += 1

    def write(self) -> None:
        try:
            self.log.run(self.sessions, self.work, retries=100)
        except OperationalError as error:
            assert "could not obtain lock" in str(error)  # noqa: PT017 - another has the row
        self.done += 1


@contextmanager
def writing(writers: list[Writer]) -> Iterator[Callable[[], None]]:
    """Threads that write until the block ends; the callable waits until each wrote once more."""
    stop = threading.Event()
    wrote = [threading.Semaphore(0) for _ in writers]
    failures: list[BaseException] = []

    def run(writer: Writer, signal: threading.Semaphore) -> None:
        try:
            while not stop.is_set():
                writer.write()
                signal.release()
        except BaseException as failure:  # noqa: BLE001 - given to the test
            failures.append(failure)
            signal.release(10**6)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(writers, wrote, strict=True)]
    for thread in threads:
        thread.start()

    def wait() -> None:
        for signal in wrote:
            signal.acquire()

    try:
        yield wait
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_writers_go_on_while_their_tables_are_adopted(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], rows: None
) -> None:
    writers = [Writer(log, sessions, seed=seed) for seed in range(3)]
    with writing(writers) as wait, engine.connect() as connection:
        wait()
        # Between two chunks each writer gets its turn.
        report = log.adopt(connection, chunk_rows=25, progress=lambda *_: wait())
        wait()
    assert report.entries > 15
    assert all(writer.done > report.entries for writer in writers)
    entries = 0
    with engine.connect() as connection:
        positions = {e.aggregate: e.position for e in log.read(connection)}
        first, last = min(positions.values()), positions["adopted/invoice"]
        entries = sum(first < position < last for position in positions.values())
        assert log.verify(connection).ok
        assert log.replay(connection).rows > 0
    assert entries > report.entries
    assert_replays(log, engine)


def test_two_adoptions_share_the_work(engine: Engine, log: Oplog, rows: None) -> None:
    gate = threading.Barrier(2)
    done: list[tuple[int, int]] = []

    def adopt() -> None:
        chunks: list[int] = []

        def meet(rows: int, expected: int) -> None:
            # Neither goes on before the other has had its first chunk.
            chunks.append(rows)
            if len(chunks) == 1:
                gate.wait()

        with engine.connect() as connection:
            report = log.adopt(connection, chunk_rows=7, progress=meet)
            done.append((report.rows, report.entries))

    threads = [threading.Thread(target=adopt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(rows for rows, _ in done) == CUSTOMERS + INVOICES
    assert all(rows for rows, _ in done)
    with engine.connect() as connection:
        entries = [e for e in log.read(connection) if e.aggregate == "adopted/invoice"]
    keys = [operation.key["id"] for entry in entries for operation in entry.operations]
    assert keys == list(range(1, INVOICES + 1))
    assert [e.metadata.get("adopted_rows") for e in entries[:-1]] == [None] * (len(entries) - 1)
    assert entries[-1].metadata["adopted_rows"] == [str(INVOICES)]
    assert_replays(log, engine)


def test_an_adoption_waits_for_another_and_finds_nothing_left(
    engine: Engine, log: Oplog, rows: None
) -> None:
    found: list[int] = []

    def adopt() -> None:
        with engine.connect() as connection:
            found.append(log.adopt(connection, "customer").rows)

    with engine.begin() as connection:
        log.adopt(connection, "customer")
        with waiting_for_lock(engine):
            waiting = threading.Thread(target=adopt)
            waiting.start()
    waiting.join()
    assert found == [0]
    assert_replays_but_invoices(log, engine)


def assert_replays_but_invoices(log: Oplog, engine: Engine) -> None:
    with engine.connect() as connection:
        verdict = log.verify(connection)
    assert {d.table for d in verdict.differences} == {"public.invoice"}


def make_target(log: Oplog) -> AdoptionTarget:
    return AdoptionTarget(
        store=log.store,
        keyring=log.keyring,
        sealer=log._log.sealer,
        codec=log._log.codec,
        on_event=log._log.on_event,
    )


def test_a_long_transaction_holds_up_the_adoption_and_nobody_else(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], rows: None
) -> None:
    holder = engine.connect()
    holder.execute(sa.update(customer_table(log)).values(name="held").where(sa.text("id = 1")))
    pauses = []

    def sleep(seconds: float) -> None:
        """During the pause others write at once; at the third one the holder ends."""
        pauses.append(seconds)
        with sessions.begin() as session:
            session.connection().exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
            session.get_one(Customer, 2).name = f"written at pause {len(pauses)}"
        if len(pauses) == 3:
            holder.rollback()

    wait = LockWait(
        0.02,
        Backoff(
            first_seconds=14.0,
            longest_seconds=14.0,
            jitter=0.5,
            deadline_seconds=300.0,
            sleep=sleep,
        ),
    )
    with engine.connect() as connection:
        report = adopt_tables(
            connection, log.catalog, tables=["customer"], target=make_target(log), lock_wait=wait
        )
    holder.close()
    assert (report.rows, len(pauses)) == (CUSTOMERS, 3)
    assert all(7.0 <= seconds <= 14.0 for seconds in pauses)
    assert_replays_but_invoices(log, engine)


def test_rows_are_read_as_they_are_under_the_lock(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], rows: None
) -> None:
    """On an engine that reads from snapshots, too: one from before the lock shows the past."""
    with sessions() as writer, engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        writer.get_one(Customer, 2).name = "committed while the lock is waited for"
        writer.flush()
        wait = LockWait(0.02, Backoff(sleep=lambda _: writer.commit()))
        adopt_tables(
            connection, log.catalog, tables=["customer"], target=make_target(log), lock_wait=wait
        )
    assert_replays_but_invoices(log, engine)


def customer_table(log: Oplog) -> sa.Table:
    return log.catalog.types["customer"].table


def test_who_waits_for_too_long_gives_up_and_leaves_nothing(
    engine: Engine, log: Oplog, rows: None
) -> None:
    times = iter([0.0, 1.0, 299.0, 300.0])
    usual = LockWait().backoff
    wait = LockWait(
        0.01, replace(usual, sleep=lambda _: None, clock=lambda: next(times), draw=lambda: 0.5)
    )
    with engine.connect() as holder, engine.connect() as connection:
        holder.exec_driver_sql("UPDATE customer SET name = 'held' WHERE id = 1")
        with pytest.raises(ConflictError, match=r"lock on public\.customer.*300 seconds") as caught:
            adopt_tables(
                connection,
                log.catalog,
                tables=["customer"],
                target=make_target(log),
                lock_wait=wait,
            )
    assert caught.value.retryable
    assert list(times) == []
    with engine.connect() as connection:
        assert list(log.read(connection)) == []
        assert log.adopt(connection, "customer").rows == CUSTOMERS


def test_in_an_open_transaction_no_lock_is_held_while_another_is_waited_for(
    engine: Engine, log: Oplog, rows: None
) -> None:
    free: list[bool] = []

    def sleep(_: float) -> None:
        with engine.begin() as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
            other.exec_driver_sql("LOCK TABLE customer IN ROW EXCLUSIVE MODE")
            free.append(True)
        holder.rollback()

    wait = LockWait(0.02, Backoff(sleep=sleep))
    with engine.connect() as holder, engine.begin() as connection:
        holder.exec_driver_sql("DELETE FROM invoice WHERE id = 1")
        adopt_tables(
            connection,
            log.catalog,
            tables=["customer", "invoice"],
            target=make_target(log),
            lock_wait=wait,
        )
    assert free == [True]
    with engine.connect() as connection:
        assert log.verify(connection).ok


def test_the_lock_lasts_one_chunk(
    database_url: URL, engine: Engine, log: Oplog, rows: None
) -> None:
    other = create_engine(database_url)

    def lock(*_: int) -> None:
        with other.begin() as connection:
            # The adopting connection waits for this one. Autovacuum may hold a lock, and gives way.
            connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
            connection.exec_driver_sql("LOCK TABLE customer, invoice IN ACCESS EXCLUSIVE MODE")

    with engine.connect() as connection:
        log.adopt(connection, chunk_rows=50, progress=lock)
    other.dispose()
    assert_replays(log, engine)
