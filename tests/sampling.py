"""Draws a part of what an exhaustive test could try; `--whole`, as in `make soak`, tries it all.

A test says `@pytest.mark.sampled(n)`, and of its parametrized cases `n` are collected, or it
requests `sample` and draws from a sequence. The seed is in the header of the run. By default it
comes from the commit, so that every push draws others and a failed one can be repeated. With
`seed=` in the mark the same cases are drawn every time.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
VARIABLE = "OPLOG_TEST_SEED"
MARK = "sampled"


@dataclass(frozen=True)
class Sampling:
    """How one run draws: the same for the same seed, and for each `name` another way."""

    seed: str
    whole: bool = False

    def draw(self, items: Sequence[T], most: int, *, name: str) -> list[T]:
        """At most so many of `items`, in their order; all of them in a whole run."""
        if self.whole or len(items) <= most:
            return list(items)
        places = random.Random(f"{self.seed}/{name}").sample(range(len(items)), most)
        return [items[place] for place in sorted(places)]

    def choose(self, tests: Mapping[str, int]) -> set[str]:
        """Ids of tests to run, of those given with the number to keep of each function's."""
        functions: dict[str, list[str]] = defaultdict(list)
        for test in tests:
            functions[test.partition("[")[0]].append(test)
        return {
            test
            for function, cases in functions.items()
            for test in self.draw(cases, tests[cases[0]], name=function)
        }

    def __str__(self) -> str:
        if self.whole:
            return f"everything that is sampled otherwise (seed {self.seed})"
        return f"seed {self.seed} ({VARIABLE}={self.seed} repeats the draws, --whole tries all)"


@dataclass(frozen=True)
class Sample:
    """What a test draws from; a test that is given one is marked as sampled."""

    sampling: Sampling
    test: str

    @property
    def whole(self) -> bool:
        """Nothing is left out."""
        return self.sampling.whole

    def __call__(self, items: Sequence[T], most: int, *, what: str = "") -> list[T]:
        """At most so many of `items`, in their order; all of them in a whole run."""
        return self.sampling.draw(items, most, name=f"{self.test}/{what}")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("oplog")
    group.addoption("--sample-seed", help=f"what sampled tests draw with ({VARIABLE})")
    group.addoption("--whole", action="store_true", help="sampled tests try everything")


def read_sampling(config: pytest.Config) -> Sampling:
    seed = config.getoption("--sample-seed") or os.environ.get(VARIABLE) or _find_seed()
    return Sampling(str(seed), whole=bool(config.getoption("--whole")))


def deselect_undrawn(sampling: Sampling, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases that are not drawn, but none that the command line names."""
    if any("::" in argument for argument in config.args):
        return
    marked = {
        item.nodeid: int(mark.args[0])
        for item in items
        if (mark := item.get_closest_marker(MARK)) is not None and mark.args
    }
    fixed = {
        item.nodeid: str(seed)
        for item in items
        for mark in [item.get_closest_marker(MARK)]
        if mark is not None and (seed := mark.kwargs.get("seed")) is not None
    }
    chosen = sampling.choose({test: most for test, most in marked.items() if test not in fixed})
    for seed in set(fixed.values()):
        drawn = {test: marked[test] for test, one in fixed.items() if one == seed}
        chosen |= replace(sampling, seed=seed).choose(drawn)
    left_out = set(marked) - chosen
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]


def make_sample(sampling: Sampling, node: pytest.Item) -> Sample:
    """Fails for a test without the mark, which a whole run would never find."""
    if node.get_closest_marker(MARK) is None:
        pytest.fail(f"{node.nodeid} draws, and is not marked as {MARK}", pytrace=False)
    return Sample(sampling, node.nodeid)


def _find_seed() -> str:
    """The commit as a number; the day where there is none."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        check=False,
        text=True,
        capture_output=True,
    )
    if done.returncode == 0:
        return str(int(done.stdout[:8], 16))
    return str(datetime.now(UTC).date().toordinal())
