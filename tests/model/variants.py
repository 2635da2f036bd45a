"""What is played: the rules of the product under several pressures, and rules broken one by one.

Each broken variant must be caught, or the model proves nothing. `runs` is within how many runs
the tests expect that; a variant that takes longer is left to the soak.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.model.adversary import Run
from tests.model.invariants import Violation
from tests.model.rules import SOUND, Rules

SINGLE_WRITER = replace(
    SOUND,
    root="epochs",
    fresh_ids=False,
    epoch_first=True,
    collect="never",
    failovers=False,
    promise="acknowledged",
)
"""A store without conditional creation: the operator vouches for one writer at a time."""
SOUND_VARIANTS = {
    "": SOUND,
    "heads": replace(SOUND, pressure="heads"),
    "pins": replace(SOUND, pressure="pins"),
    "snapshots": replace(SOUND, pressure="snapshots"),
    "echoes": replace(SOUND, pressure="echoes"),
    "single writer": SINGLE_WRITER,
    "forgers": replace(SOUND, forgers=True),
}


@dataclass(frozen=True, slots=True)
class Broken:
    """A variant, what is expected to be said of it, and within how many runs."""

    rules: Rules
    says: str
    runs: int


_OVERWRITTEN = replace(SOUND, root="overwritten", collect="never", failovers=False)
_HEADS = SOUND_VARIANTS["heads"]
_PINS = SOUND_VARIANTS["pins"]
_SNAPSHOTS = SOUND_VARIANTS["snapshots"]
_FORGERS = SOUND_VARIANTS["forgers"]
BROKEN_VARIANTS = {
    "named objects, root overwritten": Broken(
        replace(_OVERWRITTEN, hashed_names=False), "torn", 20
    ),
    "hashed names, root overwritten": Broken(_OVERWRITTEN, "went backwards", 50),
    "root before content": Broken(replace(SOUND, content_first=False), "missing", 20),
    "no predecessor check": Broken(replace(_HEADS, check_predecessor=False), "commit|reader", 300),
    "no marker for head 1": Broken(replace(_HEADS, mark_collected=False), "commit|reader", 300),
    "predecessor read early": Broken(
        replace(_HEADS, predecessor_last=False), "reader|does not count", 2000
    ),
    "heads not ascending": Broken(replace(_HEADS, heads_ascending=False), "commit|reader", 600),
    "old heads left in place": Broken(replace(_HEADS, pin_by_copy=False), "commit|reader", 300),
    "collected at once": Broken(replace(SOUND, collect="now"), "I7|I1", 50),
    "collected by age": Broken(replace(SOUND, collect="aged"), "I7|I1", 600),
    "collected by age, skipped what exists": Broken(
        replace(SOUND, collect="aged", skip="exists"), "I7|I1", 900
    ),
    "index nodes named by their first": Broken(
        replace(_SNAPSHOTS, index_by_last=False), "INDEX", 600
    ),
    "pins listed before the head": Broken(replace(_PINS, pins_after_head=False), "I7|I1", 2500),
    "no epochs": Broken(replace(SOUND, check_epoch=False), "horizon|I7|I1", 50),
    "no generations": Broken(replace(SOUND, generations=False), "divergence", 50),
    "records compared by position": Broken(replace(SOUND, compare_hashes=False), "divergence", 100),
    "acknowledged on a new connection": Broken(
        replace(SOUND, one_session=False), "divergence|passed over|converge", 200
    ),
    "acknowledged before the head": Broken(replace(SOUND, acknowledge_after_head=False), "I4", 20),
    "cursor advanced before": Broken(replace(SOUND, cursor="before"), "passed over|twice", 50),
    "cursor advanced after": Broken(replace(SOUND, cursor="after"), "twice", 50),
    "cursor not clamped": Broken(replace(SOUND, clamp_cursor=False), "passed over", 50),
    "fork keeps snapshots above it": Broken(replace(SOUND, drop_lost_snapshots=False), "I6", 200),
    "signatures not checked": Broken(
        replace(_FORGERS, check_signature=False, check_base=False), "does not count|I7", 20
    ),
    "signatures not checked by the publisher": Broken(
        replace(_FORGERS, check_base=False), "does not count|commit", 20
    ),
    "replaced keys go on signing": Broken(
        replace(_FORGERS, retire_keys=False), "does not count|commit", 100
    ),
    "single writer, everything promised": Broken(
        replace(SINGLE_WRITER, promise="all"), "commit|backwards|extend", 50
    ),
    "single writer, epoch taken late": Broken(replace(SINGLE_WRITER, epoch_first=False), "I4", 300),
}
RARE_VARIANTS = {
    "snapshot's base not looked for again": replace(_SNAPSHOTS, recheck_base=False),
    "cursor of the head": replace(SOUND, cursor="head"),
    "deletes not confirmed": replace(SOUND, confirm_deletes=False, pressure="echoes"),
    "head creation repeated as it was": replace(SOUND, fresh_ids=False, pressure="echoes"),
    "pins not confirmed": replace(_PINS, confirm_pins=False),
}
"""Caught within some thousand runs: played by the soak."""


@dataclass(frozen=True, slots=True)
class Caught:
    """The first violation that a variant was caught with."""

    seed: int
    text: str


def find_violation(rules: Rules, seeds: Iterable[int]) -> Caught | None:
    for seed in seeds:
        try:
            Run(seed, rules).go()
        except Violation as violation:
            return Caught(seed, str(violation))
    return None


def play_all(rules: Rules, seeds: Iterable[int]) -> Counter[str]:
    """Play runs that must hold; what was reached. A violation says how to see its run again."""
    reached: Counter[str] = Counter()
    for seed in seeds:
        try:
            reached += Run(seed, rules).go()
        except Violation as violation:
            variant = next((n for n, known in SOUND_VARIANTS.items() if known == rules), "?")
            text = f"{violation}; python -m tests.model --variant '{variant}' --trace {seed}"
            raise Violation(text) from violation
    return reached


def draw_seed() -> int:
    """A seed that was not played yet."""
    return random.SystemRandom().randrange(1 << 40)
