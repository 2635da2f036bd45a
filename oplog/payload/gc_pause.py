"""Pauses Python's cyclic garbage collector during work that makes many objects and no cycles.

The collector belongs to the whole process: other threads' garbage is still collected between
batches, and the previous setting is restored at the end.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def pause_collector() -> Iterator[Callable[[], None]]:
    """No cyclic garbage collection but when told, between batches.

    A batch is many small objects and no cycles. Taking them for possible garbage, the
    collector walked the whole process's heap again and again: two fifths of a replay's time.
    """
    enabled = gc.isenabled()

    def collect() -> None:
        # Other threads' garbage must not pile up for as long as a replay takes.
        if enabled:
            gc.collect(1)

    gc.disable()
    try:
        yield collect
    finally:
        if enabled:
            gc.enable()
