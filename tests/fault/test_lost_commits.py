"""The answer to COMMIT, or COMMIT itself, is lost: what is told, and what `resolve` says.

Dropped, delayed past the client's death, held in a network that says nothing, and left behind
as an orphan: when append and COMMIT travel together, and when COMMIT is alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Outcome, Receipt
from oplog.errors import CommitOutcomeUnknownError
from oplog.events import Event
from tests.concurrency.workload import Customer, waiting_for_lock
from tests.fault.lost_commits import (
    APPEND,
    COMMIT,
    WORKS,
    Background,
    Bench,
    Work,
    commit,
    commit_async,
    name,
    open_bench,
)
from tests.fault.proxy import Fault, forge_error

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
TRUTH = {Fault.DROP_ANSWER: Outcome.COMMITTED, Fault.DROP_REQUEST: Outcome.ABORTED}
BRIEFLY = 0.1
"""Seconds that a resolver waits where the test knows that nothing will come meanwhile."""
works = pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
faults = pytest.mark.parametrize("fault", TRUTH, ids=lambda fault: fault.name)
REFUSED = re.compile(rb"C(OP006|OP001|40001)\x00")
"""The server's answer to an append that comes too late, by SQLSTATE."""


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


def lose(sessions: sessionmaker[Session], work: Work, number: int = 1) -> CommitOutcomeUnknownError:
    """The error of a transaction whose COMMIT met what was planned."""
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        commit(sessions, number, work=work)
    assert caught.value.__cause__ is not None
    assert caught.value.receipt == caught.value.receipts[0]
    return caught.value


def go_on(bench: Bench, sessions: sessionmaker[Session]) -> None:
    """The next transactions, on the same and on other connections, are none the worse."""
    for number in (500, 501):
        commit(sessions, number)
        assert bench.happened(number)
    bench.assert_whole()


# -- A06, A07: the answer, or the request, is dropped -----------------------------------------


@works
@faults
def test_a_dropped_message(bench: Bench, fault: Fault, work: Work) -> None:
    with bench.open_sessions() as sessions:
        bench.plan(fault)
        error = lose(sessions, work)
        outcome = bench.resolve(error)
        bench.struck.wait_ended()
        assert outcome is TRUTH[fault]
        assert bench.happened(1, work=work) == (outcome is Outcome.COMMITTED)
        check_inquiry(bench, error, outcome)
        go_on(bench, sessions)


def check_inquiry(bench: Bench, error: CommitOutcomeUnknownError, outcome: Outcome) -> None:
    """Asked in every way, and again, the answer is the same."""
    for question in (error, error.receipts, error.receipts[-1]):
        assert bench.log.resolve(question, bench.engine) is outcome
    resolution = bench.log.inquire(error, bench.engine)
    assert resolution.blockers == ()
    with bench.engine.connect() as connection:
        logged = [
            Receipt(entry.entry_id, entry.aggregate, entry.version, entry.entry_hash)
            for entry in bench.log.read(connection)
        ]
    asked = [(receipt.record_id, receipt.aggregate) for receipt in error.receipts]
    assert len({record_id for record_id, _ in asked}) == 1
    if outcome is Outcome.ABORTED:
        assert resolution.receipts == ()
        assert not {receipt.record_id for receipt in logged} & {asked[0][0]}
        return
    assert [(receipt.record_id, receipt.aggregate) for receipt in resolution.receipts] == asked
    assert set(resolution.receipts) <= set(logged)
    versions = {receipt.aggregate: receipt.version for receipt in resolution.receipts}
    assert all(receipt.versions == versions for receipt in resolution.receipts)


@pytest.mark.sampled(4)
@works
@faults
@pytest.mark.parametrize(
    ("apart", "at"),
    [(False, APPEND), (True, APPEND), (True, COMMIT)],
    ids=["both", "append", "commit"],
)
async def test_a_dropped_message_async(
    bench: Bench, fault: Fault, work: Work, apart: bool, at: type[Event]
) -> None:
    async with bench.open_async_sessions(apart=apart) as sessions:
        bench.plan(fault, at=at)
        # An append that failed by itself was followed by no COMMIT: that is certain.
        alone = apart and at is APPEND
        expected = sa.exc.OperationalError if alone else CommitOutcomeUnknownError
        with pytest.raises(expected) as caught:
            await commit_async(sessions, 1, work=work)
        bench.struck.wait_ended()
        truth = bench.happened(1, work=work)
        assert truth == (not alone and fault is Fault.DROP_ANSWER)
        if isinstance(caught.value, CommitOutcomeUnknownError):
            check_inquiry(bench, caught.value, TRUTH[fault])
            assert {receipt.version for receipt in caught.value.receipts} <= {0, 1, 2}
        await commit_async(sessions, 500)
    assert bench.happened(500)
    bench.assert_whole()


async def test_resolving_in_an_event_loop(bench: Bench) -> None:
    async with bench.open_async_sessions() as sessions:
        for number, (fault, outcome) in enumerate(TRUTH.items(), start=1):
            bench.plan(fault)
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                await commit_async(sessions, number)
            asking = sessions.kw["bind"]
            assert await bench.log.resolve_async(caught.value, asking) is outcome
    bench.assert_whole()


# -- a reason, and a dead connection -----------------------------------------------------------

STATES = pytest.mark.parametrize("state", ["53100", "57P01", "40001", "OP001", "23505"])


@STATES
def test_an_sqlstate_on_a_connection_that_dies_decides_nothing(bench: Bench, state: str) -> None:
    """A full disk for the WAL ends the server with 53100, and the transaction may be on disk."""
    with bench.open_sessions() as sessions:
        bench.plan(Fault.FORGE_ANSWER, forged=forge_error(state))
        error = lose(sessions, WORKS["both"])
        bench.struck.wait_ended()
        assert bench.happened(1)
        check_inquiry(bench, error, Outcome.COMMITTED)
        go_on(bench, sessions)


@STATES
async def test_an_sqlstate_on_a_connection_that_dies_decides_nothing_async(
    bench: Bench, state: str
) -> None:
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.FORGE_ANSWER, at=COMMIT, forged=forge_error(state))
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            await commit_async(sessions, 1)
        # The blocking driver, reading reason and end at once, forgets the reason.
        assert getattr(caught.value.__cause__, "sqlstate", None) == state
        bench.struck.wait_ended()
        assert bench.happened(1)
        check_inquiry(bench, caught.value, Outcome.COMMITTED)
    bench.assert_whole()


# -- A08: the request is delayed past the client's death --------------------------------------


@pytest.mark.sampled(3)
@works
@pytest.mark.parametrize("level", LEVELS)
def test_a_commit_that_arrives_after_the_verdict_is_refused(
    bench: Bench, work: Work, level: str
) -> None:
    """REPEATABLE READ's snapshot is older than the fence: it must see it all the same."""
    with bench.open_sessions(isolation_level=level) as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        error = lose(sessions, work)
        assert bench.resolve(error, wait_seconds=BRIEFLY) is Outcome.ABORTED
        bench.struck.deliver()
        bench.struck.wait_ended()
        assert REFUSED.search(bytes(bench.struck.answer))
        assert not bench.happened(1, work=work)
        check_inquiry(bench, error, Outcome.ABORTED)
        # Done again, it is the aggregate's next version, or its first.
        commit(sessions, 1, work=work)
        assert bench.happened(1, work=work)
        check_inquiry(bench, error, Outcome.ABORTED)
        go_on(bench, sessions)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("one", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("level", LEVELS)
def test_one_receipt_of_several_is_enough(bench: Bench, level: str, one: int) -> None:
    """Fenced off by one of its entries, a transaction is refused as a whole."""
    with bench.open_sessions(isolation_level=level) as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        error = lose(sessions, WORKS["both"])
        asked = error.receipts[one]
        assert bench.log.resolve(asked, bench.engine, wait_seconds=BRIEFLY) is Outcome.ABORTED
        bench.struck.deliver()
        bench.struck.wait_ended()
        assert REFUSED.search(bytes(bench.struck.answer))
        assert not bench.happened(1)
        check_inquiry(bench, error, Outcome.ABORTED)
        go_on(bench, sessions)


@pytest.mark.sampled(3)
@works
@pytest.mark.parametrize("level", LEVELS)
def test_a_commit_that_arrives_while_somebody_asks(bench: Bench, work: Work, level: str) -> None:
    with bench.open_sessions(isolation_level=level) as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        error = lose(sessions, work)
        outcome = resolve_until_asked(bench, error)
        bench.struck.wait_ended()
        assert outcome is Outcome.COMMITTED
        assert bench.happened(1, work=work)
        check_inquiry(bench, error, Outcome.COMMITTED)
        go_on(bench, sessions)


def resolve_until_asked(bench: Bench, error: CommitOutcomeUnknownError) -> Outcome:
    """The outcome; COMMIT arrives when the resolver has seen that it may yet."""
    asking = create_engine(bench.engine.url)
    dialogue = bench.struck

    def see(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
        if "pg_stat_activity" in statement:
            dialogue.deliver()

    event.listen(asking, "after_cursor_execute", see)
    try:
        return bench.log.resolve(error, asking, wait_seconds=30)
    finally:
        asking.dispose()


@pytest.mark.parametrize("asks", ["at once", "after a while"])
async def test_an_async_commit_that_is_delayed(bench: Bench, asks: str) -> None:
    """Its append is done, and its id claimed: nobody can say ABORTED before it ends."""
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.HOLD_REQUEST, at=COMMIT)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            await commit_async(sessions, 1)
        if asks == "after a while":
            resolution = bench.log.inquire(caught.value, bench.engine, wait_seconds=BRIEFLY)
            assert resolution.outcome is Outcome.PENDING
            (blocker,) = resolution.blockers
            assert blocker.process_id == caught.value.receipts[0].process_id
            assert blocker.state == "idle in transaction"
        assert resolve_until_asked(bench, caught.value) is Outcome.COMMITTED
        bench.struck.wait_ended()
        assert bench.happened(1)
        await commit_async(sessions, 500)
    bench.assert_whole()


# -- a pooler between: the receipt does not know the server's process ------------------------


def forget_process(error: CommitOutcomeUnknownError) -> list[Receipt]:
    return [replace(receipt, process_id=0) for receipt in error.receipts]


@works
def test_without_a_process_a_delayed_append_is_fenced_off_at_once(bench: Bench, work: Work) -> None:
    with bench.open_sessions() as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        receipts = forget_process(lose(sessions, work))
        assert bench.log.resolve(receipts, bench.engine) is Outcome.ABORTED
        bench.struck.deliver()
        bench.struck.wait_ended()
        assert REFUSED.search(bytes(bench.struck.answer))
        assert not bench.happened(1, work=work)
        go_on(bench, sessions)


@works
async def test_without_a_process_a_delayed_commit_is_waited_for_by_its_record(
    bench: Bench, work: Work
) -> None:
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.HOLD_REQUEST, at=COMMIT)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            await commit_async(sessions, 1, work=work)
        receipts = forget_process(caught.value)
        with waiting_for_lock(bench.engine):
            asking = Background(lambda: bench.log.resolve(receipts, bench.engine, wait_seconds=30))
        bench.struck.deliver()
        assert asking.result() is Outcome.COMMITTED
        bench.struck.wait_ended()
        assert bench.happened(1, work=work)
    bench.assert_whole()


# -- blackhole: nothing arrives, and the server is not told that the client is gone -----------


@pytest.mark.sampled(3)
@works
@pytest.mark.parametrize("end", ["terminated", "network"])
def test_an_orphan_that_did_not_append(bench: Bench, work: Work, end: str) -> None:
    with bench.open_sessions() as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        error = lose(sessions, work)
        assert bench.resolve(error, wait_seconds=BRIEFLY) is Outcome.ABORTED
        end_orphan(bench, error, end)
        assert not bench.happened(1, work=work)
        check_inquiry(bench, error, Outcome.ABORTED)
        go_on(bench, sessions)


@pytest.mark.sampled(3)
@works
@pytest.mark.parametrize("end", ["terminated", "network"])
async def test_an_orphan_that_did_append(bench: Bench, work: Work, end: str) -> None:
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.HOLD_REQUEST, at=COMMIT)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            await commit_async(sessions, 1, work=work)
        error = caught.value
        for _ in range(2):
            assert bench.resolve(error, wait_seconds=BRIEFLY) is Outcome.PENDING
        end_orphan(bench, error, end)
        check_inquiry(bench, error, Outcome.ABORTED)
        assert not bench.happened(1, work=work)
        await commit_async(sessions, 500)
    bench.assert_whole()


def end_orphan(bench: Bench, error: CommitOutcomeUnknownError, how: str) -> None:
    if how == "terminated":
        with bench.engine.connect() as connection:
            ended = connection.exec_driver_sql(
                "SELECT pg_terminate_backend(%s)", (error.receipts[0].process_id,)
            )
            assert ended.scalar_one() is True
    bench.struck.hang_up()
    bench.struck.wait_ended()


# -- silence: the client waits, and nobody says anything --------------------------------------


@works
def test_a_silence_that_ends_with_the_connection(bench: Bench, work: Work) -> None:
    with bench.open_sessions() as sessions:
        bench.plan(Fault.SILENT)
        waiting = Background(lambda: lose(sessions, work))
        bench.wait_struck().hang_up()
        error = waiting.result()
        assert bench.resolve(error) is Outcome.ABORTED
        bench.struck.wait_ended()
        assert not bench.happened(1, work=work)
        go_on(bench, sessions)


def test_a_silence_that_ends_well(bench: Bench) -> None:
    """A request or an answer that is only late is a success like any other."""
    with bench.open_sessions() as sessions:
        for number, fault in enumerate((Fault.SILENT, Fault.HOLD_ANSWER), start=1):
            bench.plan(fault)
            waiting = Background(lambda number=number: commit(sessions, number))  # type: ignore[misc]
            bench.wait_struck().deliver()
            waiting.result()
            assert bench.happened(number)
        go_on(bench, sessions)


# -- somebody else goes on before anybody asks ------------------------------------------------


def test_a_lost_transaction_that_was_overtaken(bench: Bench) -> None:
    """The aggregate has moved on by two versions when it is asked for."""
    with bench.open_sessions() as sessions:
        for number, (fault, outcome) in zip((1, 11), TRUTH.items(), strict=True):
            bench.plan(fault)
            error = lose(sessions, WORKS["known"], number)
            bench.struck.wait_ended()
            for later in (number + 1, number + 2):
                commit(sessions, later, work=WORKS["known"])
            assert bench.resolve(error) is outcome
            assert count_changes(bench, name(number)) == (outcome is Outcome.COMMITTED)
    bench.assert_whole()


def count_changes(bench: Bench, told: str) -> int:
    with bench.engine.connect() as connection:
        changes = bench.log.history(connection, Customer, 1)
    return sum(change.fields.get("name") == told for change in changes)
