"""Thousands of adversarial runs of the publishing protocol, and proof that they would notice."""

from __future__ import annotations

import re

import pytest

from oplog.archive.step import Step
from tests.model.adversary import Run
from tests.model.invariants import Violation
from tests.model.variants import (
    BROKEN_VARIANTS,
    SOUND_VARIANTS,
    Broken,
    find_violation,
    play_all,
)

pytestmark = pytest.mark.unit
RUNS = 150


@pytest.mark.sampled(8)
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("variant", SOUND_VARIANTS)
def test_no_run_of_the_protocol_breaks_an_invariant(variant: str, part: int) -> None:
    reached = play_all(SOUND_VARIANTS[variant], range(part * RUNS, (part + 1) * RUNS))
    assert reached[Step.CREATE_HEAD] > RUNS
    assert reached["heads"] > RUNS
    assert reached["hints ahead"] == 0


@pytest.mark.parametrize("name", BROKEN_VARIANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    broken: Broken = BROKEN_VARIANTS[name]
    caught = find_violation(broken.rules, range(broken.runs))
    assert caught is not None, f"{name}: not noticed in {broken.runs} runs"
    assert re.search(broken.says, caught.text), f"{name}: {caught}"


def test_runs_reach_what_they_are_for() -> None:
    """Without these the runs would hold whatever the rules were."""
    reached = play_all(SOUND_VARIANTS[""], range(600)) + play_all(
        SOUND_VARIANTS["heads"], range(200)
    )
    unused = {
        # Not requests of the model's processes: the lease saves work and is no part of safety,
        # comparing and reading tables happen in the transaction that reads the news.
        Step.ACQUIRE_LEASE,
        Step.COMPARE_LOG,
        Step.READ_STATE,
        Step.DELETE_PROBE,
    }
    missing = {step for step in Step if not reached[step]}
    assert missing <= unused, missing - unused
    for what in ("forks", "snapshots", "garbage heads", "refused"):
        assert reached[what], what


def test_a_run_can_be_repeated() -> None:
    def trace() -> list[str]:
        lines: list[str] = []
        Run(7, SOUND_VARIANTS[""], trace=lines.append).go()
        return lines

    first = trace()
    assert first == trace()
    assert len(first) > 100


def test_a_violation_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> None:
        raise Violation("broken")

    monkeypatch.setattr(Run, "go", fail)
    with pytest.raises(Violation, match="--variant 'heads' --trace 5"):
        play_all(SOUND_VARIANTS["heads"], [5])
