"""What a worker does now and then, in threads beside the one that publishes.

A check of a large archive takes hours, a snapshot minutes. Publishing goes on meanwhile, and so
does every other chore.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from oplog.archive.stoppable_store import StoppedError
from oplog.errors import (
    HeadRolledBackError,
    LeaseHeldError,
    LeaseLostError,
    LogForkedError,
    OplogError,
    StoreUnavailableError,
)
from oplog.postgres.sqlstate import is_passing

_SLICE_SECONDS = 0.2
"""How long a call to stop may go unnoticed."""

_logger = logging.getLogger("oplog.archive")


@dataclass(frozen=True)
class Chore:
    """Something to be done now and then, beside publishing.

    `run` is called at first `first_seconds` after the start, then every `every_seconds`; it
    decides itself whether there is something to do. It has connections and an archive of its own.
    """

    name: str
    every_seconds: float
    run: Callable[[], None]
    first_seconds: float = 0.0


class ChoreThread:
    """Does one chore again and again, from `start` until `is_stopped`."""

    def __init__(
        self,
        chore: Chore,
        *,
        is_stopped: Callable[[], bool],
        on_failure: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_failure` is called when an error has ended the thread, which `finish` raises."""
        self._chore = chore
        self._is_stopped = is_stopped
        self._on_failure = on_failure
        self._clock = clock
        self._failure: BaseException | None = None
        # Not a daemon: it ends by itself, and not in the middle of a request.
        self._thread = threading.Thread(target=self._run, name=f"oplog {chore.name}")
        self._started = False

    def start(self) -> None:
        """Begin, unless that was done before."""
        if not self._started:
            self._started = True
            self._thread.start()

    def finish(self) -> None:
        """Wait for the end, and raise the error that caused it, if one did."""
        if self._started:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        due = self._clock() + self._chore.first_seconds
        try:
            while not self._is_stopped():
                if self._clock() >= due:
                    _do(self._chore)
                    due = self._clock() + self._chore.every_seconds
                time.sleep(_SLICE_SECONDS)
        except StoppedError:
            pass
        except BaseException as failure:  # noqa: BLE001 - raised by `finish`, in the other thread
            self._failure = failure
            self._on_failure()


def _do(chore: Chore) -> None:
    try:
        chore.run()
    except (StoreUnavailableError, LeaseHeldError, PoolTimeoutError) as error:
        _logger.warning("%s was put off: %s", chore.name, error)
    except DBAPIError as error:
        if not is_passing(error):
            raise
        _logger.warning("%s was put off: %s", chore.name, error)
    except (LeaseLostError, LogForkedError, HeadRolledBackError):
        raise
    except OplogError:
        # Publishing comes first: a table that a migration is changing, or a key that
        # this process has not, must not stop it.
        _logger.exception("%s failed, and is tried again", chore.name)
