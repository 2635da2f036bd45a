"""Writers that meet: who wins, who is told, who waits, and what a transaction costs."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Entry, Operation, Oplog, Receipt
from oplog.errors import TicketConflictError
from tests.concurrency.workload import Customer, Member, make_log, waiting_for_lock

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
TEAM = "team/a"


def versions(log: Oplog, engine: Engine, aggregate: str) -> list[int]:
    """In the order of positions."""
    with engine.connect() as connection:
        return [entry.version for entry in log.read(connection, aggregate=aggregate)]


def points(engine: Engine) -> dict[int, int]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(Member.id, Member.points))
        return {row.id: row.points for row in rows}


def add_members(sessions: sessionmaker[Session], *teams: str) -> None:
    with sessions.begin() as session:
        session.add_all(Member(id=n, team=team) for n, team in enumerate(teams))


def together(*works: Callable[[], Any]) -> list[Any]:
    """Results, or the errors raised, of works run at the same time."""
    results: list[Any] = [None] * len(works)

    def run(n: int) -> None:
        try:
            results[n] = works[n]()
        except Exception as failure:  # noqa: BLE001 - it is the result
            results[n] = failure

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# -- one ticket, two writers ----------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_of_two_writers_with_one_ticket_one_wins(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], level: str
) -> None:
    add_members(sessions, "a", "a")
    isolated = sessionmaker(engine.execution_options(isolation_level=level))
    log.attach(isolated)
    gate = threading.Barrier(2)

    def write(id: int) -> None:
        with isolated.begin() as session:
            log.take_ticket(session, TEAM)
            gate.wait()
            session.get_one(Member, id).points += 1

    for attempt in range(1, 6):
        before = points(engine)
        results = together(lambda: write(0), lambda: write(1))
        (loser,) = (result for result in results if result is not None)
        assert isinstance(loser, TicketConflictError)
        assert loser.retryable
        assert versions(log, engine, TEAM) == list(range(1, attempt + 2))
        winner = results.index(None)
        assert points(engine) == {winner: before[winner] + 1, 1 - winner: before[1 - winner]}


@pytest.mark.parametrize("level", LEVELS)
def test_a_ticket_that_lost_before_the_commit_is_refused(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], level: str
) -> None:
    add_members(sessions, "a", "a")
    isolated = sessionmaker(engine.execution_options(isolation_level=level))
    log.attach(isolated)
    with isolated() as late:
        log.take_ticket(late, TEAM)
        with sessions.begin() as session:
            session.get_one(Member, 0).points = 7
        late.get_one(Member, 1).points = 8
        with pytest.raises(TicketConflictError, match=r"team/a|concurrent|serialize"):
            late.commit()
    assert points(engine) == {0: 7, 1: 0}
    assert versions(log, engine, TEAM) == [1, 2]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("explicit", [True, False])
def test_the_first_entry_of_an_aggregate_is_version_one_once(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], level: str, explicit: bool
) -> None:
    isolated = sessionmaker(engine.execution_options(isolation_level=level))
    log.attach(isolated)
    gate = threading.Barrier(2)

    def write(id: int) -> None:
        with isolated.begin() as session:
            session.connection()
            if explicit:
                assert log.take_ticket(session, TEAM).version == 0
            gate.wait()
            session.add(Member(id=id, team="a"))

    results = together(lambda: write(0), lambda: write(1))
    losers = [result for result in results if result is not None]
    assert all(isinstance(loser, TicketConflictError) for loser in losers)
    # Without a ticket nothing was read that could be stale: both may win.
    assert len(losers) == 1 if explicit else len(losers) < 2
    assert versions(log, engine, TEAM) == list(range(1, 3 - len(losers)))
    assert len(points(engine)) == 2 - len(losers)


def test_an_entry_by_hand_is_refused_when_its_ticket_lost(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    entry = Entry("audit", [Operation.update("customer", key={"id": 1}, fields={"name": "x"})])
    with sessions() as late, sessions() as early:
        tickets = {session: log.take_ticket(session, "audit") for session in (late, early)}
        for session, ticket in tickets.items():
            log.append(session, entry, ticket)
        early.commit()
        with pytest.raises(TicketConflictError, match="version 0, it is now at version 1"):
            late.commit()
    assert versions(log, engine, "audit") == [1]


# -- writers that wait ----------------------------------------------------------------------


def test_blind_increments_never_conflict(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    """The ticket is taken after the flush, when the row is locked: it cannot be stale."""
    add_members(sessions, "a")

    def increment() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                member = session.get_one(Member, 0)
                member.points = Member.points + 1
                session.flush()

    assert together(*[increment] * 5) == [None] * 5
    assert points(engine) == {0: 50}
    assert versions(log, engine, TEAM) == list(range(1, 52))


def test_opposite_orders_do_not_deadlock_on_tickets(
    engine: Engine,
    log: Oplog,
    sessions: sessionmaker[Session],
    prepared_sessions: sessionmaker[Session],
) -> None:
    """Both must queue for the first ticket in order; one that held the second would deadlock."""
    add_members(sessions, "a", "z", "z", "a")

    def change(*numbers: int) -> None:
        with sessions.begin() as session:
            for member in [session.get_one(Member, n) for n in numbers]:
                member.points += 1

    with prepared_sessions() as holder:
        holder.add(Member(id=9, team="a"))
        holder.prepare()  # holds the ticket of team/a
        with waiting_for_lock(engine):
            first = threading.Thread(target=change, args=(0, 1))
            first.start()
        with waiting_for_lock(engine, count=2):
            second = threading.Thread(target=change, args=(2, 3))
            second.start()
        holder.commit()
    first.join()
    second.join()
    assert versions(log, engine, "team/z") == [1, 2, 3]
    assert versions(log, engine, TEAM) == [1, 2, 3, 4]


def test_run_retries_a_deadlock_of_rows(database_url: sa.URL, engine: Engine, log: Oplog) -> None:
    impatient = create_engine(database_url, connect_args={"options": "-c deadlock_timeout=20ms"})
    sessions = sessionmaker(impatient)
    log.attach(sessions)
    add_members(sessions, "a", "b")
    gate = threading.Barrier(2)
    attempts: Counter[int] = Counter()

    def swap(first: int, second: int) -> None:
        def work(session: Session) -> None:
            attempts[first] += 1
            for number in (first, second):
                session.execute(
                    sa.update(Member).where(Member.id == number).values(points=Member.points + 1)
                )
                if number == first and attempts[first] == 1:
                    gate.wait()  # each holds its first row now

        log.run(sessions, work)

    assert together(lambda: swap(0, 1), lambda: swap(1, 0)) == [None, None]
    impatient.dispose()
    assert points(engine) == {0: 2, 1: 2}
    # The victim may be quick enough to become one once more.
    assert attempts.total() > 2


def test_eight_writers_make_one_history(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    """Read, decide, write under a ticket: no update is lost and every receipt is in the log."""
    add_members(sessions, "a")
    busy = create_engine(engine.url, pool_size=8)
    receipts: list[Receipt] = []
    reads: list[tuple[int, int]] = []
    guard = threading.Lock()

    def write() -> None:
        factory = sessionmaker(busy)
        log.attach(factory)
        held: list[Session] = []

        def work(session: Session) -> tuple[int, int]:
            held[:] = [session]
            ticket = log.take_ticket(session, TEAM)
            member = session.get_one(Member, 0)
            member.points += 1
            return ticket.version, member.points

        for _ in range(5):
            read = log.run(factory, work, retries=500)
            with guard:
                reads.append(read)
                receipts.extend(log.receipts(held[0]))

    assert together(*[write] * 8) == [None] * 8
    busy.dispose()
    assert points(engine) == {0: 40}
    with engine.connect() as connection:
        entries = list(log.read(connection, aggregate=TEAM))
    assert [entry.version for entry in entries] == list(range(1, 42))
    logged = {(e.entry_id, e.aggregate, e.version, e.entry_hash) for e in entries[1:]}
    assert {(r.entry_id, r.aggregate, r.version, r.entry_hash) for r in receipts} == logged
    # A history without concurrency: each saw exactly what the one before had left.
    assert sorted(reads) == [(version, version) for version in range(1, 41)]
    assert [entry.operations[0].fields["points"] for entry in entries] == list(range(41))


async def test_run_async_retries_and_commits(database_url: sa.URL) -> None:
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    log = make_log()
    async with engine.begin() as connection:
        await connection.run_sync(Member.metadata.create_all)
    log.attach(sessions)
    failures = [TicketConflictError("lost", hint="again")]

    async def work(session: Any) -> int:
        session.add(Member(id=len(failures), team="a"))
        await session.flush()
        while failures:
            raise failures.pop()
        return 5

    assert await log.run_async(sessions, work) == 5
    async with engine.connect() as connection:
        entries = await connection.run_sync(lambda inner: list(log.read(inner)))
        rows = (await connection.execute(sa.select(Member.id))).scalars().all()
    await engine.dispose()
    assert [entry.version for entry in entries] == [1]
    assert list(rows) == [0]


# -- what it costs --------------------------------------------------------------------------


def trace(
    engine: Engine, sessions: sessionmaker[Session], work: Callable[[Session], Any]
) -> Counter[str]:
    """Messages of the protocol that one transaction sends: what libpq itself says."""
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
    with tempfile.TemporaryFile() as file:
        raw.pgconn.trace(file.fileno())
        try:
            with sessions.begin() as session:
                work(session)
                own: Any = session.connection().connection.driver_connection
                assert own is raw
        finally:
            raw.pgconn.untrace()
        file.seek(0)
        lines = [line.split("\t") for line in file.read().decode().splitlines()]
    # Fields: (time, which is missing on some,) direction, length, message, ...
    sent = [line[line.index("F") + 2] for line in lines if "F" in line[:2]]
    return Counter(message.strip() for message in sent)


def test_the_log_costs_one_statement_and_no_round_trip(database_url: sa.URL, log: Oplog) -> None:
    plain_engine, logged_engine = (
        create_engine(database_url, pool_size=1, max_overflow=0) for _ in range(2)
    )
    plain, logged = sessionmaker(plain_engine), sessionmaker(logged_engine)
    log.attach(logged)
    numbers = iter(range(1, 100))

    def work(session: Session) -> None:
        number = next(numbers)
        session.get(Customer, number - 1)
        session.add(Customer(id=number, name="x"))

    for engine, sessions in ((plain_engine, plain), (logged_engine, logged)):
        for _ in range(8):  # statements are prepared after some, and the catalog is bound
            trace(engine, sessions, work)
    without = trace(plain_engine, plain, work)
    with_log = trace(logged_engine, logged, work)
    plain_engine.dispose()
    logged_engine.dispose()
    assert count_statements(with_log) == count_statements(without) + 1
    assert count_round_trips(with_log) == count_round_trips(without)


def count_statements(sent: Counter[str]) -> int:
    return sent["Execute"] + sent["Query"]


def count_round_trips(sent: Counter[str]) -> int:
    """The client waits for an answer after each of these."""
    return sent["Sync"] + sent["Query"]
