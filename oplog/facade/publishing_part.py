"""The part of `Oplog` that publishes to an archive: records, snapshots, and waiting for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.step import Step
from oplog.events import ArchiveStepDone
from oplog.facade.doctor_part import Examination
from oplog.facade.given_target import take_engine
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.reading.log_opener import check_keyring
from oplog.receipt import Receipt
from oplog.snapshot.policy import SnapshotPolicy
from oplog.snapshot.publishing import SnapshotReport, publish_snapshot
from oplog.store import TablesLog
from oplog.sync.exporter import Exporter, SyncReport
from oplog.sync.fork import ForkPolicy
from oplog.sync.lag import ArchiveLag, measure_lag
from oplog.sync.waiting import wait_for_records
from oplog.sync.wake import call_worker


class Publishing:
    """What a worker does with a log and its archive."""

    def __init__(self, log: LogParts, *, reading: Reading, examination: Examination) -> None:
        self._log = log
        self._reading = reading
        self._examination = examination

    def make_exporter(
        self, /, archive: Archive, *, fork: str = "stop", **settings: Any
    ) -> Exporter:
        """What publishes this log to `archive`; one for each thread."""
        return Exporter(
            archive,
            schema=self._log.schema,
            emit=self.emit_step,
            fork=ForkPolicy(fork),
            **settings,
        )

    def require_log(self, engine: Engine) -> None:
        """Raise `SchemaVersionError` unless the database has the log's tables."""
        with take_engine(engine).connect() as connection:
            self._log.store.require_current(connection)

    def emit_step(self, step: Step, path: str, size: int) -> None:
        """Report a step of the publishing protocol as an event."""
        self._log.on_event(ArchiveStepDone(step.value, path, size))

    def sync(self, engine: Engine, archive: Archive, *, fork: str = "stop") -> SyncReport:
        """Publish everything that is new and committed now; needs no keys.

        A pass with nothing new writes nothing. `fork` says what to do when the database lost
        records that were published: "stop" raises `LogForkedError` before anything is written,
        "fork" begins a new generation and keeps the lost branch readable. Raises
        `LeaseHeldError` while another worker publishes, `LeaseLostError` when one took over,
        `StoreUnavailableError` and `StorageConfigError` for the store, `ConfigurationError` on a
        standby and for an archive that holds another log. The report's `problems` are tables that
        the log cannot follow until somebody acts.
        """
        self.require_log(engine)
        report = self.make_exporter(archive, fork=fork).publish_all(engine)
        with engine.connect() as connection:
            problems = self._examination.list_unfinished(connection)
        return replace(report, problems=problems)

    def wait_until_archived(
        self,
        receipt: Receipt | Iterable[Receipt],
        archive: Archive,
        *,
        timeout: float = 10.0,
        engine: Engine | None = None,
    ) -> Expectation:
        """Return when the receipts' records are published, with the place of the last of them.

        Its `sequence` is the highest of theirs, and as a text it is SEQUENCE:HASH: what
        `open_archive(expect_at_least=...)` refuses an older archive by.
        With an `engine` of the log's database, its worker is woken at once. `timeout` is in
        seconds, after which `ArchiveLagError` is raised: the records are committed all the same.
        """
        receipts = [receipt] if isinstance(receipt, Receipt) else list(receipt)
        if engine is not None:
            call_worker(take_engine(engine))
        return wait_for_records(archive, receipts, timeout_seconds=timeout)

    def measure_lag(self, engine: Engine, archive: Archive) -> ArchiveLag:
        """How many committed entries are not published yet, and for how long."""
        with take_engine(engine).connect() as connection:
            return measure_lag(connection, archive, schema=self._log.schema)

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
        while rows that a migration wrote anew are not all logged again, and
        `KeyUnavailableError` for a sealed log without a keyring.
        """
        with take_engine(engine).connect() as connection:
            self._log.store.require_current(connection)
            # Without keys the rows of a sealed log would go into the archive as plaintext.
            check_keyring(TablesLog(self._log.store, connection), self._log.keyring)
        return publish_snapshot(
            engine,
            self.make_exporter(archive),
            schema=self._log.schema,
            sealer=self._log.sealer,
            log=self._reading.make_opener(),
            check=self._examination.require_finished,
            policy=policy,
            full=full,
        )
