"""The short form of the soak, and bugs planted to see it turn red.

`make soak` runs the long one. The short one ends when every fault has struck under load and every
path of `MUST_REACH` was walked, so that passing never is luck; it fails when one stays unreached.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.fault.history import ABORTED, COMMITTED, INVOKED, PENDING, RESOLVED, UNKNOWN
from tests.fault.journal import Journal, Journals
from tests.fault.nemesis import CLIENT_KILLED, SERVER_KILLED, Run
from tests.fault.planted import (
    NO_COMPARE_AND_SWAP,
    OWN_TRANSACTION,
    REFUSAL_UNCHECKED,
)
from tests.fault.soak import (
    MUST_REACH,
    Setting,
    Verdict,
    conclude,
    list_unreached,
    open_run,
    run_short,
)

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


def draw_seed() -> int:
    """Printed with a failure; `OPLOG_TEST_SEED` repeats the draws."""
    seed = int(os.environ.get("OPLOG_TEST_SEED") or random.randrange(1_000_000))
    print(f"OPLOG_TEST_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return seed


def test_whatever_breaks_the_log_and_the_rows_and_the_clients_agree(tmp_path: Path) -> None:
    with open_run(Setting(draw_seed(), synchronous=2, asynchronous=2), tmp_path) as run:
        run_short(run)
        run.stop_clients()
        verdict = conclude(run)
    assert verdict.ok, str(verdict)
    assert verdict.counts[SERVER_KILLED] >= 2
    assert verdict.counts[CLIENT_KILLED] >= 2
    assert verdict.counts["resolved right"] == verdict.counts["resolved"] >= 2


def run_planted(bug: str, directory: Path) -> Verdict:
    """Competing clients of a broken product, and no other fault."""
    setting = Setting(
        draw_seed(), synchronous=2, asynchronous=0, kinds=["ticket"], limit=200, plant=bug
    )
    with open_run(setting, directory) as run:
        if bug == OWN_TRANSACTION:
            await_deaths(run)
        else:
            run.wait_for_clients()
        return conclude(run)


def await_deaths(run: Run) -> None:
    """This bug's clients kill themselves between their two transactions."""
    for seat in run.seats:
        assert "ended with -9" in seat.wait(60)


def list_laws(verdict: Verdict) -> set[str]:
    return {violation.law for violation in verdict.violations}


@pytest.mark.parametrize(
    ("bug", "laws"),
    [
        # Both writers' entries follow each other, and the second overwrote the first's row.
        (NO_COMPARE_AND_SWAP, {"updates", "rows"}),
        # A receipt for nothing. Its row is mostly overwritten before anybody compares.
        (REFUSAL_UNCHECKED, {"acknowledged"}),
        # The version is used up, and nothing has it.
        (OWN_TRANSACTION, {"tickets", "verify"}),
    ],
)
def test_a_planted_bug_is_named(bug: str, laws: Iterable[str], tmp_path: Path) -> None:
    verdict = run_planted(bug, tmp_path)
    assert not verdict.complaints, str(verdict)
    assert verdict.counts["acknowledged"] > 0
    assert list_laws(verdict) >= set(laws), str(verdict)


def test_without_a_bug_the_same_run_breaks_no_law(tmp_path: Path) -> None:
    verdict = run_planted("", tmp_path)
    assert verdict.violations == []
    assert not verdict.complaints, str(verdict)
    assert verdict.counts["conflicts"] > 0


def test_a_path_that_was_never_reached_fails_the_run(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    assert list_unreached(journals) == list(MUST_REACH)
    with Journal(tmp_path / "0.0.jsonl") as journal:
        for operation, verdict in (("a", COMMITTED), ("b", ABORTED)):
            journal.say(INVOKED, operation)
            journal.say(UNKNOWN, operation)
            journal.say(RESOLVED, operation, verdict=PENDING)
            journals.catch_up()
            assert f"resolved {verdict.lower()}" in list_unreached(journals)
            journal.say(RESOLVED, operation, verdict=verdict)
        for note in ("conflict", "deadlock", "serialization failure", "cancelled"):
            journal.note(note)
        journals.catch_up()
        assert list_unreached(journals) == ["key repeated"]
        assert not Verdict([], [], list_unreached(journals), {}).ok
        journal.note("key repeated")
    journals.catch_up()
    assert Verdict([], [], list_unreached(journals), {}).ok
