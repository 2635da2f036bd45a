"""Live tables beside what the log says they hold, in one snapshot.

Reports, never repairs. The hard thing is what "equal" means: stored values are compared, so
where SQL calls two of them equal that print differently, their text is compared instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.engine import Connection

from oplog.errors import NotCapturableError, ReplayError
from oplog.replay.loader import TableLoader
from oplog.replay.plan import TablePlan, read_plans
from oplog.replay.rebuild import (
    BATCH_ROWS,
    OpenReader,
    Progress,
    check_links,
    fold_log,
    list_newest_types,
)
from oplog.replay.target import make_scratch
from oplog.replay.transaction import Driver, open_snapshot
from oplog.shape import Shape
from oplog.tables import quote
from oplog.value import ValueCodec, codec_for
from oplog.value.kind import make_text_codec

MOST_DIFFERENCES = 1000
"""Differences described unless told otherwise; all are counted."""

DifferenceKind = Literal["missing", "extra", "changed"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a live table is not what the log says.

    `changed`: the column's live and logged values. `missing` (the log has the row, the table
    has not) and `extra` (the reverse) concern a whole row: `column` is empty, and the side
    that has it holds the row as a mapping of columns, the other None.
    """

    table: str
    key: Mapping[str, Any]
    column: str
    live: Any
    logged: Any
    kind: DifferenceKind


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
        snapshot = reader.store.read_snapshot(inside)
        check_links(reader)
        types = list_newest_types(reader)
        types += list_unstored(inside, {shape.type_name for shape in types})
        plans = read_plans(inside, types)
        driver = Driver(inside)
        loaders = make_scratch(driver, plans)
        applied = fold_log(
            reader, loaders, snapshot=snapshot, batch_rows=batch_rows, progress=progress
        )
        differences: list[Difference] = []
        count = 0
        for loader in loaders:
            found, total = compare_table(driver, loader, limit=max(limit - len(differences), 0))
            differences += found
            count += total
        rows = sum(loader.rows for loader in loaders)
        return VerifyReport(count == 0, differences, count, rows, applied.entries, applied.position)


def compare_table(
    driver: Driver, loader: TableLoader, *, limit: int
) -> tuple[list[Difference], int]:
    """The first differences of one table, by key, and the number of all."""
    plan = loader.plan
    names = plan.compared
    codecs = _list_codecs(plan)
    # The key joined the two rows; beyond that it can still differ in its text.
    tested = [n for n in names if n not in plan.key_names or codecs[n].compare_as_text]
    tests = [_test(name, codecs[name]) for name in tested]
    key = plan.key_names[0]
    # A composite value IS NOT NULL only if none of its fields is; this asks for the value.
    here, there = (f"{side}.{quote(key)} IS DISTINCT FROM NULL" for side in "lr")
    both = f"{here} AND {there}"
    order = [f"coalesce(l.{quote(n)}, r.{quote(n)})" for n in plan.key_names]
    only = "ONLY " if plan.live.kind == "r" else ""
    rows = driver.execute(
        "SELECT d.here, d.there, d.changed, d.live, d.logged, sum(CASE WHEN d.here AND d.there "
        "THEN pg_catalog.cardinality(pg_catalog.array_positions(d.changed, true)) ELSE 1 END) "
        f"OVER () FROM (SELECT {here} AS here, {there} AS there, "
        f"ARRAY[{', '.join(tests)}]::boolean[] AS changed, "
        f"{_texts('l', names)} AS live, {_texts('r', names)} AS logged, "
        f"{', '.join(f'{place} AS k{n}' for n, place in enumerate(order))} "
        f"FROM {only}{plan.live.qualified} l FULL JOIN {loader.target} r ON "
        f"{' AND '.join(f'l.{quote(n)} = r.{quote(n)}' for n in plan.key_names)} "
        f"WHERE NOT ({both}){''.join(f' OR {test}' for test in tests)}) d "
        f"ORDER BY {', '.join(f'd.k{n}' for n in range(len(order)))} LIMIT {max(limit, 1)}"
    ).fetchall()
    differences: list[Difference] = []
    for row in rows:
        differences += _describe(plan, codecs, tested=tested, row=row)
    return differences[:limit], int(rows[0][5]) if rows else 0


def _describe(
    plan: TablePlan, codecs: Mapping[str, ValueCodec], *, tested: Sequence[str], row: Any
) -> list[Difference]:
    here, there, changed, live_texts, logged_texts = row[:5]
    names = plan.compared
    live = {
        n: _read_live(plan, n, codec=codecs[n], text=text)
        for n, text in zip(names, live_texts, strict=True)
    }
    logged = {n: _read(codecs[n], text) for n, text in zip(names, logged_texts, strict=True)}
    key = {name: (live if here else logged)[name] for name in plan.key_names}
    if not there:
        return [Difference(plan.name, key, "", live, None, "extra")]
    if not here:
        return [Difference(plan.name, key, "", None, logged, "missing")]
    return [
        Difference(plan.name, key, name, live[name], logged[name], "changed")
        for name, differs in zip(tested, changed, strict=True)
        if differs
    ]


def _list_codecs(plan: TablePlan) -> dict[str, ValueCodec]:
    codecs = dict(plan.codecs)
    for name in plan.compared:
        if name not in codecs:
            column = plan.live_columns[name]
            try:
                codecs[name] = codec_for(column.pg_type, category=column.category)
            except NotCapturableError:
                # Computed, hence never logged: its text will do for a comparison.
                codecs[name] = make_text_codec(column.pg_type, compare_as_text=True)
    return codecs


def _test(name: str, codec: ValueCodec) -> str:
    suffix = '::text COLLATE "C"' if codec.compare_as_text else ""
    return f"l.{quote(name)}{suffix} IS DISTINCT FROM r.{quote(name)}{suffix}"


def _texts(side: str, names: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(f'{side}.{quote(name)}::text' for name in names)}]"


def _read_live(plan: TablePlan, name: str, *, codec: ValueCodec, text: str | None) -> Any:
    """The value, or its text where the table's type is no longer the logged one."""
    try:
        return _read(codec, text)
    except ReplayError:
        if plan.live_columns[name].pg_type == codec.pg_type:
            raise
        return text


def _read(codec: ValueCodec, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return codec.to_python(codec.from_text(text))
    except (ValueError, ArithmeticError) as cause:
        raise ReplayError(
            f"a value of type {codec.pg_type} cannot be read: {text[:100]!r}",
            hint="report this with the column's type",
        ) from cause
