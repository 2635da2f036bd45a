"""Fills an empty, migrated database from a log: rows, records and versions in one transaction.

A mark that keeps applications out is committed first, and removed by the transaction that brings
everything back: a restore that was interrupted must not look like a database without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.engine import Connection

from oplog.errors import ChainBrokenError, ConfigurationError, SchemaDriftError
from oplog.postgres.standby import require_primary
from oplog.postgres.suspension import find_oids, lock_tables, resume_tables, suspend_tables
from oplog.postgres.work import Driver, pin_settings
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.recovery.log_loader import LogLoader
from oplog.recovery.preconditions import (
    check_snapshot,
    describe_rows,
    refuse_filled,
    take_lock,
)
from oplog.recovery.restore_report import RestoreReport
from oplog.recovery.restored_heads import restore_heads
from oplog.recovery.restored_types import Aim, find_aim, keep_states, write_types
from oplog.recovery.row_loader import load_snapshot, move_rows
from oplog.recovery.sequences import move_sequences
from oplog.replay.loader import TableLoader
from oplog.replay.rebuild import (
    BATCH_ROWS,
    Applied,
    Progress,
    digest_tables,
    find_last,
    fold_records,
)
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.rules import make_rules
from oplog.schema.tables import VERSION
from oplog.snapshot.base import SnapshotReader
from oplog.store import SequencedLog, Store
from oplog.store.home import write_home
from oplog.store.intake import LogPlace, RestorationStore


class RestoreStep(StrEnum):
    """Steps of a restore, each reached when what its name says is done."""

    MARKED = "marked"
    """The mark is committed: applications are refused."""
    EMPTIED = "emptied"
    """Tables are locked and empty; triggers and foreign keys are suspended."""
    FOLDED = "folded"
    """All records are in the log, all rows in temporary tables."""
    FILLED = "filled"
    """All rows are in their tables."""
    RESUMED = "resumed"
    """Triggers and foreign keys are back."""
    FINISHED = "finished"
    """Everything is done but COMMIT."""


Finish = Callable[[Connection, RestoreReport], None]
"""Called inside the restoring transaction, before its COMMIT."""


@dataclass(frozen=True)
class _Request:
    """What to restore, and how; `driver` is made once and handed down."""

    driver: Driver
    source: SequencedLog
    log: LogOpener
    store: RestorationStore
    snapshot: SnapshotReader | None
    finish: Finish
    through: int | datetime | None = None
    least_position: int = 0
    batch_rows: int = BATCH_ROWS
    progress: Progress | None = None
    reach: Callable[[RestoreStep], None] = lambda _: None
    lasting: bool = True
    """This database goes on by itself, and does not follow the log."""
    replace_rows: bool = False
    """Existing rows are deleted first, in the same transaction, and records count as new."""

    @property
    def connection(self) -> Connection:
        return self.driver.connection


class _NotEmptyError(Exception):
    """Somebody wrote into the target after it was marked."""


def restore_log(
    connection: Connection,
    source: SequencedLog,
    *,
    log: LogOpener,
    schema: str,
    through: int | datetime | None = None,
    snapshot: SnapshotReader | None = None,
    least_position: int = 0,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
    finish: Finish = lambda *_: None,
    reach: Callable[[RestoreStep], None] = lambda _: None,
    lasting: bool = True,
) -> RestoreReport:
    """Fill an empty, migrated database from `source`, whose records `log` opens.

    `schema` is that of the log's tables there. `through` is a position or an aware datetime.
    With a `snapshot`, only later records are folded, into its rows. New records get positions
    above `least_position`. The tables may have the columns of any revision of their types, if
    all that the rows hold has a place there. `lasting`: the database goes on by itself afterwards,
    and does not follow the log. Everything is one transaction; a mark, committed before it, refuses
    applications (`SchemaVersionError`) until it commits. An interrupted restore leaves nothing
    but the mark, and can be run again. A connection that is in a transaction keeps it: there is
    no mark, the caller commits, and applications wait.

    Raises `ConfigurationError` for a target whose log or logged tables have rows, and for a
    snapshot that does not fit; `ConflictError` while another restore is under way;
    `SchemaDriftError` where tables have the columns of no revision, or values would be lost;
    `ChainBrokenError` for an
    altered log, and `ReplayError` for one that does not replay or whose rows break a constraint.
    """
    request = _Request(
        driver=Driver(connection),
        source=source,
        log=log,
        store=RestorationStore(schema),
        snapshot=snapshot,
        finish=finish,
        through=through,
        least_position=least_position,
        batch_rows=batch_rows,
        progress=progress,
        reach=reach,
        lasting=lasting,
    )
    return _mark_and_restore(request)


def _mark_and_restore(request: _Request) -> RestoreReport:
    connection = request.connection
    if connection.in_transaction():
        return _restore_joined(request)
    with open_work(connection):
        _check_target(request)
        request.store.write_mark(connection)
    request.reach(RestoreStep.MARKED)
    try:
        with open_work(connection):
            return _restore(request)
    except _NotEmptyError as found:
        # Somebody else uses this database: applications must not be refused.
        _remove_mark(request)
        raise refuse_filled(str(found)) from None
    except SchemaDriftError:
        # Another run would fail too: leave the database as it was.
        _remove_mark(request)
        raise


def _remove_mark(request: _Request) -> None:
    with open_work(request.connection):
        request.store.remove_mark(request.connection)


def _restore_joined(request: _Request) -> RestoreReport:
    """Restore in the caller's transaction, which holds the locks until it ends."""
    connection = request.connection
    isolation = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation')"
    ).scalar_one()
    if isolation != "read committed":
        raise ConfigurationError(
            f"a restore cannot be part of a transaction that is {isolation.upper()}: rows that "
            "came before its locks would not show",
            hint="give a connection that is in no transaction, or in one that is READ COMMITTED",
        )
    with pin_settings(connection, more={"row_security": "off"}):
        _check_target(request)
        try:
            return _restore(request)
        except _NotEmptyError as found:
            raise refuse_filled(str(found)) from None


def rebuild_log(
    connection: Connection,
    source: SequencedLog,
    *,
    log: LogOpener,
    schema: str,
    snapshot: SnapshotReader | None = None,
    finish: Finish = lambda *_: None,
) -> RestoreReport:
    """`restore_log` into a database that has rows already, which are deleted first.

    All rows of logged tables are deleted, also those that are not from the log. One
    transaction: readers see the old state until it commits. Every record counts as new to
    consumers of this database.
    """
    request = _Request(
        driver=Driver(connection),
        source=source,
        log=log,
        store=RestorationStore(schema),
        snapshot=snapshot,
        finish=finish,
        lasting=False,
        replace_rows=True,
    )
    with open_work(connection):
        check_snapshot(request.source, request.snapshot)
        return _restore(request)


@contextmanager
def open_work(connection: Connection) -> Iterator[None]:
    """A READ COMMITTED transaction with text settings pinned; row security raises, not hides."""
    with connection.begin():
        # An MVCC snapshot from before the locks would not show rows committed in between.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        # Row security would hide rows in silence; this makes it an error.
        connection.exec_driver_sql("SET LOCAL row_security = off")
        with pin_settings(connection):
            yield


def _check_target(request: _Request) -> None:
    connection = request.connection
    require_primary(connection, "a restore")
    log = Store(request.store.schema)
    if log.read_version(connection) != VERSION:
        log.require_current(connection)
    take_lock(connection, request.store)
    reader = request.log.open(connection)
    plans = find_aim(connection, reader, log=request.log, through=request.through).plans
    check_snapshot(request.source, request.snapshot)
    found = describe_rows(request.driver, request.store, plans)
    if found:
        raise refuse_filled(found)


def _restore(request: _Request) -> RestoreReport:
    reader = request.log.open(request.connection)
    with reader.skipped.name_in_misfits():
        return _restore_from(request, reader)


def _restore_from(request: _Request, reader: RecordReader) -> RestoreReport:
    store, source = request.store, request.source
    driver, connection = request.driver, request.connection
    take_lock(connection, store)
    # In an empty log readers find nothing until the restore commits, and everything then.
    store.lock_tables(connection, readers=not request.replace_rows)
    aim = find_aim(connection, reader, log=request.log, through=request.through)
    plans = aim.plans
    lock_tables(driver, [plan.live.qualified for plan in plans])
    found = "" if request.replace_rows else describe_rows(driver, store, plans)
    if found:
        raise _NotEmptyError(found)
    oids = [plan.live.oid for plan in plans]
    covered = [*find_oids(connection, store.list_tables()), *oids]
    suspended = suspend_tables(driver, covered, referring=request.replace_rows)
    if request.replace_rows:
        # Not TRUNCATE: that is refused wherever another table refers to one of these.
        for plan in plans:
            driver.execute(f"DELETE FROM {plan.live.qualified}")
        store.clear(connection)
    request.reach(RestoreStep.EMPTIED)
    loaders = make_scratch(driver, plans)
    log_loader = _load_log(request, reader, aim, loaders=loaders)
    request.reach(RestoreStep.FOLDED)
    for loader in loaders:
        move_rows(driver, loader)
    request.reach(RestoreStep.FILLED)
    restore_heads(driver, store, snapshot=request.snapshot)
    store.write_position(connection, max(log_loader.position, request.least_position))
    recorded = {} if request.snapshot is None else request.snapshot.sequences
    move_sequences(driver, oids, recorded=recorded)
    resume_tables(driver, suspended)
    request.reach(RestoreStep.RESUMED)
    lives = [TableLoader(driver, plan, plan.live.qualified) for plan in plans]
    driver.execute(f"ANALYZE {', '.join([*store.list_tables(), *(one.target for one in lives)])}")
    report = RestoreReport(
        rows=sum(loader.rows for loader in loaders),
        position=log_loader.position,
        digest=digest_tables(driver, lives),
        entries=log_loader.entries,
        sequence=log_loader.sequence,
        generation=source.generation,
        quarantined=reader.skipped.met,
    )
    store.remove_mark(connection)
    _write_place(request, aim, log_loader)
    request.finish(connection, report)
    request.reach(RestoreStep.FINISHED)
    return report


# -- the log --------------------------------------------------------------------------------


def _load_log(
    request: _Request, reader: RecordReader, aim: Aim, *, loaders: Sequence[TableLoader]
) -> LogLoader:
    """Write the log's records to its tables, and fold its rows into those of `loaders`."""
    source, driver = request.source, request.driver
    _write_identity(request, aim)
    visible, limit = source.read_snapshot(), aim.limit
    rules = make_rules(aim.plans, aim.turns, absent=aim.absent)
    if request.snapshot is not None:
        load_snapshot(driver, loaders, snapshot=request.snapshot, judge=rules.judge)
    before = source.first_sequence - 1
    log_loader = LogLoader(
        driver,
        reader,
        store=request.store,
        after=before,
        through=limit,
        folded=0 if request.snapshot is None else request.snapshot.sequence,
        as_new=request.replace_rows,
    )
    last = 0 if request.progress is None else find_last(reader, limit, snapshot=visible)

    def report(applied: Applied) -> None:
        if request.progress is not None:
            request.progress(applied.position, max(last, applied.position))

    fold_records(
        log_loader.run(source.iterate_sequence(after=before)),
        loaders,
        rules=rules,
        batch_rows=request.batch_rows,
        report=report,
    )
    if limit is None and log_loader.sequence < source.sequence:
        raise ChainBrokenError(
            f"the log says that it has {source.sequence} records, and gave {log_loader.sequence}",
            hint="records are missing at its end",
        )
    return log_loader


def _write_identity(request: _Request, aim: Aim) -> None:
    connection = request.connection
    log = Store(request.store.schema)
    request.store.write_log_id(connection, request.source.read_log_id())
    write_types(connection, log, aim, request.source.list_types(), lasting=request.lasting)
    for key_id, check_value in request.source.list_keys().items():
        log.insert_key(connection, key_id, check_value=check_value)


def _write_place(request: _Request, aim: Aim, log_loader: LogLoader) -> None:
    connection, schema = request.connection, request.store.schema
    # Also in a copied database: all transaction ids are this server's now, or count as ended.
    write_home(connection, schema)
    keep_states(connection, schema, aim, lasting=request.lasting)
    chain = request.source.find_chain(log_loader.sequence)
    # With records after a gap there is no sequence from which to follow without repetition.
    if log_loader.complete and chain is not None:
        place = LogPlace(request.source.generation, log_loader.sequence, chain, log_loader.position)
        request.store.write_restored(connection, place)
