"""Runs work until a signal ends it.

A signal handler interrupts the main thread anywhere, also while that thread holds a lock which
stopping needs. So the work runs in a thread of its own, and the main thread only waits for signals.
Work that does not end in time is killed: every part of it may be killed at any instant anyway, and
a request that hangs must not keep a machine from going down.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TypeVar

from oplog.cli.invocation import say

T = TypeVar("T")

_STDERR = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_signal(
    work: Callable[[], T], *, stop: Callable[[], None], doing: str, stop_seconds: float
) -> T:
    """What `work` returns; the first SIGTERM or SIGINT calls `stop`, a second one kills.

    So does the first one, if the work has not ended `stop_seconds` later. `doing` is said once
    signals are heard.
    """
    heard: list[int] = []

    def give_up(_number: int, _frame: FrameType | None) -> None:
        os.write(_STDERR, b"it did not end in time\n")
        signal.raise_signal(heard[0])

    def receive(number: int, _frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        heard.append(number)
        signal.setitimer(signal.ITIMER_REAL, stop_seconds)
        stop()
        # Not through a buffer: the signal may have come while the main thread writes to it.
        name = signal.Signals(number).name
        os.write(_STDERR, f"{name}: ending; a second signal ends at once\n".encode())

    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, give_up)
    say(doing)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
