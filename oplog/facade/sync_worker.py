"""`SyncWorker`: the process that keeps an archive up to date.

It runs the publishing loop, and beside it the chores: partitions, snapshots, checks,
collection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.stoppable_store import StoppableStore
from oplog.facade import Oplog
from oplog.snapshot.policy import SnapshotPolicy
from oplog.sync.chores import Chore
from oplog.sync.exporter import SyncReport
from oplog.sync.lag import ArchiveLag
from oplog.sync.wake import Wake
from oplog.sync.worker import INTERVAL_SECONDS, LEASE_SECONDS, SyncLoop
from oplog.upkeep.maintenance import make_ahead
from oplog.upkeep.problem import ProblemKind
from oplog.upkeep.retention import Retention

_LOOK_SECONDS = 60.0
"""Between two looks at whether a snapshot is due, or partitions are."""
_HOUR_SECONDS = 3600.0
_DAY_SECONDS = 24 * _HOUR_SECONDS

_logger = logging.getLogger("oplog.archive")


class SyncWorker:
    """Publishes a log to an archive until it is stopped: `SyncWorker(log, engine, archive).run()`.

    Needs no keys, except for snapshots of a sealed log. One worker at a time publishes; others
    wait, and take over from one that stands still.
    """

    def __init__(
        self,
        log: Oplog,
        engine: Engine,
        archive: Archive,
        *,
        fork: str = "stop",
        interval_seconds: float = INTERVAL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        snapshots: SnapshotPolicy | None = None,
        check_hours: float | None = 24.0,
        retention: Retention | None = None,
        listen: bool = True,
        on_pass: Callable[[SyncReport], None] = lambda _: None,
    ) -> None:
        """`interval_seconds` is the time between two looks when nothing wakes the worker.

        `fork` is as for `Oplog.sync`. `snapshots` says when to take one, None for never;
        `check_hours` how often everything is checked and, where something is wrong, repaired
        from the database. With a `retention`, what it does not keep is collected every day, which
        needs permission to delete. `listen` keeps a connection that hears notifications, which a
        transaction pooler does not pass on. `on_pass` gets the report of each pass.
        """
        self._log = log
        self._engine = engine
        self._archive = archive
        self._policy = snapshots
        self._retention = retention
        self._loop = SyncLoop(
            log.make_exporter(archive, fork=fork),
            engine,
            interval_seconds=interval_seconds,
            lease_seconds=lease_seconds,
            chores=self._list_chores(check_hours),
            wake=Wake(engine if listen else None),
            on_pass=on_pass,
        )

    def run(self) -> None:
        """Publish until `stop`; store and server may be away for a while.

        Raises `LeaseLostError` when another worker took over, `LogForkedError` under the policy
        to stop, and what no repetition mends.
        """
        self._loop.run()

    def stop(self) -> None:
        """End `run` within seconds: a head in the making is finished, a chore is given up.

        From any thread or signal handler. A request to the store that is under way is waited for.
        """
        self._loop.stop()

    def measure_lag(self) -> ArchiveLag:
        """How far the archive is behind."""
        return self._log.measure_lag(self._engine, self._archive)

    def _list_chores(self, check_hours: float | None) -> list[Chore]:
        chores = [
            Chore("partitions", _LOOK_SECONDS, self._make_partitions),
            Chore("look at the tables", _HOUR_SECONDS, self._look_at_tables),
        ]
        if self._policy is not None:
            chores.append(Chore("snapshot", _LOOK_SECONDS, self._take_snapshot))
        if check_hours is not None:
            seconds = check_hours * _HOUR_SECONDS
            chores.append(Chore("check", seconds, self._check, first_seconds=seconds))
        if self._retention is not None:
            chores.append(Chore("collection", _DAY_SECONDS, self._collect))
        return chores

    def _make_partitions(self) -> None:
        with self._engine.begin() as connection:
            # Nothing is lost for a role that may not: appending makes them.
            make_ahead(connection, schema=self._log.schema)

    def _take_snapshot(self) -> None:
        if self._policy is not None:
            self._log.snapshot(self._engine, self._open_archive(), policy=self._policy)

    def _look_at_tables(self) -> None:
        with self._engine.connect() as connection:
            found = self._log.find_restore_problems(connection)
        for one in found:
            _logger.warning(
                "what is published cannot be restored as it is: %s: %s; %s",
                one.where,
                one.message,
                one.hint,
            )

    def _collect(self) -> None:
        self._log.collect(self._engine, self._open_archive(), retention=self._retention)

    def _check(self) -> None:
        archive = self._open_archive()
        report = self._log.check(archive, self._engine)
        # Of the others every byte is right: nothing is repaired by writing it again.
        if any(p.what is not ProblemKind.SCHEMA and not p.harmless for p in report.problems):
            self._log.resync(self._engine, archive)

    def _open_archive(self) -> Archive:
        """The archive as a chore uses it: in a thread of its own, and until the worker stops."""
        return self._archive.reopen(StoppableStore(self._archive.store, self._loop.is_stopped))
