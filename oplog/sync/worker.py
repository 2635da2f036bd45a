"""The loop of a worker: publish, wait, stop on request; chores are done beside it.

Without the lease a worker waits, and takes over only from one that has made no progress for a
while. That is for availability; safety rests on epochs and heads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from oplog.backoff import Backoff
from oplog.errors import (
    LeaseHeldError,
    StoreUnavailableError,
)
from oplog.postgres.sqlstate import is_passing
from oplog.sync.chores import Chore, ChoreThread
from oplog.sync.exporter import Exporter, SyncReport
from oplog.sync.wake import Wake

INTERVAL_SECONDS = 1.0
"""Between two looks at the database when nothing wakes the worker."""
LEASE_SECONDS = 60.0
"""After so long without progress, a worker that has the lease is taken for dead."""
_LONGEST_PAUSE_SECONDS = 30.0

_logger = logging.getLogger("oplog.archive")


class SyncLoop:
    """Publishes until it is stopped. `run` belongs to one thread; `stop` to any."""

    def __init__(
        self,
        exporter: Exporter,
        engine: Engine,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        chores: Sequence[Chore] = (),
        wake: Wake,
        on_pass: Callable[[SyncReport], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter
        self._engine = engine
        self._interval = interval_seconds
        self._lease = lease_seconds
        self._chores = [
            ChoreThread(chore, is_stopped=self.is_stopped, on_failure=self.stop, clock=clock)
            for chore in chores
        ]
        self._wake = wake
        self._on_pass = on_pass
        self._clock = clock
        self._stopped = False
        # Never gives up. At least half of each pause is waited, so that a store that is down is
        # not asked more often than the database is looked at.
        self._backoff = Backoff(
            first_seconds=2 * interval_seconds,
            longest_seconds=_LONGEST_PAUSE_SECONDS,
            jitter=0.5,
            deadline_seconds=math.inf,
        )
        self._pauses = self._backoff.begin()
        self._held_since: float | None = None
        self._held_head = -1

    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """End `run` after the head in the making; a chore ends at its next request."""
        # Plain, so that a signal handler may do it wherever it comes.
        self._stopped = True
        self._wake.interrupt()

    def run(self) -> None:
        """Publish what is new, again and again, until `stop`.

        Waits out stores and servers that do not answer. Raises `LeaseLostError` when another
        worker took over, `LogForkedError` under the policy to stop, and every error that a
        repetition cannot mend, from a chore as well.
        """
        try:
            with self._wake:
                self._publish_until_stopped()
        finally:
            self._stopped = True
            for chore in self._chores:
                chore.finish()

    def _publish_until_stopped(self) -> None:
        while not self._stopped:
            try:
                report = self._publish()
            except (StoreUnavailableError, DBAPIError, PoolTimeoutError) as error:
                self._endure(error)
                continue
            self._pauses = self._backoff.begin()
            if report is not None:
                self._on_pass(report)
                # After a pass: a chore finds an archive, if there is to be one.
                for chore in self._chores:
                    chore.start()
                if self._exporter.unfinished:
                    continue
            # Also after a head: one for every commit would cost a request for every commit.
            if not self._stopped:
                self._wake.wait(self._interval)

    def _publish(self) -> SyncReport | None:
        """Publish a page; None if it is another worker's turn."""
        seize = self._held_since is not None and self._clock() - self._held_since > self._lease
        try:
            report = self._exporter.publish_page(self._engine, seize=seize)
        except LeaseHeldError:
            head = self._exporter.archive.find_head()
            number = 0 if head is None else head.number
            if self._held_since is None or number != self._held_head:
                self._held_since, self._held_head = self._clock(), number
            return None
        if not (seize and report.entries):
            # Else the one that stands still may have the lease yet, and there may be more.
            self._held_since = None
        return report

    def _endure(self, error: Exception) -> None:
        """Wait, longer each time, after an error that passes; raise one that does not."""
        if isinstance(error, DBAPIError) and not is_passing(error):
            raise error
        _logger.warning("publishing failed, trying again: %s", error)
        self._wake.wait(next(self._pauses))
