"""`make mutants`: judge every mutant, list the survivors, fail on those nobody has explained.

`make mutants ONLY=codec` judges one module (several: ONLY="codec chain").
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.mutants.explanation import FILE, Explanation, read_explanations
from tests.mutants.judge import ROOT, Trial, Verdict, judge, locate, measure, warm_up
from tests.mutants.mutation import Mutant, list_mutants
from tests.mutants.sql import list_sql_mutants
from tests.mutants.target import TARGETS, Target

ALLOWANCE_SECONDS = 20.0
ALLOWANCE_TIMES = 5


@dataclass(slots=True)
class Score:
    """What came of one module."""

    name: str
    counts: Counter[Verdict] = field(default_factory=Counter)
    explained: int = 0
    unexplained: list[Mutant] = field(default_factory=list)
    stale: list[Explanation] = field(default_factory=list)
    seconds: float = 0.0


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a survivor has no explanation, or an explanation no survivor."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *(t.name for t in TARGETS)])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--list", action="store_true", help="list the mutants, judge none")
    options = parser.parse_args(arguments)
    targets = [t for t in TARGETS if not options.only or t.name in options.only]
    if options.list:
        for target in targets:
            for mutant in _make_mutants(target):
                print(f"{target.name}:{mutant.line} {mutant.where}: {mutant.change}")
        return 0
    explanations = read_explanations(FILE.read_text(encoding="utf-8"))
    warm_up()
    with _serve() as url, tempfile.TemporaryDirectory() as scratch:
        os.environ["OPLOG_TEST_DATABASE_URL"] = url
        # What Hypothesis finds in a mutant is no failure of the product to be remembered.
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch
        scores = [_score(target, explanations, workers=options.workers) for target in targets]
    _report(scores)
    return int(any(score.unexplained or score.stale for score in scores))


@contextmanager
def _serve() -> Iterator[str]:
    given = os.environ.get("OPLOG_TEST_DATABASE_URL")
    if given:
        yield given
        return
    command = [sys.executable, "-m", "tests.mutants.server"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip() if process.stdout is not None else ""
        if not url:
            raise SystemExit("the server for the tests did not start")
        yield url
        # Leaving the block closes its input, and that ends it.


def _make_mutants(target: Target) -> list[Mutant]:
    source = locate(target.module).read_text(encoding="utf-8")
    mutants = list_sql_mutants(target.name, source) if target.by_hand else list_mutants(source)
    for mutant in mutants:
        # One that is no Python would be killed by every test.
        ast.parse(mutant.source)
    return mutants


def _score(target: Target, explanations: list[Explanation], *, workers: int) -> Score:
    started = time.monotonic()
    score = Score(target.name)
    usual = measure(Trial(target.module, target.tests))
    mutants = _make_mutants(target)
    verdicts = judge(
        [(n, Trial(target.module, target.tests, m.source)) for n, m in enumerate(mutants)],
        workers=workers,
        deadline=ALLOWANCE_SECONDS + ALLOWANCE_TIMES * usual,
    )
    score.counts.update(verdict for _, verdict in verdicts)
    ours = [e for e in explanations if e.module == target.name]
    used = set()
    for number, verdict in sorted(verdicts, key=lambda pair: pair[0]):
        mutant = mutants[number]
        if verdict is not Verdict.SURVIVED:
            continue
        fitting = [e for e in ours if e.fits(target.name, where=mutant.where, change=mutant.change)]
        used.update(fitting)
        if fitting:
            score.explained += 1
        else:
            score.unexplained.append(mutant)
    score.stale = [e for e in ours if e not in used]
    score.seconds = time.monotonic() - started
    print(_line(score), flush=True)
    _list_faults(score)
    return score


def _line(score: Score) -> str:
    counts = score.counts
    numbers = [
        counts.total(),
        counts[Verdict.KILLED],
        counts[Verdict.TIMED_OUT],
        score.explained,
        len(score.unexplained),
    ]
    return f"{score.name:<12}" + "".join(f"{n:>12}" for n in numbers) + f"{score.seconds:>10.0f} s"


def _report(scores: list[Score]) -> None:
    total = Score("all")
    for score in scores:
        total.counts.update(score.counts)
        total.explained += score.explained
        total.unexplained += score.unexplained
        total.seconds += score.seconds
    titles = ("mutants", "killed", "timed out", "explained", "unexplained")
    print(f"\n{'module':<12}" + "".join(f"{title:>12}" for title in titles) + f"{'time':>12}")
    for score in [*scores, total]:
        print(_line(score))


def _list_faults(score: Score) -> None:
    for mutant in score.unexplained:
        print(f"  survived: line {mutant.line}\n[[survivor]]\nmodule = {score.name!r}")
        print(f"where = {mutant.where!r}\nchange = '''{mutant.change}'''", flush=True)
    for explanation in score.stale:
        print(f"  explains no survivor: {explanation.where}: {explanation.change}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
