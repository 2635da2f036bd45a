"""One effect under one key over lost answers, in COMMITs under way, and in several processes.

What needs no fault is in `tests/postgres/test_idempotency.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from oplog import Keyring, Outcome, Receipt
from oplog.capture import retry
from oplog.errors import CommitOutcomeUnknownError, IdempotencyConflictError
from tests.concurrency.workload import waiting_for_lock
from tests.fault.lost_commits import (
    APPEND,
    COMMIT,
    Background,
    Bench,
    count,
    open_bench,
    write_new,
)
from tests.fault.proxy import Fault

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
LOST = [Fault.DROP_ANSWER, Fault.DROP_REQUEST]
faults = pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.name)


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


class Work:
    """Adds the next invoice each time it is run: a second effect would show."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, session: Session) -> None:
        self.runs += 1
        write_new(session, self.runs)

    async def run_async(self, session: Any) -> None:
        await session.run_sync(self)


def assert_one_effect(bench: Bench, receipts: object) -> None:
    """One invoice, and the receipts are its entry's."""
    with bench.engine.connect() as connection:
        assert count(connection, "invoice") == 1
        entries = [e for e in bench.log.read(connection) if e.aggregate.startswith("invoice/")]
    assert receipts == [Receipt(e.entry_id, e.aggregate, e.version, e.entry_hash) for e in entries]
    bench.assert_whole()


# -- A27: after an unknown outcome -----------------------------------------------------------


@faults
def test_a_run_with_a_key_goes_on_by_itself_after_a_lost_answer(bench: Bench, fault: Fault) -> None:
    work = Work()
    with bench.open_sessions() as sessions:
        bench.plan(fault)
        receipts = bench.log.run(sessions, work, idempotency_key="k", idempotency_request="r")
        assert bench.struck.struck
        # Dropped on the way there, it is done again; on the way back, it was done.
        assert work.runs == (1 if fault is Fault.DROP_ANSWER else 2)
    assert_one_effect(bench, receipts)


@faults
@pytest.mark.parametrize(
    ("apart", "at"),
    [(False, APPEND), (True, APPEND), (True, COMMIT)],
    ids=["both", "append", "commit"],
)
async def test_an_async_run_with_a_key_goes_on_by_itself(
    bench: Bench, fault: Fault, apart: bool, at: Any
) -> None:
    work = Work()

    async def run(sessions: Any) -> object:
        return await bench.log.run_async(
            sessions, work.run_async, idempotency_key="k", idempotency_request="r"
        )

    async with bench.open_async_sessions(apart=apart) as sessions:
        bench.plan(fault, at=at)
        if apart and at is APPEND:
            # Lost before COMMIT was sent: an ordinary disconnect, of which `run` promises nothing.
            with pytest.raises(sa.exc.OperationalError):
                await run(sessions)
            work.runs = 0
        receipts = await run(sessions)
    assert_one_effect(bench, receipts)


def test_without_a_key_a_lost_answer_is_the_application_s_to_resolve(bench: Bench) -> None:
    work = Work()
    with bench.open_sessions() as sessions:
        bench.plan(Fault.DROP_ANSWER)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            bench.log.run(sessions, work)
    assert work.runs == 1
    assert_one_effect(bench, list(bench.log.inquire(caught.value, bench.engine).receipts))


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "never arrives"])
def test_a_run_waits_for_its_own_lost_request(bench: Bench, arrives: bool) -> None:
    """The lost session holds the key: a second run of the work cannot overtake it."""
    work = Work()
    with bench.open_sessions() as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        with waiting_for_lock(bench.engine):
            running = Background(
                lambda: bench.log.run(sessions, work, idempotency_key="k", idempotency_request="r")
            )
        assert work.runs == 1
        if arrives:
            bench.struck.deliver()
        else:
            bench.struck.hang_up()
        receipts = running.result()
        assert work.runs == (1 if arrives else 2)
    assert_one_effect(bench, receipts)


def test_a_run_gives_up_on_an_orphan_that_keeps_its_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "CLAIM_SECONDS", 0.1)
    work = Work()
    with bench.open_sessions() as sessions:
        bench.plan(Fault.HOLD_REQUEST)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            bench.log.run(sessions, work, idempotency_key="k", idempotency_request="r")
        assert caught.value.idempotency_key == "k"
        resolution = bench.log.inquire("k", bench.engine, wait_seconds=0.1)
        assert resolution.outcome is Outcome.PENDING
        (blocker,) = resolution.blockers
        assert blocker.process_id == caught.value.receipts[0].process_id
        bench.struck.deliver()
        bench.struck.wait_ended()
        resolution = bench.log.inquire("k", bench.engine)
        assert resolution.outcome is Outcome.COMMITTED
    assert work.runs == 1
    assert_one_effect(bench, list(resolution.receipts))


# -- at the same time -------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_two_runs_at_once_have_one_effect(bench: Bench, level: str) -> None:
    work = Work()

    def run() -> object:
        return bench.log.run(sessions, work, idempotency_key="k", idempotency_request="r")

    with bench.open_sessions(isolation_level=level) as sessions:
        bench.plan(Fault.SILENT)
        first = Background(run)
        bench.wait_struck()
        with waiting_for_lock(bench.engine):
            second = Background(run)
        bench.struck.deliver()
        receipts = first.result()
        assert second.result() == receipts
    assert_one_effect(bench, receipts)


def test_runs_in_several_processes_have_one_effect(database_url: URL, tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    keyring = Keyring.generate()
    keyring.save(path)
    with open_bench(database_url, keyring=keyring) as bench, ExitStack() as stack:
        url = database_url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "tests.fault.writing_process", url, url, str(path)]
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(number), "key"],
                    cwd=ROOT,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number in (1, 2, 3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.communicate()[0]) for process in processes]
        (receipts,) = {tuple(each["receipts"]) for each in told}
        found = bench.log.inquire("key", bench.engine).receipts
        assert [str(receipt) for receipt in found] == list(receipts)
        assert_one_effect(bench, list(found))


# -- A28: the same key for something else -----------------------------------------------------


@faults
def test_another_request_under_a_lost_key(bench: Bench, fault: Fault) -> None:
    """It is a conflict if the first one happened, and the first one if that did not."""
    work = Work()

    def run(request: str, retries: int) -> object:
        return bench.log.run(
            sessions, work, retries=retries, idempotency_key="k", idempotency_request=request
        )

    with bench.open_sessions() as sessions:
        bench.plan(fault)
        with pytest.raises(CommitOutcomeUnknownError) as lost:
            run("pay 5", 0)
        if fault is Fault.DROP_ANSWER:
            with pytest.raises(IdempotencyConflictError) as caught:
                run("pay 6", 20)
            assert work.runs == 1
            receipts: object = caught.value.receipts
        else:
            receipts = run("pay 6", 20)
        assert bench.resolve(lost.value) is (
            Outcome.COMMITTED if fault is Fault.DROP_ANSWER else Outcome.ABORTED
        )
    assert_one_effect(bench, receipts)
