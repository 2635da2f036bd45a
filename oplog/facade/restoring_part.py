"""The part of `Oplog` that brings databases back from an archive, and keeps copies up to date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.facade.given_target import Inside, take_connection, take_engine
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.reading.given_place import find_place
from oplog.recovery.archive_restore import restore_archive
from oplog.recovery.follow import FollowReport, follow_log
from oplog.recovery.incarnation import IncarnationReport, incarnate_log
from oplog.recovery.preconditions import is_in_use
from oplog.recovery.restore import RestoreReport
from oplog.replay import Progress
from oplog.snapshot.stored import StoredSnapshot


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
        one transaction; until it commits, applications are refused.
        In an open transaction everything is in that, which the caller commits.
        Afterwards they go on writing, and a worker goes on publishing to the same archive
        (where it finds a fork, if `through` left published records out). Raises
        `ConfigurationError` for a database that is not empty.
        """
        source = self.open_source(archive)
        inside = take_connection(connection, self._log.catalog)
        reader = self.reading.open_reader(inside, source=source)
        position = find_place(reader, through, snapshot="")
        return restore_archive(
            inside,
            source,
            log=self.reading.make_opener(source=source),
            schema=self._log.schema,
            through=position,
            snapshot=self._find_snapshot(source, position),
            progress=progress,
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
        return follow_log(
            take_connection(connection, self._log.catalog),
            source,
            log=self.reading.make_opener(source=source),
            schema=self._log.schema,
            name=name,
            snapshot=self._find_snapshot(source, None),
            stop=stop,
        )

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

    def _find_snapshot(self, source: ArchivedLog, position: int | None) -> StoredSnapshot | None:
        ref = source.archive.find_snapshot(source.head, position=position)
        if ref is None:
            return None
        types = source.archive.read_types(source.head)
        return StoredSnapshot(
            source.archive.read_manifest(ref),
            get=source.archive.read_content,
            sealer=self._log.sealer,
            key_checks=types.key_checks,
            types=types.shapes,
        )
