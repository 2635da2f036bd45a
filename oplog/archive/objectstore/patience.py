"""How often a store is asked again, and how long in all.

Holds pauses and the deadline. Must not know any particular store: whether a fresh attempt can
help is what the error says. The hard part is many clients at once: pauses are drawn from the
whole range up to the limit, so that clients that failed together do not return together.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from oplog.errors import ArchiveError, StoreUnavailableError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """Attempts until `deadline_seconds` after the first began; the last may end later than that.

    Before attempt n+1 there is a pause of up to `first_seconds` * 2^(n-1), at most
    `longest_seconds`. `draw` gives fractions of it.
    """

    deadline_seconds: float = 60.0
    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def pause_seconds(self, attempt: int) -> float:
        """How long to wait after a failed attempt, counted from 1."""
        # Bounded before it is multiplied: 2.0 ** 1100 is an OverflowError.
        limit = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempt - 1, 60))
        return limit * self.draw()


def retry(work: Callable[[], Result], *, patience: Patience) -> Result:
    """Call `work` until it returns; give up when its error is final, or at the deadline.

    Raises the error of `work` that is not retryable, or `StoreUnavailableError` from the last
    one that is.
    """
    began = patience.clock()
    attempt = 0
    while True:
        attempt += 1
        try:
            return work()
        except ArchiveError as error:
            if not error.retryable:
                raise
            pause = patience.pause_seconds(attempt)
            spent = patience.clock() - began
            if spent + pause >= patience.deadline_seconds:
                raise StoreUnavailableError(
                    f"{error.args[0]} (given up after {attempt} attempts in {spent:.1f} s)",
                    hint=error.hint,
                ) from error
        patience.sleep(pause)
