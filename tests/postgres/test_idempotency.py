"""One effect for one key: repeats, conflicts, races, savepoints, and keys that change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, Outcome, Receipt, TypeCatalog
from oplog.errors import ConfigurationError, IdempotencyConflictError, TicketConflictError
from tests.concurrency.workload import Base, Customer, Member, waiting_for_lock
from tests.logged import LoggedDatabase, open_logged
from tests.support import install_log

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates={"member": "team/{team}"})
    with db.sessions.begin() as session:
        session.add(Customer(id=1, name="first"))
        session.add(Member(id=1, team="red"))
    return db


def add(number: int) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.add(Customer(id=number, name="added"))

    return work


def test_a_repeat_returns_the_first_receipts_without_running(db: LoggedDatabase) -> None:
    calls: list[int] = []

    def work(session: Session) -> None:
        calls.append(1)
        session.add(Customer(id=2, name="second"))
        session.add(Member(id=2, team="blue"))

    first = db.log.run(db.sessions, work, idempotency_key="k")
    assert isinstance(first, list)
    assert [r.aggregate for r in first] == ["customer/2", "team/blue"]
    assert db.log.run(db.sessions, work, idempotency_key="k") == first
    assert calls == [1]
    stored = [e for e in db.read() if e.aggregate in {"customer/2", "team/blue"}]
    assert [Receipt(e.entry_id, e.aggregate, e.version, e.entry_hash) for e in stored] == first
    assert db.log.inquire("k", db.engine).receipts == tuple(first)
    db.assert_replays()
    db.assert_pool_is_clean()


def test_what_the_work_returned_comes_back_once(db: LoggedDatabase) -> None:
    def work(session: Session) -> int:
        session.get_one(Customer, 1).name = "changed"
        return 42

    assert db.log.run(db.sessions, work, idempotency_key="k") == 42
    (receipt,) = db.log.run(db.sessions, work, idempotency_key="k")  # type: ignore[misc]
    assert receipt.aggregate == "customer/1"


def test_another_request_under_the_key_writes_nothing(db: LoggedDatabase) -> None:
    first = db.log.run(db.sessions, add(2), idempotency_key="k")
    with pytest.raises(IdempotencyConflictError, match="another request") as caught:
        db.log.run(db.sessions, add(3), idempotency_key="k")
    assert caught.value.receipts == first
    assert not caught.value.retryable
    assert db.count("customer") == 2
    db.assert_pool_is_clean()


def test_the_application_says_what_a_request_is(db: LoggedDatabase) -> None:
    body = {"customer": 2}
    first = db.log.run(db.sessions, add(2), idempotency_key="k", idempotency_request=body)
    again = db.log.run(db.sessions, add(9), idempotency_key="k", idempotency_request=body)
    assert again == first
    with pytest.raises(IdempotencyConflictError):
        db.log.run(db.sessions, add(2), idempotency_key="k", idempotency_request={"customer": 3})
    (entry,) = db.read()[-1:]
    assert list(entry.metadata) == ["oplog.request"]


def test_a_work_that_fails_leaves_the_key_free(db: LoggedDatabase) -> None:
    def work(session: Session) -> None:
        session.add(Customer(id=2, name="second"))
        session.flush()
        if fail:
            raise ZeroDivisionError

    for fail in (True, False):
        if fail:
            with pytest.raises(ZeroDivisionError):
                db.log.run(db.sessions, work, idempotency_key="k")
            assert db.log.resolve("k", db.engine) is Outcome.ABORTED
        else:
            db.log.run(db.sessions, work, idempotency_key="k")
    assert db.log.resolve("k", db.engine) is Outcome.COMMITTED
    assert db.count("customer") == 2


def test_a_key_is_used_up_by_a_work_that_changes_nothing(db: LoggedDatabase) -> None:
    calls: list[int] = []

    def work(session: Session) -> None:
        calls.append(1)
        session.execute(sa.text("SELECT 1"))

    first = db.log.run(db.sessions, work, idempotency_key="k")
    assert db.log.run(db.sessions, work, idempotency_key="k") == first
    assert calls == [1]
    entry = db.read()[-1]
    assert (entry.operations, entry.version) == ((), 1)
    assert entry.aggregate.startswith("oplog/request/")
    db.assert_replays()


def test_annotating_with_a_used_key_tells_so(db: LoggedDatabase) -> None:
    with db.sessions() as session:
        with session.begin():
            assert db.log.annotate(session, idempotency_key="k", actor="a") == []
            session.add(Customer(id=2, name="second"))
        first = db.log.receipts(session)
    with db.sessions() as session:
        with session.begin():
            assert db.log.annotate(session, idempotency_key="k") == first
            assert db.log.annotate(session, idempotency_key="k") == first
        assert db.log.receipts(session) == first
    with db.sessions() as session:
        db.log.annotate(session, idempotency_key="k")
        session.get_one(Customer, 1).name = "again"
        with pytest.raises(IdempotencyConflictError, match="writes again") as caught:
            session.commit()
    assert caught.value.receipts == first
    assert db.read()[-1].metadata == {"actor": ["a"]}
    db.assert_replays()
    db.assert_pool_is_clean()


def test_a_connection_of_an_attached_engine_takes_keys_too(db: LoggedDatabase) -> None:
    db.log.attach(db.engine)
    statement = sa.update(Customer.__table__).values(name="x").where(Customer.id == 1)  # type: ignore[arg-type]
    with db.engine.begin() as connection:
        assert db.log.annotate(connection, idempotency_key="k") == []
        connection.execute(statement)
    first = db.log.receipts(connection)
    with db.engine.begin() as connection:
        assert db.log.annotate(connection, idempotency_key="k") == first
    with db.engine.connect() as connection:
        transaction = connection.begin()
        db.log.annotate(connection, idempotency_key="k")
        connection.execute(statement.values(name="y"))
        with pytest.raises(IdempotencyConflictError):
            transaction.commit()
    db.assert_replays()


def test_two_at_once_have_one_effect(db: LoggedDatabase) -> None:
    entered, go = threading.Event(), threading.Event()
    results: list[Any] = []

    def work(session: Session) -> None:
        session.get_one(Member, 1).points += 1
        session.flush()
        entered.set()
        assert go.wait(60)

    def run() -> None:
        results.append(db.log.run(db.sessions, work, idempotency_key="k"))

    threads = [threading.Thread(target=run) for _ in range(3)]
    threads[0].start()
    assert entered.wait(60)
    with waiting_for_lock(db.engine, count=2):
        for thread in threads[1:]:
            thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    assert db.read()[-1].operations[0].fields == {"points": 1}


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_does_not_see_the_key_and_still_cannot_use_it(
    db: LoggedDatabase, level: str
) -> None:
    engine = db.engine.execution_options(isolation_level=level)
    old = sessionmaker(engine)
    db.log.attach(old)
    with old() as session:
        session.execute(sa.text("SELECT 1 FROM customer"))
        db.log.run(db.sessions, add(2), idempotency_key="k")
        assert db.log.annotate(session, idempotency_key="k") == []
        session.add(Customer(id=3, name="third"))
        with pytest.raises((IdempotencyConflictError, TicketConflictError)) as caught:
            session.commit()
        assert caught.value.retryable
    assert db.count("customer") == 2
    db.assert_pool_is_clean()


def test_a_key_taken_in_a_savepoint_goes_with_it(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        inner = session.begin_nested()
        db.log.annotate(session, idempotency_key="k")
        inner.rollback()
        session.get_one(Customer, 1).name = "unkeyed"
    assert db.log.resolve("k", db.engine) is Outcome.ABORTED
    with db.sessions.begin() as session:
        with session.begin_nested():
            db.log.annotate(session, idempotency_key="k")
        session.get_one(Customer, 1).name = "keyed"
    assert db.log.resolve("k", db.engine) is Outcome.COMMITTED


def test_refused(db: LoggedDatabase) -> None:
    with db.sessions() as session:
        session.get_one(Customer, 1).name = "first"
        session.add(Customer(id=5, name="x"))
        session.flush()
        with pytest.raises(ConfigurationError, match="after the transaction's first write"):
            db.log.annotate(session, idempotency_key="k")
    with db.sessions() as session:
        db.log.annotate(session, idempotency_key="k")
        with pytest.raises(ConfigurationError, match="is given 'other'"):
            db.log.annotate(session, idempotency_key="other")


def test_two_logs_have_keys_of_their_own(db: LoggedDatabase) -> None:
    # A key held for another schema's log does not wait for this one's.
    other = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate(), schema="other")
    with db.engine.begin() as connection:
        install_log(connection, schema="other")
    with db.sessions() as session:
        db.log.annotate(session, idempotency_key="k")
        with db.engine.begin() as connection:
            other._log.outcomes.lock_key(connection, "k")
        with waiting_for_lock(db.engine):
            thread = threading.Thread(
                target=lambda: db.log.resolve("k", db.engine, wait_seconds=60)
            )
            thread.start()
    thread.join()


def test_who_holds_a_key_is_told(db: LoggedDatabase) -> None:
    with db.sessions() as session:
        db.log.annotate(session, idempotency_key="k")
        holder = session.connection().connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        found = db.log.inquire("k", db.engine, wait_seconds=0)
    assert found.outcome is Outcome.PENDING
    assert [b.process_id for b in found.blockers] == [holder]
    assert found.blockers[0].state == "idle in transaction"


async def test_async(db: LoggedDatabase, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)

    async def work(session: Any) -> None:
        session.add(Customer(id=2, name="second"))

    first = await db.log.run_async(sessions, work, idempotency_key="k")
    assert isinstance(first, list)
    assert await db.log.run_async(sessions, work, idempotency_key="k") == first
    assert await db.log.resolve_async("k", engine) is Outcome.COMMITTED
    assert await db.log.resolve_async(first, engine) is Outcome.COMMITTED
    async with sessions() as session:
        with pytest.raises(ConfigurationError, match="run_sync"):
            db.log.annotate(session, idempotency_key="k")
        before = await session.run_sync(lambda s: db.log.annotate(s, idempotency_key="k"))
        assert before == first
    await engine.dispose()
    db.assert_replays()
