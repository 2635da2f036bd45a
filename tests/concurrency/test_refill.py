"""Rows are logged again while others write them: afterwards the log tells the live table."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.adoption import LockWait
from oplog.backoff import Backoff
from oplog.errors import ConflictError
from oplog.type_binding import BoundType
from tests.concurrency.test_adoption import Writer, writing
from tests.concurrency.workload import Customer, Invoice, make_log, waiting_for_lock
from tests.refilling import list_refills, migrate, refill
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

CUSTOMERS, INVOICES = 60, 400
WIDER = "ALTER TABLE invoice ALTER amount TYPE bigint USING amount * 1000"


@pytest.fixture
def bound(engine: Engine, log: Oplog, sessions: sessionmaker[Session]) -> BoundType:
    """Rows that the log knows, as a migration left them; `log` does not know of it yet."""
    with sessions.begin() as session:
        session.add_all([Customer(name=f"old {n}") for n in range(CUSTOMERS)])
        session.flush()
        session.add_all([Invoice(customer_id=1 + n % 60, amount=n) for n in range(INVOICES)])
    log.detach(sessions)
    return migrate(engine, log, "invoice", WIDER)


@pytest.fixture
def new_log(bound: BoundType, log: Oplog, sessions: sessionmaker[Session]) -> Oplog:
    """The application as it is started after the migration."""
    started = make_log(keyring=log.keyring)
    started.attach(sessions)
    with sessions.begin() as session:
        # The first writer finishes the change. The tests log the rows again all the same.
        session.add(Customer(name="first"))
    return started


class Rekeyer(Writer):
    """Gives invoices other numbers, too, before and behind what was read."""

    def work(self, session: Session) -> None:
        super().work(session)
        number = self.random.randint(1, INVOICES + 50)
        invoice = session.get(Invoice, number, with_for_update={"nowait": True})
        other = self.random.randint(-500, 1000)
        if invoice is not None and session.get(Invoice, other) is None:
            invoice.id = other

    def write(self) -> None:
        try:
            super().write()
        except sa.exc.IntegrityError:
            # Two took the same number.
            self.done += 1


@pytest.mark.parametrize("keep_progress", [True, False])
def test_writers_go_on_while_rows_are_logged_again(
    engine: Engine,
    new_log: Oplog,
    sessions: sessionmaker[Session],
    bound: BoundType,
    keep_progress: bool,
) -> None:
    writers: list[Writer] = [Rekeyer(new_log, sessions, seed=seed) for seed in range(3)]

    def take_turns() -> Callable[..., None] | None:
        # In one transaction the table stays locked.
        return (lambda *_: wait()) if keep_progress else None

    with writing(writers) as wait, engine.connect() as connection:
        wait()
        report = refill(
            connection,
            new_log,
            bound,
            chunk_rows=25,
            keep_progress=keep_progress,
            progress=take_turns(),
        )
        wait()
    assert report.entries >= 12
    assert_replays(new_log, engine)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(12))
def test_any_changes_between_chunks(
    engine: Engine,
    new_log: Oplog,
    sessions: sessionmaker[Session],
    bound: BoundType,
    seed: int,
) -> None:
    """One writer in step with the chunks, so that each seed is one history."""
    writer = Rekeyer(new_log, sessions, seed=seed)
    draw = random.Random(seed)

    def write(*told: int) -> None:
        for _ in range(draw.randint(0, 4)):
            writer.write()

    with engine.connect() as connection:
        write()
        refill(connection, new_log, bound, chunk_rows=draw.randint(5, 120), progress=write)
    assert_replays(new_log, engine)


@pytest.mark.parametrize("keep_progress", [True, False])
def test_two_that_log_the_same_rows_wait_for_each_other(
    engine: Engine, new_log: Oplog, bound: BoundType, keep_progress: bool
) -> None:
    """The first one goes on to write the table, which two with a shared lock could not."""
    found: list[int] = []

    def log_again() -> None:
        with engine.connect() as connection:
            report = refill(connection, new_log, bound, keep_progress=keep_progress)
            found.append(report.rows)

    sessions = sessionmaker(engine)
    new_log.attach(sessions)
    with sessions.begin() as session:
        connection = session.connection()
        report = refill(
            connection, new_log, bound, own=False, keep_progress=keep_progress, chunk_rows=50
        )
        assert report.rows == INVOICES
        with waiting_for_lock(engine):
            waiting = threading.Thread(target=log_again)
            waiting.start()
        session.get_one(Invoice, 7).amount = -1
    waiting.join()
    assert found == [0 if keep_progress else INVOICES]
    assert_replays(new_log, engine)


def test_two_runs_share_the_work(engine: Engine, log: Oplog, bound: BoundType) -> None:
    gate = threading.Barrier(2)
    done: list[int] = []

    def log_again() -> None:
        chunks: list[int] = []

        def meet(rows: int, expected: int) -> None:
            # Neither goes on before the other has had its first chunk.
            chunks.append(rows)
            if len(chunks) == 1:
                gate.wait()

        with engine.connect() as connection:
            report = refill(connection, log, bound, chunk_rows=7, progress=meet)
            done.append(report.rows)

    threads = [threading.Thread(target=log_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == INVOICES
    assert all(done)
    with engine.connect() as connection:
        entries = list_refills(list(log.read(connection)))
    keys = [operation.key["id"] for entry in entries for operation in entry.operations]
    assert keys == list(range(1, INVOICES + 1))
    assert_replays(log, engine)


def test_rows_are_read_as_they_are_under_the_lock(
    engine: Engine, new_log: Oplog, sessions: sessionmaker[Session], bound: BoundType
) -> None:
    with sessions() as writer, engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        writer.get_one(Invoice, 2).amount = 5
        writer.flush()
        wait = LockWait(0.02, Backoff(sleep=lambda _: writer.commit()))
        refill(connection, new_log, bound, lock_wait=wait)
    assert_replays(new_log, engine)


def test_who_waits_for_too_long_gives_up_and_leaves_nothing(
    engine: Engine, log: Oplog, bound: BoundType
) -> None:
    usual = LockWait().backoff
    wait = LockWait(0.01, replace(usual, sleep=lambda _: None, deadline_seconds=0.0))
    with engine.connect() as holder, engine.connect() as connection:
        holder.exec_driver_sql("UPDATE invoice SET amount = 0 WHERE id = 1")
        with pytest.raises(ConflictError, match=r"lock on public\.invoice") as caught:
            refill(connection, log, bound, lock_wait=wait)
    assert caught.value.retryable
    with engine.connect() as connection:
        assert list_refills(list(log.read(connection))) == []
    with engine.connect() as connection:
        assert refill(connection, log, bound).rows == INVOICES


def test_the_lock_lasts_one_chunk(engine: Engine, new_log: Oplog, bound: BoundType) -> None:
    free: list[bool] = []

    def lock(*_: int) -> None:
        with engine.begin() as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
            try:
                other.exec_driver_sql("LOCK TABLE invoice IN ACCESS EXCLUSIVE MODE")
            except OperationalError:
                free.append(False)
                raise
            free.append(True)

    with engine.connect() as connection:
        refill(connection, new_log, bound, chunk_rows=50, progress=lock)
    assert free == [True] * 9
