"""What wakes a waiting worker: time, a notification, or a call to stop.

Writers do not notify: NOTIFY takes one lock of the whole server at COMMIT, and they would wait for
each other. A caller that waits for the archive notifies, in a transaction of its own. Where
notifications do not arrive (behind a pooler, say), the worker finds new records by itself.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from sqlalchemy.engine import Engine

from oplog.postgres.notification import Listener

CHANNEL = "oplog_archive"
_SLICE_SECONDS = 0.2
"""How long a call to stop may go unnoticed."""


class Wake:
    """Waiting that ends early. Used by one thread, interrupted by any."""

    def __init__(self, engine: Engine | None) -> None:
        """With an `engine`, notifications on its database end the waiting."""
        self._listener = None if engine is None else Listener(engine, CHANNEL)
        # No event: a signal handler that sets one may wait for the very code that it stopped.
        self._interrupted = False

    def __enter__(self) -> Self:
        if self._listener is not None:
            # From now on: a call that comes before the first waiting ends it.
            self._listener.hear(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._listener is not None:
            self._listener.close()

    def interrupt(self) -> None:
        """End the waiting now."""
        self._interrupted = True

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as something calls for attention."""
        until = time.monotonic() + seconds
        while not self._interrupted:
            left = until - time.monotonic()
            if left <= 0 or self._hear(min(left, _SLICE_SECONDS)):
                break
        self._interrupted = False

    def _hear(self, seconds: float) -> bool:
        """Whether a notification came within `seconds`."""
        heard = None if self._listener is None else self._listener.hear(seconds)
        if heard is None:
            # Time alone wakes; the next slice tries to listen again.
            time.sleep(seconds)
        return bool(heard)


def call_worker(engine: Engine) -> None:
    """Wake the workers of a database, if they can hear."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_catalog.pg_notify(%s, '')", (CHANNEL,))
