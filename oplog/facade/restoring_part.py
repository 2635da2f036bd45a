"""The part of `Oplog` that brings databases back from an archive, and keeps copies up to date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.facade.given_target import Inside, take_connection, take_engine
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.reading.given_place import find_place
from oplog.recovery.archive_restore import restore_archive
from oplog.recovery.best_snapshot import work_from_best
from oplog.recovery.follow import FollowReport, follow_log
from oplog.recovery.incarnation import IncarnationReport, incarnate_log
from oplog.recovery.preconditions import is_in_use
from oplog.recovery.restore_report import RestoreReport
from oplog.replay import Progress


class Restoring:
    """What an operator does with an empty, a following or a copied database."""

    def __init__(self, log: LogParts, *, reading: Reading) -> None:
        self._log = log
        self.reading = reading

    def open_source(self, archive: Archive) -> ArchivedLog:
        """The log as the newest head of `archive` has it."""
        return ArchivedLog(archive, archive.read_head(), schema=self._log.schema)

    def restore(
        self,
        archive: Archive,
        connection: Inside,
        *,
        through: int | datetime | None = None,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Bring an empty, migrated database back from `archive`, as of `through`.

        `through` is a position or an aware datetime. Rows, records, versions and sequences come in
        one transaction; until it commits, applications are refused. Of a snapshot that is damaged
        the report's `passed_over` speaks: an older one is used instead, or the log alone.
        In an open transaction everything is in that, which the caller commits.
        Afterwards they go on writing, and a worker goes on publishing to the same archive
        (where it finds a fork, if `through` left published records out). Raises
        `ConfigurationError` for a database that is not empty.
        """
        source = self.open_source(archive)
        inside = take_connection(connection, self._log.catalog)
        reader = self.reading.open_reader(inside, source=source)
        position = find_place(reader, through, snapshot="")
        made = work_from_best(
            inside,
            source,
            lambda snapshot: restore_archive(
                inside,
                source,
                log=self.reading.make_opener(source=source),
                schema=self._log.schema,
                through=position,
                snapshot=snapshot,
                progress=progress,
            ),
            position=position,
            sealer=self._log.sealer,
        )
        return replace(made.result, snapshot=made.sequence, passed_over=made.passed_over)

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
        with take_engine(engine).connect() as connection:
            tables = {declared.table for declared in self._log.catalog.types.values()}
            in_use = is_in_use(connection, tables, schema=self._log.schema)
            connection.rollback()
            if in_use or archive.find_head() is None:
                return None
            return self.restore(archive, connection, through=through, progress=progress)

    def follow(
        self,
        archive: Archive,
        connection: Inside,
        *,
        name: str = "archive",
        stop: Callable[[], bool] = lambda: False,
    ) -> FollowReport:
        """Apply what `archive` has and this database has not; call it again for more.

        An empty database is restored first. Nothing else may write to a following database:
        `LogForkedError` if something did. When the archive went on in another
        generation, the database is rebuilt as that has it, in one transaction. `stop` is asked
        after each batch, and ends the call when it says True.
        """
        source = self.open_source(archive)
        inside = take_connection(connection, self._log.catalog)
        return work_from_best(
            inside,
            source,
            lambda snapshot: follow_log(
                inside,
                source,
                log=self.reading.make_opener(source=source),
                schema=self._log.schema,
                name=name,
                snapshot=snapshot,
                stop=stop,
            ),
            position=None,
            sealer=self._log.sealer,
        ).result

    def incarnate(self, connection: Inside, *, replaces_original: bool) -> IncarnationReport:
        """Make the log of a copied database its own; changes no row of the tables.

        For a database that came from a dump, a template or an upgrade. One that replaces the
        original continues with its archives, and the original is refused there from then on. One
        that is a copy forgets them, and begins an archive under another prefix. Consumers
        continue from where they were. Writers and readers of the log wait meanwhile.
        Raises `ConfigurationError` for a role that does not own the log.
        """
        return incarnate_log(
            take_connection(connection, self._log.catalog),
            schema=self._log.schema,
            replaces_original=replaces_original,
        )
