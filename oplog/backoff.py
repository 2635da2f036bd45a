"""Pauses between attempts: how long, how much of it at random, and until when.

`Backoff` holds the settings and never changes; `begin` starts counting for one piece of work.
Neither catches errors nor decides which are worth another attempt: the caller does, and sleeps,
so the same pauses serve blocking code, async code and a wait that can be interrupted.

    pauses = backoff.begin()
    while True:
        try:
            return work()
        except Passing as error:
            pause = next(pauses, None)
            if pause is None:
                raise
        backoff.sleep(pause)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MOST_DOUBLINGS = 60
"""Enough for any pause; 2.0 ** 1100 would be an OverflowError."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from `first_seconds` up to `longest_seconds`.

    `jitter` is the share of a pause that is drawn at random, so that clients that failed
    together do not come back together: 1 draws from the whole range, 0.5 from its upper half, 0
    takes the pause as it is. No pause is given that would end `deadline_seconds` after the
    beginning or later; with `cut_last` such a pause is shortened, and the last attempt is made
    at the deadline. The defaults suit requests over a network.
    """

    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    jitter: float = 1.0
    deadline_seconds: float = 60.0
    cut_last: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def pause_seconds(self, failures: int) -> float:
        """How long to wait after so many failed attempts, counted from 1."""
        doubled = self.first_seconds * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        longest = min(self.longest_seconds, doubled)
        return longest * (1 - self.jitter + self.jitter * self.draw())

    def begin(self) -> Pauses:
        """The pauses of one piece of work that begins now."""
        return Pauses(self)


class Pauses(Iterator[float]):
    """The pause after each failed attempt; exhausted when there is to be no other attempt."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._began = backoff.clock()
        self.failures = 0
        """Attempts that failed."""
        self.spent_seconds = 0.0
        """From the beginning to the newest failure."""

    def __next__(self) -> float:
        """Count a failed attempt, and say how long to pause before the next one."""
        backoff = self._backoff
        self.failures += 1
        self.spent_seconds = backoff.clock() - self._began
        pause = backoff.pause_seconds(self.failures)
        left = backoff.deadline_seconds - self.spent_seconds
        if pause < left:
            return pause
        if backoff.cut_last and left > 0:
            return left
        raise StopIteration
