"""The third of `Oplog` that lies elsewhere: publishing, waiting for it, restoring.

Every method is one call into the module that does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.step import Step
from oplog.binding import check_keyring
from oplog.doctor.evolution import COLUMN_CHANGED, TABLE_GONE, judge_evolution, read_evolution
from oplog.errors import SchemaDriftError
from oplog.events import ArchiveStepDone
from oplog.facade.reading import ReadingOplog
from oplog.finding import Finding
from oplog.receipt import Receipt
from oplog.recovery.follow import FollowReport, follow_log
from oplog.recovery.incarnation import IncarnationReport, incarnate_log
from oplog.recovery.preconditions import is_in_use
from oplog.recovery.restore import RestoreReport, restore_log
from oplog.replay import Progress
from oplog.replay.rebuild import find_limit
from oplog.snapshot.policy import SnapshotPolicy
from oplog.snapshot.publishing import SnapshotReport, publish_snapshot
from oplog.snapshot.stored import StoredSnapshot
from oplog.sync.archive_row import write_restored
from oplog.sync.exporter import Exporter, SyncReport
from oplog.sync.fork import ForkPolicy
from oplog.sync.lag import ArchiveLag, measure_lag
from oplog.sync.waiting import wait_for_entries
from oplog.sync.wake import call_worker


class ArchivingOplog(ReadingOplog):
    """What a worker or an operator does with a log and its archive."""

    def make_exporter(self, archive: Archive, *, fork: str = "stop", **settings: Any) -> Exporter:
        """What publishes this log to `archive`; one for each thread."""
        return Exporter(
            archive,
            schema=self.schema,
            emit=self._emit_step,
            fork=ForkPolicy(fork),
            **settings,
        )

    def _emit_step(self, step: Step, path: str, size: int) -> None:
        self._on_event(ArchiveStepDone(step.value, path, size))

    def sync(self, engine: Engine, archive: Archive, *, fork: str = "stop") -> SyncReport:
        """Publish everything that is new and committed now; needs no keys.

        A pass with nothing new writes nothing. `fork` says what to do when the database lost
        entries that were published: "stop" raises `LogForkedError` before anything is written,
        "fork" begins a new generation and keeps the lost branch readable. Raises
        `LeaseHeldError` while another worker publishes, `LeaseLostError` when one took over,
        `StoreUnavailableError` and `StorageConfigError` for the store, `ConfigurationError` on a
        standby and for an archive that holds another log. `SchemaDriftError`, after everything is
        published, while rows of an old revision would be read under a wrong name.
        """
        report = self.make_exporter(archive, fork=fork).publish_all(engine)
        with engine.connect() as connection:
            problems = self._require_readable(connection)
        return replace(report, problems=problems)

    def find_restore_problems(self, connection: Connection) -> list[Finding]:
        """What a restore of this log would refuse or get wrong; `diagnose` has it too.

        Columns whose names mean other columns by now, tables that are gone, and columns and
        references that restored rows cannot do without.
        """
        return judge_evolution(read_evolution(connection, self.store), self.catalog)

    def _require_readable(self, connection: Connection) -> tuple[Finding, ...]:
        """Tables that are gone; `SchemaDriftError` where names mean other columns by now."""
        found = self.find_restore_problems(connection)
        for finding in found:
            if finding.what == COLUMN_CHANGED:
                raise SchemaDriftError(finding.message, hint=finding.hint)
        return tuple(finding for finding in found if finding.what == TABLE_GONE)

    def wait_until_archived(
        self,
        receipt: Receipt | Iterable[Receipt],
        archive: Archive,
        *,
        timeout: float = 10.0,
        engine: Engine | None = None,
    ) -> int:
        """Return when the receipts' entries are published, with the highest of their sequences.

        With an `engine` of the log's database, its worker is woken at once. `timeout` is in
        seconds, after which `ArchiveLagError` is raised: the entries are committed all the same.
        """
        receipts = [receipt] if isinstance(receipt, Receipt) else list(receipt)
        if engine is not None:
            call_worker(engine)
        return wait_for_entries(archive, receipts, timeout_seconds=timeout)

    def measure_lag(self, engine: Engine, archive: Archive) -> ArchiveLag:
        """How many committed entries are not published yet, and for how long."""
        with engine.connect() as connection:
            return measure_lag(connection, archive, schema=self.schema)

    def snapshot(
        self,
        engine: Engine,
        archive: Archive,
        *,
        policy: SnapshotPolicy | None = None,
        full: bool = False,
    ) -> SnapshotReport:
        """Publish what is new, and the tables at exactly that point; needs the current key.

        Only rows that changed since the last snapshot are uploaded, unless `full`; nothing, if
        none did. With a `policy`, only if one is due. Writers go on; nothing else is published
        meanwhile. Raises what `sync` raises, `SchemaDriftError`, after what is new is published,
        and `KeyUnavailableError` for a sealed log without a keyring.
        """
        with engine.connect() as connection:
            # Without keys the rows of a sealed log would go into the archive as plaintext.
            check_keyring(connection, self.keyring, store=self.store)
        return publish_snapshot(
            engine,
            self.make_exporter(archive),
            schema=self.schema,
            sealer=self._sealer,
            open_source=lambda inside, source: self.open_reader(inside, source=source),
            check=self._require_readable,
            policy=policy,
            full=full,
        )

    # -- reading and restoring ------------------------------------------------------------

    def open_source(self, archive: Archive) -> ArchivedLog:
        """The log as the newest head of `archive` has it."""
        return ArchivedLog(archive, archive.read_head(), schema=self.schema)

    def restore(
        self,
        archive: Archive,
        connection: Connection,
        *,
        through: int | datetime | None = None,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Bring an empty, migrated database back from `archive`, as of `through`.

        `through` is a position or an aware datetime and takes transactions whole. Rows, entries,
        tickets and sequences come in one transaction; until it commits, applications are refused.
        In an open transaction everything is in that, which the caller commits.
        Afterwards they go on writing, and a worker goes on publishing to the same archive
        (where it finds a fork, if `through` left published entries out). Raises
        `ConfigurationError` for a database that is not empty.
        """
        source = self.open_source(archive)
        position = find_limit(self.open_reader(connection, source=source), through, snapshot="")

        def finish(inside: Connection, report: RestoreReport) -> None:
            write_restored(
                inside,
                source,
                schema=self.schema,
                sequence=report.sequence,
                position=report.position,
            )

        return restore_log(
            connection,
            source,
            open_reader=lambda inside: self.open_reader(inside, source=source),
            schema=self.schema,
            through=position,
            snapshot=self._find_snapshot(source, position),
            least_position=source.head.position,
            progress=progress,
            finish=finish,
        )

    def recover(
        self,
        archive: Archive,
        engine: Engine,
        *,
        through: int | datetime | None = None,
        progress: Progress | None = None,
    ) -> RestoreReport | None:
        """For start-up: restore an empty database if there is an archive; else do nothing.

        None says that the database was in use already, or that nothing was ever archived. Two
        processes may call it at once: one restores, the other gets `ConflictError` or waits.
        """
        with engine.connect() as connection:
            tables = {declared.table for declared in self.catalog.types.values()}
            in_use = is_in_use(connection, tables, schema=self.schema)
            connection.rollback()
            if in_use or archive.find_head() is None:
                return None
            return self.restore(archive, connection, through=through, progress=progress)

    def follow(
        self,
        archive: Archive,
        connection: Connection,
        *,
        name: str = "archive",
        stop: Callable[[], bool] = lambda: False,
    ) -> FollowReport:
        """Apply what `archive` has and this database has not; call it again for more.

        An empty database is restored first. Whoever follows is read by others and written by
        nobody else: `LogForkedError` if somebody did. When the archive went on in another
        generation, the database is rebuilt as that has it, in one transaction. `stop` is asked
        after each batch, and ends the call when it says True.
        """
        source = self.open_source(archive)
        return follow_log(
            connection,
            source,
            open_reader=lambda inside: self.open_reader(inside, source=source),
            schema=self.schema,
            name=name,
            snapshot=self._find_snapshot(source, None),
            stop=stop,
        )

    def incarnate(self, connection: Connection, *, replaces_original: bool) -> IncarnationReport:
        """Make the log of a copied database its own; changes no row of the tables.

        For a database that came from a dump, a template or an upgrade. One that replaces the
        original goes on with its archives, and whoever has published there is refused from then
        on; one that is a copy forgets them, and begins an archive under another prefix.
        Consumers go on from where they were. Writers and readers of the log wait meanwhile.
        Raises `ConfigurationError` for a role that does not own the log.
        """
        return incarnate_log(connection, schema=self.schema, replaces_original=replaces_original)

    def _find_snapshot(self, source: ArchivedLog, position: int | None) -> StoredSnapshot | None:
        ref = source.archive.find_snapshot(source.head, position=position)
        if ref is None:
            return None
        types = source.archive.read_types(source.head)
        return StoredSnapshot(
            source.archive.read_manifest(ref),
            get=source.archive.read_content,
            sealer=self._sealer,
            key_checks=types.key_checks,
            types=types.shapes,
        )
