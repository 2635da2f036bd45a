"""Waiting in line for an aggregate: who waits for whom, and what a lock does not do."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.errors import ConfigurationError, EntryError, TicketConflictError
from oplog.events import WorkRetried
from tests.concurrency.workload import (
    Customer,
    Member,
    make_log,
    waiting_for_lock,
)
from tests.support import assert_replays, install_log

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]


@pytest.fixture
def member(sessions: sessionmaker[Session]) -> int:
    with sessions.begin() as session:
        session.add(Member(id=1, team="red"))
        session.add(Member(id=2, team="blue"))
    return 1


def test_writers_that_wait_never_conflict(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], member: int
) -> None:
    inside: list[int] = []

    def work(session: Session) -> None:
        log.lock(session, "team/red")
        inside.append(1)
        assert len(inside) == 1, "two of them hold the lock"
        log.take_ticket(session, "team/red")
        session.get_one(Member, member).points += 1
        session.flush()
        inside.clear()

    def write() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                work(session)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        assert session.get_one(Member, member).points == 40
    assert_replays(log, engine)


def test_a_second_one_waits_until_the_first_has_ended(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], member: int
) -> None:
    order: list[str] = []

    def second() -> None:
        with sessions.begin() as session:
            log.lock(session, "team/red")
            order.append("second has it")
            order.append(f"sees {session.get_one(Member, member).points}")

    with sessions.begin() as session:
        log.lock(session, "team/red")
        log.lock(session, "team/red")  # once more is the same
        session.get_one(Member, member).points = 7
        with waiting_for_lock(engine):
            thread = threading.Thread(target=second)
            thread.start()
        order.append("first ends")
    thread.join()
    assert order == ["first ends", "second has it", "sees 7"]


def test_other_aggregates_and_other_logs_do_not_wait(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], member: int
) -> None:
    other = make_log(schema="elsewhere")
    with engine.begin() as connection:
        install_log(connection, schema="elsewhere")
    with sessions() as first, sessions() as second, engine.begin() as connection:
        log.lock(first, "team/red")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
        other._log.outcomes.lock_aggregates(connection, ["team/red"])
        second.execute(sa.text("SET LOCAL lock_timeout = '1ms'"))
        log.lock(second, ["team/blue", "team/green"])


def test_several_are_locked_in_one_order(
    log: Oplog, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        type(log._log.outcomes),
        "lock_aggregates",
        lambda self, connection, names: asked.append(names),
    )
    with sessions() as session:
        log.lock(session, ["team/red", "Team/red", "team/blue", "team/ä", "team/red"])
        log.lock(session, [])
    assert asked == [["Team/red", "team/blue", "team/red", "team/ä"], []]


def test_a_lock_keeps_out_nobody_who_does_not_ask(
    log: Oplog, sessions: sessionmaker[Session], member: int
) -> None:
    with sessions() as session:
        log.lock(session, "team/red")
        log.take_ticket(session, "team/red")
        with sessions.begin() as rude:
            rude.get_one(Member, member).points = 5
        session.add(Member(id=9, team="red"))
        with pytest.raises(TicketConflictError) as caught:
            session.commit()
    assert caught.value.aggregates == ("team/red",)


def test_a_lock_after_the_first_write_is_refused(
    log: Oplog, sessions: sessionmaker[Session], member: int
) -> None:
    with sessions() as session:
        log.take_ticket(session, "team/red")
        log.lock(session, "team/red")  # a ticket is no lock
        session.get_one(Member, member).points = 5
        session.flush()
        for names in ("team/blue", ["team/blue", "team/red"]):
            with pytest.raises(ConfigurationError, match="after the transaction's first write"):
                log.lock(session, names)
    for name in ("", "x" * 2000, "a\x00b"):
        with sessions() as session, pytest.raises(EntryError):
            log.lock(session, name)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_run_that_keeps_losing_waits_in_line_and_gets_through(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], member: int, level: Any
) -> None:
    """Without the line the rude one below would win every time."""
    events: list[Any] = []
    patient = make_log(keyring=log.keyring, on_event=events.append)
    factory = sessionmaker(engine.execution_options(isolation_level=level))
    patient.attach(factory)
    held = threading.Event()

    def rude() -> None:
        with sessions.begin() as session:
            if held.is_set():
                log.lock(session, "team/red")
            session.get_one(Member, member).points += 1

    def work(session: Session) -> str:
        patient.take_ticket(session, "team/red")
        if sum(isinstance(event, WorkRetried) for event in events) < 3:
            rude()
        else:
            # Whoever asks for the lock now has to wait until this run is done.
            held.set()
            with engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '1ms'")
                with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                    log._log.outcomes.lock_aggregates(connection, ["team/red"])
        session.add(Member(id=9, team="red"))
        return "done"

    assert patient.run(factory, work) == "done"
    assert [e.reason for e in events if isinstance(e, WorkRetried)] == ["TicketConflictError"] * 3
    assert_replays(log, engine)


def test_opposite_orders_of_rows_end_in_a_deadlock_that_a_run_survives(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    """The application's own rows, which the log cannot sort."""
    with sessions.begin() as session:
        session.add(Customer(id=1, name=""))
        session.add(Customer(id=2, name=""))
    events: list[Any] = []
    log.detach(sessions)
    log = make_log(keyring=log.keyring, on_event=events.append)
    log.attach(sessions)
    barrier = threading.Barrier(2)

    def write(first: int, second: int) -> None:
        tries: list[int] = []

        def work(session: Session) -> None:
            tries.append(1)
            for number in (first, second):
                # Added by the server: what was read before the wait is old.
                added = sa.update(Customer).where(Customer.id == number)
                session.execute(added.values(name=Customer.name + str(first)))
                session.flush()
                if len(tries) == 1 and number == first:
                    barrier.wait(60)

        log.run(sessions, work)

    threads = [threading.Thread(target=write, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.reason for e in events if isinstance(e, WorkRetried)] == ["OperationalError"]
    with sessions() as session:
        names = [session.get_one(Customer, number).name for number in (1, 2)]
    assert sorted(names[0]) == sorted(names[1]) == ["1", "2"]
    assert_replays(log, engine)
