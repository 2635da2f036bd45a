"""Keeps a second database up to date from a log: rows, entries and tickets, batch by batch.

The place in the log is saved in the transaction that reaches it, with a hash over everything
before. So a log with another past is recognised, and not taken for one that went on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
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
from oplog.postgres.standby import require_primary
from oplog.postgres.suspension import find_oids, resume_tables, suspend_switches
from oplog.postgres.work import Driver
from oplog.reading.log_opener import LogOpener
from oplog.recovery.log_loader import LogIntake
from oplog.recovery.merging import find_extremes, merge_transactions
from oplog.recovery.preconditions import take_lock
from oplog.recovery.renumbered_types import place_shapes
from oplog.recovery.restore import RestoreReport, open_work, rebuild_log, restore_log
from oplog.recovery.sequences import advance_sequences
from oplog.replay.rebuild import read_reader_plans
from oplog.replay.rules import read_rules
from oplog.snapshot.base import SnapshotReader
from oplog.store import SequencedLog, SequencedPage, Store, StoredEntry
from oplog.store.feed import check_consumer_name
from oplog.store.intake import LogPlace, RestorationStore
from oplog.store.whole_transactions import TransactionGroups

BATCH_ENTRIES = 1000
"""Entries applied in one transaction, more only for a single larger one of the log."""
BATCH_BYTES = 16 * 1024 * 1024
"""Sealed bytes applied in one transaction, with the same exception."""


@dataclass(frozen=True, slots=True)
class FollowReport:
    """What one call did: `entries` applied, and where the database is in the log now.

    `rebuilt`: everything was brought back anew, because there was nothing yet, or because the
    log was forked before what was here.
    """

    entries: int
    sequence: int
    generation: int
    position: int
    rebuilt: bool

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class _Following:
    """One call's work."""

    driver: Driver
    source: SequencedLog
    log: LogOpener
    store: RestorationStore
    name: str

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
    """Apply what `source` has and this database has not, and return; call it again for more.

    `connection` is in no transaction; each batch is one, of whole transactions of the log. An
    empty database is restored first, from `snapshot` if one is given; one that was restored
    is followed on from there. A log of a later generation that no longer holds what is here,
    or one that has given up entries that are missing here (then a `snapshot` is needed),
    replaces everything, in one transaction. Where this database is, is kept in
    `oplog_follower` under `name`. `reach` is called after each batch with its last sequence; `stop`
    is asked then, and ends the call when it says True.

    Raises `LogForkedError` if somebody else wrote into this database, `HeadRolledBackError` for
    a source behind it, `ConflictError` while another process follows or restores,
    `ConfigurationError` for an empty name, and what `restore_log` raises.
    """
    check_consumer_name(name)
    if connection.in_transaction():
        raise ConfigurationError(
            "following needs transactions of its own, and the connection is in one",
            hint="commit or roll back first, or give another connection",
        )
    driver, store = Driver(connection), RestorationStore(schema)
    work = _Following(driver, source, log, store=store, name=name)
    place, began = _begin(work, snapshot)
    entries = began or 0
    pages = source.iterate_sequence(after=place.sequence)
    for page in cut_batches(pages, most=batch_entries):
        place = _apply(work, place, page)
        entries += len(page.entries)
        reach(place.sequence)
        if stop():
            break
    return FollowReport(
        entries=entries,
        sequence=place.sequence,
        generation=place.generation,
        position=place.position,
        rebuilt=began is not None,
    )


def _begin(work: _Following, snapshot: SnapshotReader | None) -> tuple[LogPlace, int | None]:
    """Where the database is; with the number of entries, if it had to be filled first."""
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
            _check_alone(store, connection, place)
    if place is None:
        filled = restore_log(
            connection,
            source,
            log=work.log,
            schema=store.schema,
            snapshot=snapshot,
            finish=lambda inside, report: _save(work, inside, report),
        )
        return _find_place(source, filled), filled.entries
    if source.find_chain(place.sequence) == place.chain:
        return place._replace(generation=source.generation), None
    behind = place.sequence < source.first_sequence - 1
    if behind or source.generation > place.generation:
        filled = rebuild_log(
            connection,
            source,
            log=work.log,
            schema=store.schema,
            snapshot=snapshot,
            finish=lambda inside, report: _save(work, inside, report),
        )
        return _find_place(source, filled), filled.entries
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


def _save(work: _Following, connection: Connection, report: RestoreReport) -> None:
    place = _find_place(work.source, report)
    work.store.write_follower(connection, work.name, place=place)


def _check_alone(store: RestorationStore, connection: Connection, place: LogPlace) -> None:
    stranger = store.find_stranger(connection, place.position)
    if stranger is not None:
        raise LogForkedError(
            f"position {stranger} of this database did not come from the log that it follows, "
            f"which it has up to position {place.position}",
            hint="somebody writes here: a follower is read only. Follow with a new database",
        )


def _apply(work: _Following, place: LogPlace, page: SequencedPage) -> LogPlace:
    """One batch in one transaction."""
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
        reader, shown = work.log.open(connection), source.read_snapshot()
        plans = read_reader_plans(connection, reader, snapshot=shown)
        live = {name: plan.live for plan in plans for name in plan.types}
        for shape in place_shapes(source.list_types(), live):
            log.insert_type(connection, shape)
        for key_id, check_value in source.list_keys().items():
            log.insert_key(connection, key_id, check_value=check_value)
        oids = [*find_oids(connection, store.list_tables()), *(plan.live.oid for plan in plans)]
        taken = suspend_switches(work.driver, oids)
        # Nobody writes from here on; who wrote before would show.
        _check_alone(store, connection, place)
        _check_chains(store.read_heads(connection, _list_aggregates(page)), page)
        intake = LogIntake(work.driver, reader, store=store, after=page.first - 1, news=True)
        transactions = list(intake.run([page]))
        rules = read_rules(reader, plans, snapshot=shown, here=False, anew=False)
        merge_transactions(work.driver, plans, transactions, rules=rules)
        advance_sequences(connection, find_extremes(plans, transactions))
        store.write_tickets(connection, _list_aggregates(page))
        reached = page.first + len(page.entries) - 1
        chain = source.find_chain(reached)
        if chain is None:
            raise HeadRolledBackError(
                f"the log no longer reaches sequence {reached}",
                hint="an older state of the log is read; wait, and run it again",
            )
        place = LogPlace(source.generation, reached, chain, max(place.position, intake.position))
        store.write_position(connection, place.position)
        resume_tables(work.driver, taken)
        store.write_follower(connection, work.name, place=place)
    return place


def _list_aggregates(page: SequencedPage) -> list[str]:
    return sorted({entry.aggregate for entry in page.entries})


def _check_chains(heads: Mapping[str, tuple[int, bytes]], page: SequencedPage) -> None:
    """Raise `ChainBrokenError` where an entry does not follow the one before."""
    chain = ChainCheck(heads={name: ChainHead(*head) for name, head in heads.items()})
    for stored in page.entries:
        chain.require(stored, hint="the log that is followed was altered, or is another one")


def cut_batches(
    pages: Iterable[SequencedPage], *, most: int, most_bytes: int = BATCH_BYTES
) -> Iterator[SequencedPage]:
    """The same entries on pages of whole transactions, of about `most` entries."""
    first = 0
    batch: list[StoredEntry] = []
    metadata: dict[int, list[tuple[str, str]]] = {}
    groups = TransactionGroups[StoredEntry]()
    size = 0
    for page in pages:
        for number, stored in enumerate(page.entries, start=page.first):
            if not batch and not groups:
                first = number
            whole = groups.add(stored, stored)
            size += len(stored.data)
            if stored.transaction_position in page.metadata:
                position = stored.transaction_position
                metadata[position] = page.metadata[position]
            if whole is None:
                continue
            batch += whole
            if len(batch) >= most or size >= most_bytes:
                yield SequencedPage(first, batch, metadata)
                batch, metadata, size = [], {}, 0
    groups.require_complete(hint="the log that is followed lacks entries")
    if batch:
        yield SequencedPage(first, batch, metadata)
