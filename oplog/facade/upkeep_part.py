"""The part of `Oplog` that keeps archive and database in shape."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.doctor.archived_types import judge_archived_log
from oplog.doctor.key_status import KeyRetirementReport
from oplog.errors import ConfigurationError
from oplog.facade.doctor_part import Examination
from oplog.facade.given_target import (
    Inside,
    Readable,
    open_connection,
    take_connection,
    take_engine,
)
from oplog.facade.log_parts import LogParts
from oplog.facade.publishing_part import Publishing
from oplog.facade.restoring_part import Restoring
from oplog.finding import Finding
from oplog.store.logged_keys import retire_key
from oplog.store.quarantined import QuarantinedRecord
from oplog.upkeep.check import CheckProgress, check_archive, check_with_log
from oplog.upkeep.garbage import GRACE_SECONDS, CollectionReport, collect_archive
from oplog.upkeep.maintenance import MaintenanceReport, maintain_log
from oplog.upkeep.pin import Pin, list_pins, put_pin, remove_pin
from oplog.upkeep.problem import ArchiveProblem, ArchiveReport, ProblemKind
from oplog.upkeep.prune import PruneReport, prune_log
from oplog.upkeep.quarantine import QuarantineReport, quarantine_records
from oplog.upkeep.resync import ResyncReport, renew_archive, resync_archive
from oplog.upkeep.retention import Retention


class Upkeep:
    """What an operator does with an archive and a log that have grown."""

    def __init__(
        self,
        log: LogParts,
        *,
        publishing: Publishing,
        restoring: Restoring,
        examination: Examination,
    ) -> None:
        self._log = log
        self._publishing = publishing
        self._restoring = restoring
        self._examination = examination

    def check(
        self,
        archive: Archive,
        engine: Engine | None = None,
        *,
        sample: float | None = None,
        progress: CheckProgress | None = None,
    ) -> ArchiveReport:
        """Verify every object of `archive`, without keys; with an `engine` against the log too.

        Damage is reported, each damaged object by its name, never raised. With `sample`, a
        number from 0 to 1, heads and index are read as always and of segments and chunks that
        part. Tables that a restore would refuse, or bring back wrongly, are reported too. Raises
        `StoreUnavailableError` and `StorageConfigError`.
        """
        if engine is None:
            report = check_archive(archive, sample=sample, progress=progress)
            findings = self._judge_archived(archive) if report.ok and report.head else []
        else:
            report = check_with_log(
                archive,
                take_engine(engine),
                schema=self._log.schema,
                sample=sample,
                progress=progress,
            )
            with engine.connect() as connection:
                findings = self._examination.find_restore_problems(connection)
        problems = [
            ArchiveProblem("", ProblemKind.SCHEMA, f"{one.where}: {one.message}; {one.hint}")
            for one in findings
        ]
        return replace(report, problems=(*report.problems, *problems))

    def _judge_archived(self, archive: Archive) -> list[Finding]:
        """What the archive alone says of a restore."""
        return judge_archived_log(
            ArchivedLog(archive, archive.read_head(), schema=self._log.schema)
        )

    def resync(
        self, engine: Engine, archive: Archive, *, dry_run: bool = False, anew: bool = False
    ) -> ResyncReport:
        """Check `archive`, and write again from the database what is missing or damaged.

        Nothing is deleted and nothing goes backwards. What cannot be made again is in the report,
        with the reason. With `dry_run`, nothing is written. With `anew`, an archive of which no
        head is left begins again with the whole log of this database, as another archive: for a
        bucket that was emptied. Raises what `sync` raises; `anew` also `ConfigurationError` for
        an archive that has heads, and `PrunedError` for a log that is not whole.
        """
        if not anew:
            exporter = self._publishing.make_exporter(archive)
            return resync_archive(exporter, take_engine(engine), dry_run=dry_run)
        if dry_run:
            raise ConfigurationError(
                "an archive cannot begin anew in a dry run", hint="leave out one of both"
            )
        # One that has seen no head: the heads that were there count no more.
        exporter = self._publishing.make_exporter(archive.reopen(archive.store))
        return renew_archive(exporter, take_engine(engine))

    def collect(
        self,
        engine: Engine,
        archive: Archive,
        *,
        retention: Retention | None = None,
        grace_seconds: float = GRACE_SECONDS,
        dry_run: bool = False,
    ) -> CollectionReport:
        """Let go of what `retention` does not keep, and delete what nothing needs.

        Readers of an older head may go on for `grace_seconds` after the next head was
        published. Without a `retention` all is kept. With `dry_run`, nothing is written or
        deleted. Raises what `sync` raises.
        """
        return collect_archive(
            self._publishing.make_exporter(archive),
            take_engine(engine),
            retention or Retention(),
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            emit=self._publishing.emit_step,
        )

    def pin(self, archive: Archive, name: str) -> Pin:
        """Keep all that `archive` holds now, under `name`, until `unpin`."""
        return put_pin(archive, name, emit=self._publishing.emit_step)

    def unpin(self, archive: Archive, name: str) -> tuple[Pin, ...]:
        """Keep it no longer; what was kept. `ConfigurationError` for a name that was not."""
        return remove_pin(archive, name)

    def list_pins(self, archive: Archive) -> tuple[Pin, ...]:
        """What is kept by name."""
        return list_pins(archive)

    def prune(
        self,
        engine: Engine,
        archive: Archive,
        *,
        keep: timedelta,
        dry_run: bool = False,
        force: Collection[str] = (),
    ) -> PruneReport:
        """Remove entries from the database that are older than `keep` and in `archive`.

        Whole records, oldest first, each batch in a transaction of its own, after what is in the
        archive was read and compared with the rows about to go. A partition of which every
        record goes is dropped. Interrupted, it is run again. Used idempotency keys stay used.
        Afterwards `read`, `history`, `as_of`, `replay`
        and `verify` need the archive for what is gone. `dry_run` checks and removes nothing;
        `force` names consumers that need not have seen what goes. Needs no keys, and the role
        that owns the log. Raises `ConflictError` for a consumer that is behind and while another
        run prunes, `ConfigurationError`, `PrunedError` for another archive than before,
        `LogForkedError`, `ChainBrokenError`, and what a damaged archive raises.
        """
        return prune_log(
            take_engine(engine),
            archive,
            keep=keep,
            schema=self._log.schema,
            dry_run=dry_run,
            force=force,
        )

    def maintain(self, engine: Engine) -> MaintenanceReport:
        """Make the partitions of the log's tables that are needed next, and tidy.

        Appending makes them too, in a transaction of the application. Tidying removes rows of
        locks that nobody holds, guards partitions against TRUNCATE that were made after their
        table was tracked, and checks rows that are older than a constraint of the log, all without
        keeping writers waiting for long. Needs no keys, and the role that owns the log. Raises
        `ConfigurationError` for another role and on a standby.
        """
        return maintain_log(take_engine(engine), schema=self._log.schema)

    def retire_key(self, connection: Inside, key_id: str) -> KeyRetirementReport:
        """Refuse, from COMMIT on, every record that is sealed with the key: in any process.

        In the connection's transaction, which the caller commits; needs the role that owns the
        log. What is in the log is still read with the key. Retiring it again changes nothing.
        Raises `ConfigurationError` for a key that the log does not know, for the last one that
        may seal, and for the one that this log's keyring would seal with.
        """
        store = self._log.store
        inside = take_connection(connection, self._log.catalog)
        store.require_current(inside)
        if key_id and key_id == self._log.sealer.key_id:
            raise ConfigurationError(
                f"the key {key_id!r} is the current one of this application's keyring",
                hint="rotate the keyring and deploy it first: oplog keys rotate --file PATH",
            )
        return KeyRetirementReport(key_id, retire_key(inside, store.schema, key_id=key_id))

    def quarantine(
        self,
        connection: Inside,
        *positions: int | range,
        reason: str,
        archive: Archive | None = None,
        lost_key: bool = False,
    ) -> tuple[QuarantineReport, ...]:
        """Say in the log that records cannot be read; readers go past them then.

        Of a range all records that there are. All are quarantined, for the same reason, or none.
        Readers, replays, restores and followers pass over a quarantined record with a
        `QuarantineWarning`, and reports list it. Nothing is removed. Only a record that does not
        open, does not decode, or does not fit the rows before it: any other is refused
        (`ConfigurationError`), as is one that was altered (`ChainBrokenError`) and one that a key
        may open which the keyring lacks (`KeyUnavailableError`, `WrongKeyError`); with `lost_key`
        a key that the keyring lacks is taken for one that nobody has. One that was quarantined
        before stays so, and nothing is written for it. In the connection's transaction if it is in
        one, which the caller commits. Needs the role that owns the log, and the `archive` for a
        record that was pruned.
        """
        opener = self._restoring.reading.make_opener(archive=archive)
        return quarantine_records(
            take_connection(connection, self._log.catalog),
            opener,
            positions=positions,
            reason=reason,
            lost_key=lost_key,
        )

    def list_quarantined(self, connection: Readable) -> tuple[QuarantinedRecord, ...]:
        """The records that are quarantined, as far as the database has their marks."""
        with open_connection(connection, self._log.catalog) as inside:
            reader = self._restoring.reading.open_reader(inside)
            return reader.skipped.list_known()
