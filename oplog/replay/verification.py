"""The verdict on a log: whether the live tables are what it says, in one snapshot.

Reports, never repairs. How a table is compared is `comparison`'s. The hard thing is to leave
nothing behind and to need nothing: on a standby, where not even a temporary table can be made,
the log's rows travel as parameters instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.payload.shape import Shape
from oplog.postgres.standby import is_standby
from oplog.postgres.work import Driver, open_snapshot
from oplog.reading.reader import EntryReader
from oplog.replay.hash_buckets import compare_portions
from oplog.replay.rebuild import (
    BATCH_ROWS,
    OpenReader,
    Progress,
    check_links,
    fold_log,
)
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.rules import list_gone, read_rules
from oplog.replay.table_comparison import Comparison, Difference, compare_table
from oplog.replay.table_plan import TablePlan, read_plans

MOST_DIFFERENCES = 1000
"""Differences described unless told otherwise; all are counted."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict: `ok` when live tables and log agree in every row and column.

    `differences` holds the first ones by table and key, `count` is the number of all.
    `rows` that the log gives, `entries` read, `position` of the last.
    """

    ok: bool
    differences: list[Difference]
    count: int
    rows: int
    entries: int
    position: int

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The verdict as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "ok": self.ok,
            "count": self.count,
            "rows": self.rows,
            "entries": self.entries,
            "position": self.position,
            "differences": [one.to_json(redact=redact) for one in self.differences],
        }


def verify_tables(
    connection: Connection,
    *,
    open_reader: OpenReader,
    list_unstored: Callable[[Connection, Collection[str]], list[Shape]] = lambda *_: [],
    limit: int = MOST_DIFFERENCES,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare every logged table with the log, in one REPEATABLE READ snapshot.

    Runs on `connection` if it is not in a transaction yet, or in one that sees a single
    snapshot and has written nothing; else on a second connection of the same engine, which
    sees what is committed. Leaves nothing behind. `list_unstored` gives the shapes of tables
    that should be logged and whose types the log does not have: all their rows are extra. At
    most `limit` differences are described. Excluded columns are not compared; computed ones
    are computed anew.

    Raises `ChainBrokenError` for an altered log, `SchemaDriftError` where tables and log
    disagree about columns, `ReplayError` for a log that does not replay.
    """
    with open_snapshot(connection) as inside:
        # Row security would hide rows in silence; this makes it an error.
        inside.exec_driver_sql("SET LOCAL row_security = off")
        reader = open_reader(inside)
        snapshot = reader.source.read_snapshot()
        check_links(reader)
        stored = reader.types.latest
        turns = reader.source.find_adoptions(list(stored), snapshot=snapshot)
        types = [*stored.values(), *list_unstored(inside, set(stored))]
        plans = read_plans(inside, types, gone=list_gone(types, turns))
        compare = compare_portions if is_standby(inside) else _compare_in_tables
        found = compare(
            Driver(inside),
            reader,
            plans,
            snapshot=snapshot,
            limit=limit,
            batch_rows=batch_rows,
            progress=progress,
        )
        return VerifyReport(
            found.count == 0,
            found.differences,
            found.count,
            found.rows,
            found.applied.entries,
            found.applied.position,
        )


def _compare_in_tables(
    driver: Driver,
    reader: EntryReader,
    plans: Sequence[TablePlan],
    *,
    snapshot: str,
    limit: int,
    batch_rows: int,
    progress: Progress | None,
) -> Comparison:
    """The log folded into temporary tables, and these compared."""
    loaders = make_scratch(driver, plans)
    # Not strict: what reads wrongly is compared, and shows.
    rules = read_rules(reader, plans, snapshot=snapshot, here=True, strict=False)
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
