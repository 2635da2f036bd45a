"""Cancelled and interrupted while COMMIT is under way, and a COMMIT that waits for its standby.

Whoever is cancelled still gets a cancellation, and with it what to ask; the connection is given
up. A wait for a synchronous standby that is cut short is a commit that a failover may lose.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine, make_url

from oplog import Keyring, Outcome
from oplog.errors import (
    CommitCancelledError,
    CommitOutcomeUnknownError,
    DurabilityNotConfirmedWarning,
)
from oplog.events import Event
from oplog.testing import EmbeddedServer
from tests.fault.lost_commits import (
    APPEND,
    COMMIT,
    Background,
    Bench,
    commit,
    open_bench,
    write_both,
    write_new,
)
from tests.fault.proxy import Fault
from tests.support import install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


# -- A23: cancelled tasks, interrupted processes ----------------------------------------------


async def commit_alone(sessions: Any, number: int) -> None:
    """`sessions.begin()` would shield COMMIT from cancellations."""
    async with sessions() as session:
        await session.run_sync(write_both, number)
        await session.commit()


async def cancel(bench: Bench, task: asyncio.Future[Any]) -> None:
    """Cancel a task that waits for an answer which does not come."""
    await asyncio.to_thread(bench.wait_struck)
    task.cancel()
    # The driver asks the server to cancel, on a connection of its own, and waits on.
    await asyncio.to_thread(bench.proxy.wait_connection)


ways = pytest.mark.parametrize(
    ("apart", "at"), [(False, APPEND), (True, COMMIT)], ids=["with its append", "apart"]
)
"""Of sending COMMIT."""


@ways
@pytest.mark.parametrize("fault", [Fault.HOLD_ANSWER, Fault.SILENT], ids=lambda f: f.name)
async def test_a_task_cancelled_during_commit(
    bench: Bench, fault: Fault, apart: bool, at: type[Event]
) -> None:
    async with bench.open_async_sessions(apart=apart) as sessions:
        bench.plan(fault, at=at)
        task = asyncio.ensure_future(commit_alone(sessions, 1))
        await cancel(bench, task)
        happens = fault is Fault.HOLD_ANSWER
        if happens:
            bench.struck.deliver()
        else:
            bench.struck.hang_up()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value, CommitCancelledError)
        outcome = await bench.log.resolve_async(caught.value, sessions.kw["bind"])
        assert outcome is (Outcome.COMMITTED if happens else Outcome.ABORTED)
        bench.struck.wait_ended()  # given up, not returned to the pool
        assert bench.happened(1) is happens
        await commit_alone(sessions, 2)
    assert bench.happened(2)
    bench.assert_whole()


async def test_a_task_cancelled_during_append_has_not_committed(bench: Bench) -> None:
    async with bench.open_async_sessions(apart=True) as sessions:
        bench.plan(Fault.HOLD_ANSWER, at=APPEND)
        task = asyncio.ensure_future(commit_alone(sessions, 1))
        await cancel(bench, task)
        bench.struck.deliver()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        # No COMMIT was sent: nothing is unknown.
        assert not isinstance(caught.value, CommitOutcomeUnknownError)
        await commit_alone(sessions, 2)
    assert not bench.happened(1)
    bench.assert_whole()


@ways
async def test_sqlalchemy_shields_a_commit_at_the_end_of_a_block(
    bench: Bench, apart: bool, at: type[Event]
) -> None:
    """The cancellation says nothing then; the session's receipts do."""
    held: list[Any] = []

    async def run() -> None:
        async with sessions.begin() as session:
            held.append(session)
            await session.run_sync(write_both, 1)

    async with bench.open_async_sessions(apart=apart) as sessions:
        bench.plan(Fault.HOLD_ANSWER, at=at)
        task = asyncio.ensure_future(run())
        await asyncio.to_thread(bench.wait_struck)
        task.cancel()
        bench.struck.deliver()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.happened(1)
        receipts = bench.log.receipts(held[0])
        assert [receipt.aggregate for receipt in receipts] == ["customer/1", "invoice/1"]
    bench.assert_whole()


def test_a_process_interrupted_during_commit(database_url: URL, tmp_path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(tmp_path / "keyring.json")
    with (
        open_bench(database_url, keyring=keyring) as bench,
        start(bench, tmp_path / "keyring.json", 1, "plain") as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "drafted\n"
        dialogue = bench.proxy.arm(Fault.HOLD_ANSWER)
        process.stdin.write("go on\n")
        process.stdin.flush()
        dialogue.wait_struck()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        dialogue.deliver()
        told = json.loads(process.stdout.readline())
        dialogue.wait_ended()
        assert process.wait() == 0
        assert {"CommitInterruptedError", "KeyboardInterrupt"} <= set(told["told"])
        assert told["process"] not in (0, told["next process"])  # given up
        assert told["outcome"] == "committed"
        assert bench.happened(1, work=write_new)
        assert bench.happened(2)
        bench.assert_whole()


def start(bench: Bench, keyring: Path, number: int, how: str) -> subprocess.Popen[str]:
    urls = (
        url.render_as_string(hide_password=False) for url in (bench.proxy.url, bench.engine.url)
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.fault.writing_process"),
            *(*urls, str(keyring), str(number), how),
        ],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


# -- A19, A21: COMMIT waits for a standby that is not there -----------------------------------


@pytest.fixture(scope="module")
def lonely_server() -> Iterator[EmbeddedServer]:
    """A server that waits for a standby that never comes."""
    with EmbeddedServer(settings={"synchronous_standby_names": "nope"}) as server:
        yield server


LOCALLY = {"options": "-c synchronous_commit=local"}


@pytest.fixture
def lonely(lonely_server: EmbeddedServer) -> Iterator[Bench]:
    admin = make_url(lonely_server.url)
    prepare = create_engine(admin, isolation_level="AUTOCOMMIT", connect_args=LOCALLY)
    with prepare.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS lonely WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE lonely")
    prepare.dispose()
    url = admin.set(database="lonely")
    local = url.update_query_dict(LOCALLY)
    engine = create_engine(local)
    with engine.begin() as connection:
        install_log(connection)
    engine.dispose()
    with open_bench(local) as bench:
        yield bench


ON: dict[str, Any] = {"connect_args": {"options": "-c synchronous_commit=on"}}


def find_waiting(engine: Engine, *, seconds: float = 0.0) -> int:
    """The process whose COMMIT waits for its standby, and has for so long."""
    query = sa.text(
        "SELECT max(pid), pg_sleep(0.01) FROM pg_stat_activity WHERE wait_event = 'SyncRep' "
        "AND datname = current_database() "
        "AND clock_timestamp() - state_change > make_interval(secs => :seconds)"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(2_000):
            found = connection.execute(query, {"seconds": seconds}).one()[0]
            if found is not None:
                return int(found)
    raise AssertionError("no COMMIT came to wait for a standby")


def end_wait(bench: Bench, how: str) -> None:
    process_id = find_waiting(bench.engine)
    with bench.engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT pg_{how}_backend({process_id})").scalar() is True


def test_a_cancelled_wait_for_the_standby_is_a_commit_that_may_be_lost(lonely: Bench) -> None:
    with lonely.open_sessions(**ON) as sessions:
        held: list[Any] = []

        def write() -> None:
            with sessions.begin() as session:
                held.append(session)
                write_both(session, 1)

        def expect_warning() -> None:
            with pytest.warns(DurabilityNotConfirmedWarning):
                write()

        waiting = Background(expect_warning)
        end_wait(lonely, "cancel")
        waiting.result()
        receipts = lonely.log.receipts(held[0])
        assert [receipt.durability_confirmed for receipt in receipts] == [False, False]
        assert lonely.happened(1)
    lonely.assert_whole()


async def test_a_cancelled_wait_for_the_standby_async(lonely: Bench) -> None:
    async with lonely.open_async_sessions(**ON) as sessions:
        ending = Background(lambda: end_wait(lonely, "cancel"))
        with pytest.warns(DurabilityNotConfirmedWarning):
            async with sessions.begin() as session:
                await session.run_sync(write_both, 1)
        ending.result()
        receipts = lonely.log.receipts(session)
        assert [receipt.durability_confirmed for receipt in receipts] == [False, False]
    assert lonely.happened(1)


def test_a_terminated_wait_for_the_standby_is_unknown_and_committed(lonely: Bench) -> None:
    with lonely.open_sessions(**ON) as sessions:
        lonely.plan(Fault.NONE)
        waiting = Background(lambda: commit(sessions, 1))
        end_wait(lonely, "terminate")
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            waiting.result()
        lonely.struck.wait_ended()
        assert lonely.resolve(caught.value) is Outcome.COMMITTED
        # One that would have to wait for the standby itself is not kept waiting.
        assert resolve_beside(lonely, caught.value) is Outcome.COMMITTED
        assert lonely.happened(1)
    lonely.assert_whole()


async def test_a_deadline_ends_a_wait_that_statement_timeout_does_not(lonely: Bench) -> None:
    def write(session: Any) -> None:
        write_both(session, 1)
        session.flush()
        session.execute(sa.text("SET LOCAL statement_timeout = '300ms'"))

    async def run(sessions: Any) -> None:
        async with sessions() as session:
            await session.run_sync(write)
            await session.commit()

    async with lonely.open_async_sessions(**ON) as sessions:
        task = asyncio.ensure_future(run(sessions))
        await asyncio.to_thread(find_waiting, lonely.engine, seconds=0.6)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value, CommitOutcomeUnknownError)
        assert lonely.resolve(caught.value) is Outcome.COMMITTED
    assert lonely.happened(1)
    lonely.assert_whole()


def resolve_beside(bench: Bench, error: CommitOutcomeUnknownError) -> Outcome:
    """The outcome by a resolver that has no `synchronous_commit = local`."""
    engine = create_engine(bench.proxy.url, **ON)
    asking: Callable[[], Outcome] = lambda: bench.log.resolve(error, engine)  # noqa: E731
    try:
        found: Outcome = Background(asking).result()
    finally:
        engine.dispose()
    return found
