"""`python -m tests.model --minutes 10`: the model for as long as wanted, on every processor.

Plays the rules of the product under all pressures; a tenth of the time goes to rules broken on
purpose. `--trace SEED --variant NAME` shows one run, step by step; `--table` counts violations.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.model.adversary import Run
from tests.model.invariants import Violation
from tests.model.rules import Rules
from tests.model.variants import (
    BROKEN_VARIANTS,
    RARE_VARIANTS,
    SOUND_VARIANTS,
    draw_seed,
    find_violation,
    play_all,
)

BATCH = 200
ALL: dict[str, Rules] = (
    SOUND_VARIANTS
    | {name: broken.rules for name, broken in BROKEN_VARIANTS.items()}
    | RARE_VARIANTS
)


def _play(seed: int, *, until: float) -> tuple[int, Counter[str], str]:
    """Runs from a seed on until the time is up; what was reached, and the first violation."""
    reached: Counter[str] = Counter()
    runs = 0
    while time.monotonic() < until:
        for rules in SOUND_VARIANTS.values():
            try:
                reached += play_all(rules, range(seed, seed + BATCH))
            except Violation as violation:
                return runs, reached, str(violation)
            runs += BATCH
        seed += BATCH
    return runs, reached, ""


def _soak(minutes: float, seed: int) -> int:
    workers = os.cpu_count() or 1
    began = time.monotonic()
    print(f"model: {minutes:g} min on {workers} processors, seed {seed}", flush=True)
    until = began + minutes * 60 * 0.9
    seeds = [seed + worker * (1 << 42) for worker in range(workers)]
    failed = False
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(partial(_play, until=until), seeds))
        total = sum((reached for _, reached, _ in results), Counter[str]())
        print(f"model: {sum(runs for runs, _, _ in results)} runs, {total['heads']} heads")
        for _, _, violation in results:
            if violation:
                print(f"model: VIOLATION {violation}")
                failed = True
        rare = pool.map(partial(_hunt, until=began + minutes * 60, seed=seed), RARE_VARIANTS)
        for name, said in zip(RARE_VARIANTS, rare, strict=True):
            print(f"model: broken on purpose: {name}: {said or 'not noticed in this time'}")
    return int(failed)


def _hunt(name: str, *, until: float, seed: int) -> str:
    while time.monotonic() < until:
        caught = find_violation(RARE_VARIANTS[name], range(seed, seed + BATCH))
        if caught:
            return f"{caught.text} (seed {caught.seed})"
        seed += BATCH
    return ""


def _count(name: str, runs: int) -> tuple[str, int]:
    found = sum(find_violation(ALL[name], [seed]) is not None for seed in range(runs))
    return name, found


def _tabulate(runs: int) -> int:
    with ProcessPoolExecutor() as pool:
        for name, found in pool.map(partial(_count, runs=runs), ALL):
            print(f"{found:7} of {runs}  {name or 'the rules as they are'}", flush=True)
    return 0


def _trace(name: str, seed: int) -> int:
    try:
        Run(seed, ALL[name], trace=print).go()
    except Violation as violation:
        print(f"VIOLATION {violation}")
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when an invariant was broken."""
    parser = argparse.ArgumentParser(prog="model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--variant", choices=list(ALL), default="")
    parser.add_argument("--trace", type=int, metavar="SEED")
    parser.add_argument("--table", type=int, metavar="RUNS")
    options = parser.parse_args(arguments)
    if options.trace is not None:
        return _trace(options.variant, options.trace)
    if options.table:
        return _tabulate(options.table)
    return _soak(options.minutes, draw_seed() if options.seed is None else options.seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
