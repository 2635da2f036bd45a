"""Lost COMMITs of large records, and resolvers that race with the record that they ask about.

A record is there with all of its aggregates or with none, and of those who claim its id, writer and
resolver, one is first.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Outcome, Receipt
from oplog.errors import CommitOutcomeUnknownError, EntryError, TicketConflictError
from tests.concurrency.workload import Customer, Invoice
from tests.fault.lost_commits import Bench, Work, count, name, open_bench, write_new
from tests.fault.proxy import Fault
from tests.fault.test_lost_commits import BRIEFLY, LEVELS, REFUSED, TRUTH, lose

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

MANY = 1000


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


def create_many(session: Session, _number: int) -> None:
    """No aggregate has a ticket, before or after."""
    session.add_all(Invoice(id=n, customer_id=1, amount=1) for n in range(1, MANY + 1))


def update_many(session: Session, number: int) -> None:
    """Every aggregate has a version, and is changed."""
    for invoice in session.scalars(sa.select(Invoice)):
        invoice.amount = number + 1


WORKS: dict[str, Work] = {"created": create_many, "updated": update_many}
works = pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)


def prepare(bench: Bench, work: Work) -> int:
    """What comes before; the version that the work gives to every aggregate."""
    if work is create_many:
        return 1
    with bench.open_sessions() as sessions, sessions.begin() as session:
        create_many(session, 0)
    return 2


def check(bench: Bench, version: int, *, happened: bool) -> None:
    """All aggregates are at this version, or all before it; entries and rows alike."""
    reached = version if happened else version - 1
    with bench.engine.connect() as connection:
        entries = connection.exec_driver_sql(
            "SELECT version, count(*), count(DISTINCT position) FROM oplog.oplog_entry "
            "WHERE aggregate_name LIKE 'invoice/%%' GROUP BY version ORDER BY version"
        ).all()
        changed = count(connection, f"invoice WHERE amount = {version}")
    assert [tuple(row) for row in entries] == [(n, MANY, 1) for n in range(1, reached + 1)]
    assert changed == (MANY if happened else 0)
    bench.assert_whole()


@works
@pytest.mark.parametrize("fault", TRUTH, ids=lambda fault: fault.name)
def test_a_lost_commit_of_many_aggregates(bench: Bench, fault: Fault, work: Work) -> None:
    version = prepare(bench, work)
    with bench.open_sessions() as sessions:
        bench.plan(fault)
        error = lose(sessions, work)
        assert len(error.receipts) == MANY
        assert len({receipt.record_id for receipt in error.receipts}) == 1
        for question in (error.receipts[MANY // 2], error):
            resolution = bench.log.inquire(question, bench.engine)
            assert resolution.outcome is TRUTH[fault]
        bench.struck.wait_ended()
    happened = resolution.outcome is Outcome.COMMITTED
    check(bench, version, happened=happened)
    if happened:
        names = [receipt.aggregate for receipt in error.receipts]
        assert [receipt.aggregate for receipt in resolution.receipts] == names
        assert {receipt.version for receipt in resolution.receipts} == {version}
        assert len({receipt.entry_hash for receipt in resolution.receipts}) == 1
        assert resolution.receipts[0].versions == dict.fromkeys(names, version)


@works
@pytest.mark.parametrize("level", LEVELS)
def test_many_aggregates_that_arrive_after_the_verdict_are_refused_as_one(
    bench: Bench, work: Work, level: str
) -> None:
    version = prepare(bench, work)
    with bench.open_sessions(isolation_level=level) as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        error = lose(sessions, work)
        one = replace(error.receipts[7], process_id=0)
        assert bench.log.resolve(one, bench.engine, wait_seconds=BRIEFLY) is Outcome.ABORTED
        bench.struck.deliver()
        bench.struck.wait_ended()
        assert REFUSED.search(bytes(bench.struck.answer))
        check(bench, version, happened=False)
        assert bench.resolve(error) is Outcome.ABORTED
        with sessions.begin() as session:
            work(session, 1)
    check(bench, version, happened=True)
    assert bench.resolve(error) is Outcome.ABORTED


# -- resolver and append at once ----------------------------------------------------------------

RESOLVERS = 3
ROUNDS = 45


@dataclass
class Race:
    """A writer and resolvers of its record, which all begin at one moment."""

    write: Callable[[], None]
    ask: Callable[[], Outcome]
    head_start_seconds: float
    """Of the resolvers, or, if negative, of the writer."""
    verdicts: list[Outcome] = field(default_factory=list)
    failure: Exception | None = None

    def run(self) -> None:
        gate = threading.Barrier(RESOLVERS + 1)
        threads = [threading.Thread(target=self._write, args=(gate,))]
        threads += [threading.Thread(target=self._ask, args=(gate,)) for _ in range(RESOLVERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(self.verdicts) == RESOLVERS

    def _write(self, gate: threading.Barrier) -> None:
        gate.wait()
        time.sleep(max(0.0, self.head_start_seconds))
        try:
            self.write()
        except TicketConflictError as failure:
            self.failure = failure

    def _ask(self, gate: threading.Barrier) -> None:
        gate.wait()
        time.sleep(max(0.0, -self.head_start_seconds))
        self.verdicts.append(self.ask())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_both_aborted_and_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """The id of the record is known to the resolvers before it is appended."""
    draw = random.Random(f"{level}/{ROUNDS}")
    writing = create_engine(bench.engine.url, isolation_level=level)
    asking = create_engine(bench.engine.url, pool_size=RESOLVERS)
    sessions = sessionmaker(writing)
    bench.log.attach(sessions)
    ids: list[UUID] = []
    monkeypatch.setattr(bench.log._log.writer._builder, "_draw_id", lambda: ids[-1])
    seen: set[Outcome] = set()

    def write(number: int) -> None:
        with sessions.begin() as session:
            session.get_one(Customer, 1).name = name(number)
            session.add(Invoice(id=number, customer_id=1, amount=number))

    for number in range(1, ROUNDS + 1):
        ids.append(uuid4())
        receipt = Receipt(ids[-1], f"invoice/{number}", 0, b"")
        race = Race(
            write=lambda number=number: write(number),  # type: ignore[misc]
            ask=lambda receipt=receipt: bench.log.resolve(receipt, asking),  # type: ignore[misc]
            # A transaction takes some milliseconds: a third each first, last and in the middle.
            head_start_seconds=draw.choice((0.03, draw.uniform(-0.01, 0.01), -0.03)),
        )
        race.run()
        (verdict,) = set(race.verdicts)
        assert verdict in TRUTH.values()
        assert bench.happened(number) == (verdict is Outcome.COMMITTED)
        if race.failure is None:
            assert verdict is Outcome.COMMITTED
        else:
            assert isinstance(race.failure, TicketConflictError)
            assert race.failure.retryable
        assert bench.log.resolve(receipt, asking) is verdict
        seen.add(verdict)
    assert seen == set(TRUTH.values()), "the race always had one winner"
    for engine in (writing, asking):
        engine.dispose()
    bench.log.detach(sessions)
    bench.assert_whole()


def test_a_record_that_is_sent_twice_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its id, whatever else is in it."""
    record_id = uuid4()
    monkeypatch.setattr(bench.log._log.writer._builder, "_draw_id", lambda: record_id)
    with bench.open_sessions() as sessions:
        with sessions.begin() as session:
            session.add(Invoice(id=1, customer_id=1, amount=1))
        (receipt,) = bench.log.receipts(session)
        assert receipt.record_id == record_id
        with sessions() as again:
            again.add(Invoice(id=2, customer_id=1, amount=1))
            with pytest.raises(EntryError, match="a record with this id is in the log"):
                again.commit()
    assert bench.log.resolve(receipt, bench.engine) is Outcome.COMMITTED
    assert not bench.happened(2, work=write_new)
    bench.assert_whole()


def test_a_lost_commit_is_no_other_error(bench: Bench) -> None:
    """Receipts of a lost COMMIT say as much as is known: tickets tell versions, beliefs do not."""
    with bench.open_sessions() as sessions:
        with sessions.begin() as session:
            session.add(Invoice(id=1, customer_id=1, amount=1))

        def work(session: Session, _number: int) -> None:
            session.get_one(Customer, 1).name = "known"
            session.flush()
            session.get_one(Invoice, 1).amount = 2
            session.add(Invoice(id=2, customer_id=1, amount=1))

        bench.plan(Fault.DROP_ANSWER)
        error = lose(sessions, work)
    assert isinstance(error, CommitOutcomeUnknownError)
    assert {(r.aggregate, r.version, r.entry_hash) for r in error.receipts} == {
        ("customer/1", 2, b""),
        ("invoice/1", 0, b""),
        ("invoice/2", 0, b""),
    }
    assert {r.process_id for r in error.receipts} != {0}
    assert bench.resolve(error) is Outcome.COMMITTED
    bench.assert_whole()
