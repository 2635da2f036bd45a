"""Requests to a store, made again while their error is one that passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from oplog.backoff import Backoff
from oplog.errors import ArchiveError, StoreUnavailableError

Result = TypeVar("Result")


def retry(work: Callable[[], Result], *, backoff: Backoff) -> Result:
    """Call `work` until it returns; give up when its error is final, or at the deadline.

    No attempt begins after the deadline; the last one may end later. Raises the error of `work`
    that is not retryable, or `StoreUnavailableError` from the last one that is.
    """
    pauses = backoff.begin()
    while True:
        try:
            return work()
        except ArchiveError as error:
            if not error.retryable:
                raise
            pause = next(pauses, None)
            if pause is None:
                raise StoreUnavailableError(
                    f"{error.args[0]} (given up after {pauses.failures} attempts in "
                    f"{pauses.spent_seconds:.1f} s)",
                    hint=error.hint,
                ) from error
        backoff.sleep(pause)
