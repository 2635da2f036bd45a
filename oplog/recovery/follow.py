"""Keeps a second database up to date from a log: rows, records and tickets, batch by batch.

The place in the log is saved in the transaction that reaches it, with a hash over everything
before. So a log with another past is recognised, and not taken for one that went on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from oplog.crypto.aggregate_chain import ChainCheck, ChainHead
from oplog.errors import (
    ChainBrokenError,
    ConfigurationError,
    ConflictError,
    HeadRolledBackError,
    LogForkedError,
)
from oplog.payload.shape import Shape
from oplog.postgres.standby import require_primary
from oplog.postgres.suspension import find_oids, resume_tables, suspend_switches
from oplog.postgres.work import Driver
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.recovery.filled_columns import fill_columns, list_added
from oplog.recovery.held_records import Needs, find_needs
from oplog.recovery.log_loader import LogLoader
from oplog.recovery.merging import find_extremes, merge_records
from oplog.recovery.preconditions import take_lock
from oplog.recovery.renumbered_types import place_shapes
from oplog.recovery.restore import open_work, rebuild_log, restore_log
from oplog.recovery.restore_report import RestoreReport
from oplog.recovery.sequences import advance_sequences
from oplog.replay.rules import make_rules
from oplog.replay.type_target import TypeTarget
from oplog.snapshot.base import SnapshotReader
from oplog.store import SequencedLog, SequencedPage, Store, StoredRecord
from oplog.store.feed import check_consumer_name
from oplog.store.intake import LogPlace, RestorationStore
from oplog.store.quarantined import QuarantinedRecord, list_quarantined_json

BATCH_ENTRIES = 1000
"""Entries applied in one transaction, unless one record of the log has more."""
BATCH_BYTES = 16 * 1024 * 1024
"""Sealed bytes applied in one transaction, with the same exception."""


@dataclass(frozen=True, slots=True)
class FollowReport:
    """What one call did: `entries` applied, and the database's place in the log now.

    `rebuilt`: everything was restored, because the database was empty, because the log was
    forked before its place, or because records that it lacked were pruned. `quarantined` records
    were applied as records, without what they did.
    """

    entries: int
    sequence: int
    generation: int
    position: int
    rebuilt: bool
    quarantined: tuple[QuarantinedRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self) | {"quarantined": list_quarantined_json(self.quarantined)}


@dataclass(frozen=True)
class _Following:
    """What one call works with."""

    driver: Driver
    source: SequencedLog
    log: LogOpener
    store: RestorationStore
    name: str
    skipped: list[QuarantinedRecord] = field(default_factory=list)
    """The records that were passed over, as they were met."""

    @property
    def connection(self) -> Connection:
        return self.driver.connection


def follow_log(
    connection: Connection,
    source: SequencedLog,
    *,
    log: LogOpener,
    schema: str,
    name: str = "archive",
    snapshot: SnapshotReader | None = None,
    batch_entries: int = BATCH_ENTRIES,
    reach: Callable[[int], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> FollowReport:
    """Apply the records of `source` that this database lacks, and return.

    `connection` is in no transaction; each batch of records is one. An empty database is restored
    first, from `snapshot` if one is given; a restored one continues from there. Everything is
    replaced, in one transaction, if a later generation of the log no longer has this database's
    records, or if records that it lacks were pruned (then a `snapshot` is needed). Its place in the
    log is kept in `oplog_follower` under `name`. After each batch, `reach` is called with its last
    sequence, and the call ends if `stop` returns True.

    The tables may have the columns of any revision of their types. Records that they cannot hold
    wait: `SchemaDriftError` after all before them, until the tables were migrated. Raises
    `LogForkedError` if somebody else wrote into this database, `HeadRolledBackError` for a source
    behind it, `ConflictError` while another process follows or restores, `ConfigurationError` for
    an empty name, and what `restore_log` raises.
    """
    check_consumer_name(name)
    if connection.in_transaction():
        raise ConfigurationError(
            "following needs transactions of its own, and the connection is in one",
            hint="commit or roll back first, or give another connection",
        )
    driver, store = Driver(connection), RestorationStore(schema)
    work = _Following(driver, source, log, store=store, name=name)
    place, restored = _find_or_restore(work, snapshot)
    entries = restored or 0
    for page in cut_batches(source.iterate_sequence(after=place.sequence), most=batch_entries):
        place, applied = _apply_parts(work, place, page, reach=reach)
        entries += applied
        if stop():
            break
    return FollowReport(
        entries=entries,
        sequence=place.sequence,
        generation=place.generation,
        position=place.position,
        rebuilt=restored is not None,
        quarantined=tuple(work.skipped),
    )


def _apply_parts(
    work: _Following, place: LogPlace, page: SequencedPage, *, reach: Callable[[int], None]
) -> tuple[LogPlace, int]:
    """Apply one batch; return the place after it, and the number of entries."""
    entries, rest = 0, page
    while rest.records:
        # Fewer records, if the tables cannot hold the next one: the call after that says why.
        place, done = _apply(work, place, rest)
        entries += _count_entries(done)
        reach(place.sequence)
        count = len(done.records)
        rest = SequencedPage(rest.first + count, rest.records[count:])
    return place, entries


def _find_or_restore(
    work: _Following, snapshot: SnapshotReader | None
) -> tuple[LogPlace, int | None]:
    """The database's place; if it had to be restored, also the number of entries."""
    store, connection, source = work.store, work.connection, work.source
    with open_work(connection):
        require_primary(connection, "following")
        log = Store(store.schema)
        installed = log.read_version(connection) is not None
        place = store.read_follower(connection, work.name) if installed else None
        if place is None and installed:
            place = store.read_restored(connection)
        if place is not None:
            log.require_home(connection)
            _check_only_writer(store, connection, place)
    if place is None:
        restored = restore_log(
            connection,
            source,
            log=work.log,
            schema=store.schema,
            snapshot=snapshot,
            finish=lambda inside, report: _save_place(work, inside, report),
            lasting=False,
        )
        return _find_place(source, restored), restored.entries
    if source.find_chain(place.sequence) == place.chain:
        return place._replace(generation=source.generation), None
    pruned = place.sequence < source.first_sequence - 1
    if pruned or source.generation > place.generation:
        restored = rebuild_log(
            connection,
            source,
            log=work.log,
            schema=store.schema,
            snapshot=snapshot,
            finish=lambda inside, report: _save_place(work, inside, report),
        )
        return _find_place(source, restored), restored.entries
    if source.generation < place.generation or source.sequence < place.sequence:
        raise HeadRolledBackError(
            f"the log is at sequence {source.sequence} of generation {source.generation}, and "
            f"this database has sequence {place.sequence} of generation {place.generation}",
            hint="an older state of the log is read; wait, or find out who put it back",
        )
    raise ChainBrokenError(
        f"the log has another past than this database, up to sequence {place.sequence} of "
        f"generation {place.generation}",
        hint="it is another log, or one of the two was altered",
    )


def _find_place(source: SequencedLog, report: RestoreReport) -> LogPlace:
    chain = source.find_chain(report.sequence)
    if chain is None:
        raise HeadRolledBackError(
            f"the log no longer reaches sequence {report.sequence}",
            hint="an older state of the log is read; wait, and run it again",
        )
    return LogPlace(report.generation, report.sequence, chain, report.position)


def _save_place(work: _Following, connection: Connection, report: RestoreReport) -> None:
    work.skipped.extend(report.quarantined)
    place = _find_place(work.source, report)
    work.store.write_follower(connection, work.name, place=place)


def _check_only_writer(store: RestorationStore, connection: Connection, place: LogPlace) -> None:
    foreign = store.find_stranger(connection, place.position)
    if foreign is not None:
        raise LogForkedError(
            f"position {foreign} of this database did not come from the log that it follows, "
            f"which it has up to position {place.position}",
            hint="somebody writes here: a follower is read only. Follow with a new database",
        )


def _apply(
    work: _Following, place: LogPlace, page: SequencedPage
) -> tuple[LogPlace, SequencedPage]:
    """Apply one batch in one transaction; return the place after it, and what was applied.

    That is all before the first record which the tables cannot hold; `SchemaDriftError` if the
    first one is that.
    """
    store, connection, source = work.store, work.connection, work.source
    with open_work(connection):
        take_lock(connection, store)
        saved = store.read_follower(connection, work.name) or store.read_restored(connection)
        if saved is None or saved[1:] != place[1:]:
            raise ConflictError(
                "another process has moved this database on meanwhile", hint="stop one of them"
            )
        log = Store(store.schema)
        log.require_home(connection)
        reader = work.log.open(connection)
        needs = find_needs(connection, reader, log=work.log, position=place.position)
        plans = needs.plans
        page = needs.cut(page)
        added = _write_types(connection, log, source.list_types(), needs)
        for key_id, check_value in source.list_keys().items():
            log.insert_key(connection, key_id, check_value=check_value)
        oids = [*find_oids(connection, store.list_tables()), *(plan.live.oid for plan in plans)]
        suspended = suspend_switches(work.driver, oids)
        # The tables are locked now: any other write has been committed and is visible.
        _check_only_writer(store, connection, place)
        fill_columns(work.driver, plans, added)
        with reader.skipped.name_in_misfits():
            position = _merge_page(work, reader, needs, page)
        reached = page.first + len(page.records) - 1
        chain = source.find_chain(reached)
        if chain is None:
            raise HeadRolledBackError(
                f"the log no longer reaches sequence {reached}",
                hint="an older state of the log is read; wait, and run it again",
            )
        place = LogPlace(source.generation, reached, chain, max(place.position, position))
        store.write_position(connection, place.position)
        resume_tables(work.driver, suspended)
        store.write_follower(connection, work.name, place=place)
    work.skipped.extend(reader.skipped.met)
    return place, page


def _write_types(
    connection: Connection, log: Store, shapes: Sequence[Shape], needs: Needs
) -> list[tuple[TypeTarget, set[str]]]:
    """Store revisions that are new; the columns that tables got since the last look at them.

    `LogForkedError` if this database has a revision of its own.
    """
    known = {(shape.type_name, shape.revision): shape for shape in shapes}
    own = log.list_types(connection)
    added = []
    for shape in own:
        if known.get((shape.type_name, shape.revision)) != shape:
            raise LogForkedError(
                f"this database has a revision {shape.revision} of type {shape.type_name!r} that "
                "the log which it follows has not",
                hint="it has gone on by itself since it was restored: follow with a new database",
            )
    for shape in place_shapes(shapes, needs.placed):
        new = log.insert_type(connection, shape)
        for table, target in needs.placed:
            if new and (target.shape.type_name, target.shape.revision) == (
                shape.type_name,
                shape.revision,
            ):
                # The follower's own migration is no change of the rows that the log has.
                log.changes.keep_state(connection, shape.type_name, table=table.oid)
                added.append((target, list_added(table, target, own)))
    return added


def _merge_page(work: _Following, reader: RecordReader, needs: Needs, page: SequencedPage) -> int:
    """Write the page's records, and what they did to rows; their highest position."""
    store, connection = work.store, work.connection
    aggregates = _list_aggregates(page)
    _check_chains(store.read_heads(connection, aggregates), page)
    log_loader = LogLoader(work.driver, reader, store=store, after=page.first - 1, as_new=True)
    records = list(log_loader.run([page]))
    merge_records(work.driver, needs.plans, records, rules=make_rules(needs.plans, needs.turns))
    advance_sequences(connection, find_extremes(needs.plans, records))
    store.advance_tickets(connection, aggregates)
    return log_loader.position


def _list_aggregates(page: SequencedPage) -> list[str]:
    return sorted({name for record in page.records for name in record.aggregates})


def _count_entries(page: SequencedPage) -> int:
    return sum(len(record.aggregates) for record in page.records)


def _check_chains(heads: Mapping[str, tuple[int, bytes]], page: SequencedPage) -> None:
    """Raise `ChainBrokenError` unless each record follows the ones before in its aggregates."""
    chain = ChainCheck(heads={name: ChainHead(*head) for name, head in heads.items()})
    for stored in page.records:
        chain.require(
            stored.list_links(), hint="the log that is followed was altered, or is another one"
        )


def cut_batches(
    pages: Iterable[SequencedPage], *, most: int, most_bytes: int = BATCH_BYTES
) -> Iterator[SequencedPage]:
    """The same records on pages that end at `most` entries or at so many sealed bytes."""
    first = entries = size = 0
    batch: list[StoredRecord] = []
    for page in pages:
        for number, stored in enumerate(page.records, start=page.first):
            if not batch:
                first = number
            batch.append(stored)
            entries += len(stored.aggregates)
            size += stored.sealed_bytes
            if entries >= most or size >= most_bytes:
                yield SequencedPage(first, batch)
                batch, entries, size = [], 0, 0
    if batch:
        yield SequencedPage(first, batch)
