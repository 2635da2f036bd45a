"""COMMITs that the server refuses, and that the log refuses: what is told is definite and true.

An answer that names a reason, on a connection that lives, decides: nothing happened, the error
is the one that an application without a log would get, and the connection is as good as new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from oplog import Entry, Operation
from oplog.capture.retry import is_retryable
from oplog.errors import (
    CommitWouldRollBackError,
    ConfigurationError,
    TicketConflictError,
)
from tests.concurrency.workload import Customer, Invoice
from tests.fault.lost_commits import (
    COMMIT,
    Background,
    Bench,
    commit,
    commit_async,
    count,
    name,
    open_bench,
    write_both,
    write_known,
)
from tests.fault.proxy import Fault

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

LOCKED = "55P03"


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


def get_state(error: DBAPIError) -> str | None:
    """SQLSTATE."""
    return getattr(error.orig, "sqlstate", None)


def fail_then_go_on(bench: Bench, work: Callable[[Session], None], kind: Any) -> Any:
    """The error of a session's commit, whose one connection serves the next one as well."""
    with bench.open_sessions(pool_size=1, max_overflow=0) as sessions:
        with sessions() as session:
            before = find_process(session)
            work(session)
            with pytest.raises(kind) as caught:
                session.commit()
        assert not bench.happened(1)
        with sessions.begin() as session:
            assert find_process(session) == before
            write_both(session, 2)
    assert bench.happened(2)
    bench.assert_whole()
    return caught.value


async def fail_then_go_on_async(bench: Bench, work: Callable[[Session], None], kind: Any) -> Any:
    async with bench.open_async_sessions(pool_size=1, max_overflow=0) as sessions:
        async with sessions() as session:
            before = await session.run_sync(find_process)
            await session.run_sync(work)
            with pytest.raises(kind) as caught:
                await session.commit()
        assert not bench.happened(1)
        async with sessions.begin() as session:
            assert await session.run_sync(find_process) == before
            await session.run_sync(write_both, 2)
    assert bench.happened(2)
    bench.assert_whole()
    return caught.value


def find_process(session: Session) -> int:
    return int(session.scalars(sa.text("SELECT pg_backend_pid()")).one())


# -- A10: an error that was swallowed ---------------------------------------------------------


def swallow(session: Session) -> None:
    write_both(session, 1)
    session.flush()
    with pytest.raises(IntegrityError):
        session.connection().exec_driver_sql("INSERT INTO customer VALUES (1, 'again')")


def test_a_swallowed_error(bench: Bench) -> None:
    assert not fail_then_go_on(bench, swallow, CommitWouldRollBackError).retryable


async def test_a_swallowed_error_async(bench: Bench) -> None:
    await fail_then_go_on_async(bench, swallow, CommitWouldRollBackError)


# -- A12: a deferred constraint ---------------------------------------------------------------


def orphan(session: Session) -> None:
    """An invoice without a customer, which nobody minds before COMMIT."""
    session.execute(sa.text("SET CONSTRAINTS ALL DEFERRED"))
    session.get_one(Customer, 1).name = name(1)
    session.add(Invoice(id=1, customer_id=404, amount=1))
    session.flush()


@pytest.fixture
def deferring(bench: Bench) -> Bench:
    with bench.engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE invoice ALTER CONSTRAINT invoice_customer_id_fkey DEFERRABLE"
        )
    return bench


def test_a_deferred_constraint_that_fails_at_commit(deferring: Bench) -> None:
    error = fail_then_go_on(deferring, orphan, IntegrityError)
    assert get_state(error) == "23503"
    assert not is_retryable(error)


async def test_a_deferred_constraint_that_fails_at_commit_async(deferring: Bench) -> None:
    error = await fail_then_go_on_async(deferring, orphan, IntegrityError)
    assert get_state(error) == "23503"


# -- A13: two serializable transactions that read what the other writes ------------------------


def read_notes(session: Session) -> None:
    session.execute(sa.text("SELECT count(*) FROM note"))
    write_both(session, 1)


def interfere(bench: Bench) -> None:
    """While COMMIT is under way, somebody who read what it writes writes what it read."""
    held = bench.wait_struck()
    with bench.engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM invoice")
        connection.exec_driver_sql("INSERT INTO note VALUES (1)")
    held.deliver()


@pytest.fixture
def noted(bench: Bench) -> Bench:
    with bench.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (n int)")
    bench.plan(Fault.SILENT)
    return bench


def test_a_serialization_failure(noted: Bench) -> None:
    """Seen by the append already, which travels with COMMIT."""
    with noted.open_sessions(isolation_level="SERIALIZABLE") as sessions:
        other = Background(lambda: interfere(noted))
        with pytest.raises((TicketConflictError, DBAPIError)) as caught:
            commit(sessions, 1, work=lambda session, _: read_notes(session))
        other.result()
        assert is_retryable(caught.value)
        assert not noted.happened(1)
        commit(sessions, 2)
    noted.assert_whole()


async def test_a_serialization_failure_at_commit(noted: Bench) -> None:
    noted.plan(Fault.SILENT, at=COMMIT)
    async with noted.open_async_sessions(apart=True, isolation_level="SERIALIZABLE") as sessions:
        other = Background(lambda: interfere(noted))
        with pytest.raises(OperationalError) as caught:
            await commit_async(sessions, 1, work=lambda session, _: read_notes(session))
        other.result()
        assert get_state(caught.value) == "40001"
        assert is_retryable(caught.value)
        assert not noted.happened(1)
        await commit_async(sessions, 2)
    noted.assert_whole()


# -- A18: the ticket is not to be had in time --------------------------------------------------


HOLDS = {
    "taken": "SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'customer/1' FOR UPDATE",
    "made": "INSERT INTO oplog.oplog_ticket (aggregate_name, version) VALUES ('customer/1', 1)",
}
holds = pytest.mark.parametrize("held", HOLDS)


def hold_ticket(bench: Bench, held: str, work: Callable[[], None]) -> None:
    """Do it while another transaction holds a ticket, or makes the one there is none of yet."""
    if held == "taken":
        with bench.open_sessions() as sessions:
            commit(sessions, 7, work=write_known)
    with bench.engine.connect() as connection:
        connection.exec_driver_sql(HOLDS[held])
        work()


@holds
@pytest.mark.parametrize(
    ("limit", "state"), [("lock_timeout", LOCKED), ("statement_timeout", "57014")]
)
def test_a_ticket_that_is_not_to_be_had_in_time(
    bench: Bench, limit: str, state: str, held: str
) -> None:
    def work(session: Session) -> None:
        write_both(session, 1)
        session.flush()
        session.execute(sa.text(f"SET LOCAL {limit} = '50ms'"))

    errors: list[DBAPIError] = []
    with bench.open_sessions(pool_size=1, max_overflow=0) as sessions:

        def fail() -> None:
            with sessions() as session:
                work(session)
                with pytest.raises(OperationalError) as caught:
                    session.commit()
                errors.append(caught.value)

        hold_ticket(bench, held, fail)
        assert not bench.happened(1)
        commit(sessions, 2)
    assert [(get_state(e), is_retryable(e)) for e in errors] == [(state, state == LOCKED)]
    assert bench.happened(2)
    bench.assert_whole()


TABLES = ("oplog.oplog_ticket", "oplog.oplog_entry", "oplog.oplog_outcome", "customer")


def count_all(bench: Bench) -> list[int]:
    with bench.engine.connect() as connection:
        return [count(connection, table) for table in TABLES]


@holds
def test_a_ticket_that_is_not_to_be_had_in_time_leaves_no_half(bench: Bench, held: str) -> None:
    """Tickets of other aggregates, redeemed before in the same statement, are as they were."""
    counts: list[list[int]] = []
    with bench.open_sessions(connect_args={"options": "-c lock_timeout=50ms"}) as sessions:

        def fail() -> None:
            counts.append(count_all(bench))
            with sessions() as session:
                bench.log.take_ticket(session, "customer/0")
                session.add(Customer(id=0, name="sorts before"))
                write_both(session, 1)
                with pytest.raises(OperationalError):
                    session.commit()

        hold_ticket(bench, held, fail)
        assert [count_all(bench)] == counts
    bench.assert_whole()


# -- A15: a version that is there already ------------------------------------------------------


def test_a_ticket_that_lost_at_commit_is_definite(bench: Bench) -> None:
    def work(session: Session) -> None:
        bench.log.take_ticket(session, "customer/1")
        with bench.open_sessions() as sessions:
            commit(sessions, 7)
        write_both(session, 1)

    assert fail_then_go_on(bench, work, TicketConflictError).retryable


# -- A22: a COMMIT that would not wait for the disk --------------------------------------------

OFF: dict[str, Any] = {"connect_args": {"options": "-c synchronous_commit=off"}}


def turn_off(session: Session) -> None:
    write_both(session, 1)
    session.execute(sa.text("SET LOCAL synchronous_commit = off"))


def test_asynchronous_commit_is_refused(bench: Bench) -> None:
    error = fail_then_go_on(bench, turn_off, ConfigurationError)
    assert "asynchronous_commit=True" in error.hint
    with bench.open_sessions(**OFF) as sessions:
        with pytest.raises(ConfigurationError):
            commit(sessions, 3)
        # Whoever writes no tracked row may do as he likes.
        with sessions.begin() as session:
            session.execute(sa.text("SELECT 1"))
    assert not bench.happened(3)
    bench.assert_whole()


async def test_asynchronous_commit_is_refused_async(bench: Bench) -> None:
    error = await fail_then_go_on_async(bench, turn_off, ConfigurationError)
    assert "asynchronous_commit=True" in error.hint


async def test_asynchronous_commit_can_be_chosen(database_url: URL) -> None:
    with open_bench(database_url, asynchronous_commit=True) as bench:
        with bench.open_sessions(**OFF) as sessions:
            commit(sessions, 1)
        assert bench.happened(1)
        async with bench.open_async_sessions(**OFF) as async_sessions:
            await commit_async(async_sessions, 2)
        assert bench.happened(2)
        bench.assert_whole()


# -- A25: several aggregates are one group -----------------------------------------------------


def test_several_aggregates_are_one_group(bench: Bench) -> None:
    """All or none, one position for the group, and never delivered apart."""
    with bench.open_sessions() as sessions:
        commit(sessions, 1)
        commit(sessions, 2)
    groups: list[set[str]] = []
    for batch in bench.log.subscribe(bench.engine, name="c", max_entries=1):
        groups.append({entry.aggregate for entry in batch})
        batch.commit()
    assert groups[1:] == [{"customer/1", "invoice/1"}, {"customer/1", "invoice/2"}]


def test_a_refusal_on_a_connection_that_died(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of the refusal is told, not what became of the ROLLBACK after it."""
    with bench.open_sessions(pool_size=1, max_overflow=0) as sessions:
        commit(sessions, 1)
        engine = sessions.kw["bind"]

        def roll_back(connection: Any) -> None:
            # The server is killed right after its answer.
            monkeypatch.undo()
            connection.driver_connection.pgconn.finish()
            connection.driver_connection.rollback()

        with sessions() as session:
            process_id = find_process(session)
            ticket = bench.log.take_ticket(session, "customer/1")
            with bench.open_sessions() as others, others.begin() as rival:
                rival.get_one(Customer, 1).name = "by another"
            operation = Operation.update("customer", key={"id": 1}, fields={"name": "by hand"})
            bench.log.append(session, Entry("customer/1", [operation]), ticket)
            monkeypatch.setattr(engine.dialect, "do_rollback", roll_back)
            with pytest.raises(TicketConflictError):
                session.commit()
        with sessions() as session:
            assert find_process(session) != process_id
