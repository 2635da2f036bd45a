"""What wakes a waiting worker: time, a notification, or being told to stop.

Writers do not notify: NOTIFY takes one lock of the whole server at COMMIT and would make all of
them wait in line. Who waits for the archive notifies, in a transaction of its own. Must not be
relied upon: where notifications do not arrive (a pooler, say) the worker looks by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

CHANNEL = "oplog_archive"
_SLICE_SECONDS = 0.2
"""How long being told to stop may go unnoticed."""


class Wake:
    """Waiting that ends early. Used by one thread, interrupted by any."""

    def __init__(self, engine: Engine | None) -> None:
        """With an `engine`, notifications on its database end the waiting."""
        self._engine = engine
        # No event: a signal handler that sets one may wait for the very code that it stopped.
        self._interrupted = False
        self._connection: psycopg.Connection[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._close()

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
        connection = self._listen()
        if connection is None:
            time.sleep(seconds)
            return False
        try:
            return next(connection.notifies(timeout=seconds, stop_after=1), None) is not None
        except psycopg.Error:
            # The next wait tries to listen again; until then time alone wakes.
            self._close()
            return False

    def _listen(self) -> psycopg.Connection[object] | None:
        if self._connection is not None or self._engine is None:
            return self._connection
        with contextlib.suppress(DBAPIError, psycopg.Error), _detach(self._engine) as raw:
            raw.autocommit = True
            raw.execute(f"LISTEN {CHANNEL}")
            self._connection = raw
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _detach(engine: Engine) -> Iterator[psycopg.Connection[object]]:
    """A connection of the engine's making that its pool forgets; closed on an error."""
    pooled = engine.raw_connection()
    raw = pooled.driver_connection
    pooled.detach()
    if not isinstance(raw, psycopg.Connection):
        pooled.close()
        raise psycopg.NotSupportedError("not a connection of psycopg 3")
    try:
        yield raw
    except BaseException:
        raw.close()
        raise


def call_worker(engine: Engine) -> None:
    """Wake the workers of a database, if they can hear."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_catalog.pg_notify(%s, '')", (CHANNEL,))
