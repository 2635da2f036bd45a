"""Folds the log into tables; the engine behind replay and verify.

The order of work: plan, create, fold and load in batches, add constraints, digest. Everything is
read from one snapshot, so a log that grows meanwhile gives the same tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy.engine import Connection

from oplog.errors import ChainBrokenError
from oplog.payload.gc_pause import pause_collector
from oplog.postgres.quoting import (
    quote_literal,
)
from oplog.postgres.standby import require_primary
from oplog.postgres.work import Driver, open_work
from oplog.reading.given_place import find_place
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.replay.fold import Fold, TableFold
from oplog.replay.loader import TableLoader
from oplog.replay.past_tables import plan_past
from oplog.replay.rebuilt_table import add_constraints, comment_tables, make_schema
from oplog.replay.rules import find_turns, make_rules
from oplog.replay.table_plan import TablePlan, list_quoted
from oplog.replay.validity import FoldRules
from oplog.store.quarantined import QuarantinedRecord, list_quarantined_json

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the position reached and the last one."""

BATCH_ROWS = 50_000
"""Net rows folded in memory before they are loaded."""
BATCH_BYTES = 32 * 1024 * 1024
"""Sealed bytes of the records folded in memory before they are loaded."""
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_SHOWN_LINKS = 3


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay rebuilt.

    `rows` in all rebuilt tables, `entries` applied, `position` of the last of them (0 for an
    empty log). `digest` is SHA-256 in hex over all tables' contents: the same rows give the
    same digest, in whatever order they were written. `quarantined` records were passed over.
    """

    rows: int
    entries: int
    position: int
    digest: str
    quarantined: tuple[QuarantinedRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self) | {"quarantined": list_quarantined_json(self.quarantined)}


@dataclass(slots=True)
class Applied:
    """Records folded so far, their entries, and their highest position."""

    records: int = 0
    entries: int = 0
    position: int = 0


def replay_log(
    connection: Connection,
    log: LogOpener,
    *,
    into: str = "replayed",
    through: int | datetime | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> ReplayReport:
    """Rebuild every logged table in schema `into` from the log alone.

    Tables have the shape that they had at `through`. Those that the database has in that shape get
    its constraints too; at an earlier position those that the rows of then do not break. Runs in
    the caller's transaction if there is one, which the caller commits; else in one of its own.
    `through` is a position or an aware datetime and takes transactions whole. Tables of an earlier
    replay are replaced; a live, a log's or a system schema and tables made by anybody else are
    refused (`ConfigurationError`). Raises `SchemaDriftError` where keys were replaced without a
    word in the log, `ChainBrokenError` for an altered log and `ReplayError` for one that does not
    replay or breaks a constraint. A standby is refused with `ConfigurationError`.
    """
    with open_work(connection):
        require_primary(connection, "a replay")
        reader = log.open(connection)
        with reader.skipped.name_in_misfits():
            return _rebuild(
                Driver(connection),
                reader,
                into=into,
                through=through,
                batch_rows=batch_rows,
                progress=progress,
            )


def _rebuild(
    driver: Driver,
    reader: RecordReader,
    *,
    into: str,
    through: int | datetime | None,
    batch_rows: int,
    progress: Progress | None,
) -> ReplayReport:
    snapshot = reader.source.read_snapshot()
    check_links(reader)
    limit = find_place(reader, through, snapshot=snapshot)
    turns = find_turns(reader, snapshot=snapshot, through=limit)
    whole = turns if limit is None else find_turns(reader, snapshot=snapshot)
    plans = plan_past(driver.connection, reader.types.shapes, turns, through=limit, whole=whole)
    reader.aim_steps({name: one.shape.revision for p in plans for name, one in p.targets.items()})
    loaders = make_schema(driver, plans, into=into, log_schema=reader.source.schema)
    applied = fold_log(
        reader,
        loaders,
        snapshot=snapshot,
        rules=make_rules(plans, turns),
        through=limit,
        batch_rows=batch_rows,
        progress=progress,
    )
    add_constraints(driver, loaders, into=into, past=limit is not None)
    comment_tables(driver, loaders, position=applied.position)
    return ReplayReport(
        rows=sum(loader.rows for loader in loaders),
        entries=applied.entries,
        position=applied.position,
        digest=digest_tables(driver, loaders),
        quarantined=reader.skipped.met,
    )


def check_links(reader: RecordReader) -> None:
    """Raise `ChainBrokenError` unless every aggregate's versions and hashes link up."""
    broken = reader.source.list_broken_links()
    if not broken:
        return
    shown = "; ".join(
        f"aggregate {link.aggregate!r} version {link.version} "
        f"({'no entry' if link.position is None else f'position {link.position}'}): {link.reason}"
        for link in broken[:_SHOWN_LINKS]
    )
    more = "" if len(broken) <= _SHOWN_LINKS else f"; and more, {len(broken)} in all at least"
    raise ChainBrokenError(
        f"the log's chains are broken: {shown}{more}",
        hint="rows of the log's tables were altered or removed; compare with a backup or the "
        "archive before anything else is written",
    )


def fold_log(
    reader: RecordReader,
    loaders: Sequence[TableLoader],
    *,
    snapshot: str,
    rules: FoldRules,
    through: int | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> Applied:
    """Fold the log, batch by batch, into the loaders' empty tables."""
    last = 0 if progress is None else find_last(reader, through, snapshot=snapshot)

    def report(applied: Applied) -> None:
        if progress is not None:
            progress(applied.position, max(last, applied.position))

    return fold_records(
        reader.iterate_records(snapshot, through=through),
        loaders,
        rules=rules,
        batch_rows=batch_rows,
        report=report,
    )


def fold_records(
    records: Iterable[OpenedRecord],
    loaders: Sequence[TableLoader],
    *,
    rules: FoldRules,
    batch_rows: int = BATCH_ROWS,
    report: Callable[[Applied], None],
) -> Applied:
    """Fold records, given in causal order, and load them batch by batch.

    The loaders' tables may have rows already. `report` is called after each batch.
    """
    folds = {id(loader): TableFold(loader.plan) for loader in loaders}
    by_type: Mapping[str, TableFold] = {
        name: folds[id(loader)] for loader in loaders for name in loader.plan.types
    }
    fold = Fold(by_type, rules=rules)
    applied = Applied()

    def load() -> None:
        for loader in loaders:
            loader.apply(folds[id(loader)])
        fold.clear()
        report(applied)

    sealed = 0
    with pause_collector() as collect:
        for record in records:
            sealed += add_record(fold, record, applied)
            if sealed > BATCH_BYTES or len(fold) >= batch_rows:
                load()
                collect()
                sealed = 0
        load()
    return applied


def add_record(fold: Fold, record: OpenedRecord, applied: Applied) -> int:
    """Fold one record and count it in `applied`; return the size of its sealed parts."""
    stored = record.stored
    fold.add(record.effects, position=stored.position)
    applied.records += 1
    applied.entries += len(stored.aggregates)
    applied.position = max(applied.position, stored.position)
    return stored.sealed_bytes


def find_last(reader: RecordReader, through: int | None = None, *, snapshot: str) -> int:
    """The last position of the log, or `through` if that is lower."""
    last = reader.source.find_position(_END_OF_TIME, snapshot=snapshot)
    return last if through is None else min(last, through)


def digest_tables(driver: Driver, loaders: Sequence[TableLoader]) -> str:
    """SHA-256 over the tables' names, columns and rows; text settings must be pinned.

    Rows enter as the sum of their 64-bit hashes, which does not depend on their order and
    counts duplicates.
    """
    whole = hashlib.sha256()
    for loader in sorted(loaders, key=lambda loader: loader.plan.name):
        plan: TablePlan = loader.plan
        name = quote_literal(f"{plan.live.qualified} {list_quoted(plan.compared)}")
        found = driver.execute(
            f"SELECT pg_catalog.concat_ws(' ', {name}, count(*), "
            "sum(pg_catalog.hashtextextended("
            f"ROW({list_quoted(plan.compared, prefix='t.')})::text, 0))) "
            f"FROM {loader.target} t"
        ).fetchone()
        whole.update(f"{found[0] if found else ''}\n".encode())
    return whole.hexdigest()
