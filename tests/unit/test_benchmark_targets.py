"""A target is a limit and an aim, for figures that are to be high and for those to be low."""

from __future__ import annotations

import pytest

from benchmarks.targets import BYTES, RATIOS, Target, expect_of_more
from benchmarks.workloads import ALL_WORKLOADS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (Target(0.7, 0.8), 0.69, "missed"),
        (Target(0.7, 0.8), 0.7, "ok"),
        (Target(0.7, 0.8), 0.8, "aim"),
        (Target(0.7), 5.0, "ok"),
        (Target(300, 180, at_most=True), 301, "missed"),
        (Target(300, 180, at_most=True), 300, "ok"),
        (Target(300, 180, at_most=True), 180, "aim"),
    ],
)
def test_a_figure_is_judged(target: Target, figure: float, verdict: str) -> None:
    assert target.judge(figure) == verdict


def test_a_table_shows_limit_and_aim() -> None:
    assert Target(0.72, 0.8).describe() == "≥ 0.72 (0.8)"
    assert Target(90, at_most=True).describe() == "≤ 90"


def test_several_clients_may_lose_a_twentieth() -> None:
    assert expect_of_more(0.8).must == 0.75


def test_targets_are_for_workloads_that_there_are() -> None:
    assert {workload for _, workload in (*RATIOS, *BYTES)} <= set(ALL_WORKLOADS)
