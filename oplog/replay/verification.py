"""Compares the live tables with the log, in one snapshot; reports, and repairs nothing.

On the primary the log is folded into temporary tables, which go with the transaction. On a
standby, where no table can be made, the log's rows travel as parameters (`hash_buckets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.binding import list_unstored_shapes
from oplog.payload.lineage import group_shapes
from oplog.postgres.standby import is_standby
from oplog.postgres.work import Driver, open_snapshot
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.replay.hash_buckets import compare_in_buckets
from oplog.replay.live_target import LiveTargets, find_live_targets
from oplog.replay.rebuild import BATCH_ROWS, Progress, check_links, fold_log
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.rules import find_turns, make_rules
from oplog.replay.table_comparison import Comparison, Difference, compare_table
from oplog.replay.table_plan import TablePlan, read_plans
from oplog.replay.validity import FoldRules
from oplog.store.quarantined import QuarantinedRecord, list_quarantined_json

MOST_DIFFERENCES = 1000
"""Default limit of described differences; all are counted."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a verification: `ok` if live tables and log agree in every row and column.

    `differences` holds the first ones by table and key, `count` is the number of all.
    `rows` is the number of rows by the log, `entries` of entries read, `position` the last's.
    `quarantined` records were passed over: what they did is not in the log's rows. `unnoted` are
    types whose tables a migration has changed or dropped without a word in the log yet; values
    that it rewrote are differences until `oplog types sync` has logged them.
    """

    ok: bool
    differences: list[Difference]
    count: int
    rows: int
    entries: int
    position: int
    quarantined: tuple[QuarantinedRecord, ...] = ()
    unnoted: tuple[str, ...] = ()

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The report as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "ok": self.ok,
            "count": self.count,
            "rows": self.rows,
            "entries": self.entries,
            "position": self.position,
            "differences": [one.to_json(redact=redact) for one in self.differences],
            "quarantined": list_quarantined_json(self.quarantined),
            "unnoted": list(self.unnoted),
        }


def verify_tables(
    connection: Connection,
    log: LogOpener,
    *,
    limit: int = MOST_DIFFERENCES,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
    uncommitted: bool = False,
) -> VerifyReport:
    """Compare every logged table with the log, in one REPEATABLE READ snapshot.

    Runs on `connection` if it is not in a transaction yet, or in one that sees a single
    snapshot and has written nothing; else on a second connection of the same engine, which
    sees what is committed; with `uncommitted` in the caller's that has written. Leaves nothing
    behind. If the log lacks the type of a table that is the application's, all its rows are extra.
    At most `limit` differences are described. Excluded columns are not compared; generated ones are
    computed again.

    A table that a migration has changed is compared with what the database proves of the change.
    Raises `ChainBrokenError` for an altered log, `SchemaDriftError` where nothing is proved: a
    table or a key was replaced; `ReplayError` for a log that does not replay.
    """
    with open_snapshot(connection, uncommitted=uncommitted) as inside:
        # Row security would hide rows in silence; this makes it an error.
        inside.exec_driver_sql("SET LOCAL row_security = off")
        reader = log.open(inside)
        snapshot = reader.source.read_snapshot()
        check_links(reader)
        turns = find_turns(reader, snapshot=snapshot)
        stored = group_shapes(reader.types.shapes)
        schema = log.store.schema
        unstored = list_unstored_shapes(inside, log.catalog, stored=stored, schema=schema)
        revisions = group_shapes([*reader.types.shapes, *unstored])
        live = find_live_targets(inside, revisions, turns, schema=schema)
        reader.aim_steps({one.shape.type_name: one.shape.revision for _, one in live.placed})
        plans = read_plans(inside, live.placed)
        rules = make_rules(plans, turns, gone=live.gone)
        compare = compare_in_buckets if is_standby(inside) else _compare_in_tables
        with reader.skipped.name_in_misfits():
            found = compare(
                reader,
                plans,
                driver=Driver(inside),
                snapshot=snapshot,
                rules=rules,
                limit=limit,
                batch_rows=batch_rows,
                progress=progress,
            )
        return _report(found, reader, live)


def _report(found: Comparison, reader: RecordReader, live: LiveTargets) -> VerifyReport:
    return VerifyReport(
        ok=found.count == 0,
        differences=found.differences,
        count=found.count,
        rows=found.rows,
        entries=found.applied.entries,
        position=found.applied.position,
        quarantined=reader.skipped.met,
        unnoted=tuple(sorted({*live.unnoted, *live.gone})),
    )


def _compare_in_tables(
    reader: RecordReader,
    plans: Sequence[TablePlan],
    *,
    driver: Driver,
    snapshot: str,
    rules: FoldRules,
    limit: int,
    batch_rows: int,
    progress: Progress | None,
) -> Comparison:
    """Fold the log into temporary tables, and compare those."""
    loaders = make_scratch(driver, plans)
    applied = fold_log(
        reader, loaders, snapshot=snapshot, rules=rules, batch_rows=batch_rows, progress=progress
    )
    result = Comparison(applied)
    for loader in loaders:
        left = max(limit - len(result.differences), 0)
        found, total = compare_table(driver, loader.plan, loader.target, limit=left)
        result.differences += found
        result.count += total
        result.rows += loader.rows
    return result
