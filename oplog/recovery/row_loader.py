"""Fills live tables with the rows of a log: a snapshot's rows, then later records' changes.

Rows are collected in temporary tables without constraints and moved into the live ones at once.
Only the last state is sure to satisfy constraints: before it, two rows may have swapped a unique
name, or break a check that was added later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from oplog.errors import ReplayError, SchemaDriftError
from oplog.postgres import driver_errors
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver
from oplog.replay.loader import TableLoader
from oplog.replay.table_plan import TablePlan, list_quoted
from oplog.replay.validity import Judge, accept
from oplog.snapshot.base import SnapshotReader, SnapshotTable
from oplog.value import copy_field

_DELETED = "pg_temp.oplog_gone"


@dataclass(frozen=True, slots=True)
class _Reading:
    """How lines of a snapshot read as rows of a table: the columns, and what becomes of fields.

    Of each column its name in the table, its place in a line, and fields that read otherwise.
    """

    columns: tuple[tuple[str, int, Mapping[str, str]], ...]
    width: int

    @property
    def names(self) -> list[str]:
        """The columns of the table."""
        return [name for name, _, _ in self.columns]

    def read(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """Whole lines with the table's columns."""
        same = all(not labels for _, _, labels in self.columns) and [
            place for _, place, _ in self.columns
        ] == list(range(self.width))
        for chunk in chunks:
            text = chunk.decode()
            yield text if same or not text else self._pick(text)

    def _pick(self, text: str) -> str:
        picked = []
        for line in text[:-1].split("\n"):
            fields = line.split("\t")
            picked.append(
                "\t".join(
                    [labels.get(fields[place], fields[place]) for _, place, labels in self.columns]
                )
            )
        return "\n".join(picked) + "\n"


def load_snapshot(
    driver: Driver,
    loaders: Sequence[TableLoader],
    *,
    snapshot: SnapshotReader,
    judge: Judge = accept,
) -> None:
    """Put a snapshot's rows into the loaders' empty tables.

    Columns are found by field number. Tables whose rows were logged anew since, or are superseded
    by `judge`, are left out. `SchemaDriftError` for a table or column that the database does not
    have; `ReplayError` for rows that the table refuses.
    """
    by_name = {(one.plan.live.schema, one.plan.live.name): one for one in loaders}
    by_type = {name: one for one in loaders for name in one.plan.types}
    for table in snapshot.tables():
        found = [judge(shape) for shape in table.shapes]
        if found and all(one.since > snapshot.position for one in found):
            continue
        for one in found:
            if one.refusal is not None:
                raise one.refusal
        known = [by_type[shape.type_name] for shape in table.shapes]
        loader = known[0] if known else by_name.get(table.name)
        if loader is None:
            raise SchemaDriftError(
                f"table {'.'.join(table.name)} is in the snapshot and not in the database",
                hint="migrate the database to the version that the snapshot was taken of",
            )
        targets = loader.plan.targets
        if table.shapes and all(targets[s.type_name].is_apart_from(s) for s in table.shapes):
            continue
        rows = _find_reading(loader.plan, table, table.columns)
        keys = _find_reading(loader.plan, table, table.key_names)
        if sorted(keys.names) != sorted(loader.plan.key_names):
            raise _refuse_columns(loader.plan, "its key")
        _load_table(driver, loader, table, rows=rows, keys=keys)


def _find_reading(plan: TablePlan, table: SnapshotTable, names: Sequence[str]) -> _Reading:
    """The names are those that the snapshot's lines have."""
    if not table.shapes:
        unknown = [name for name in names if name not in plan.names]
        if unknown:
            raise _refuse_columns(plan, ", ".join(unknown))
        return _Reading(tuple((name, n, {}) for n, name in enumerate(names)), len(names))
    routes = {
        route.source: route
        for shape in table.shapes
        for route in plan.targets[shape.type_name].map_from(shape)
        if route.target in plan.names
    }
    columns = tuple(
        (
            routes[name].target,
            place,
            {copy_field(old): copy_field(new) for old, new in routes[name].labels.items()},
        )
        for place, name in enumerate(names)
        if name in routes
    )
    return _Reading(columns, len(names))


def _refuse_columns(plan: TablePlan, what: str) -> SchemaDriftError:
    return SchemaDriftError(
        f"{plan.name} has other columns than the snapshot: {what}",
        hint="migrate the database to the version that the snapshot was taken of, or restore "
        "from the log alone",
    )


def _load_table(
    driver: Driver,
    loader: TableLoader,
    table: SnapshotTable,
    *,
    rows: _Reading,
    keys: _Reading,
) -> None:
    copy_rows = f"COPY {loader.target} ({list_quoted(rows.names)}) FROM STDIN"
    try:
        driver.copy(copy_rows, rows.read(table.rows()))
        loader.build_key()
        for layer in table.layers():
            driver.execute(
                f"CREATE TEMPORARY TABLE oplog_gone ON COMMIT DROP AS SELECT "
                f"{list_quoted(keys.names)} FROM {loader.target} WITH NO DATA"
            )
            driver.copy(f"COPY {_DELETED} FROM STDIN", keys.read(layer.gone()))
            on_key = " AND ".join(f"t.{quote(n)} = g.{quote(n)}" for n in keys.names)
            driver.execute(f"DELETE FROM {loader.target} t USING {_DELETED} g WHERE {on_key}")
            driver.execute(f"DROP TABLE {_DELETED}")
            driver.copy(copy_rows, rows.read(layer.rows()))
    except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
        raise ReplayError(
            f"the snapshot's rows do not fit {loader.plan.name}: {cause.diag.message_primary}",
            hint="the table's definition was changed since; restore from the log alone",
        ) from cause
    counted = driver.execute(f"SELECT count(*) FROM {loader.target}").fetchone()
    loader.rows = int(counted[0]) if counted else 0


def move_rows(driver: Driver, loader: TableLoader) -> None:
    """Copy a loader's rows into its live table; `ReplayError` if that refuses one.

    Excluded columns get their defaults.
    """
    plan = loader.plan
    names = list_quoted(plan.names)
    try:
        done = driver.execute(
            f"INSERT INTO {plan.live.qualified} ({names}) OVERRIDING SYSTEM VALUE "
            f"SELECT {names} FROM {loader.target} t"
        )
    except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
        raise _refuse(plan, cause) from cause
    if done.rowcount != loader.rows:
        raise ReplayError(
            f"{plan.name} took {done.rowcount} of {loader.rows} rows",
            hint="a rule or a policy of the table keeps rows away; remove it and restore again",
        )


def _refuse(plan: TablePlan, cause: driver_errors.Error) -> ReplayError:
    detail = cause.diag.message_detail
    column = cause.diag.column_name
    if isinstance(cause, driver_errors.NotNullViolation) and column in plan.excluded:
        return ReplayError(
            f"column {plan.name}.{column} is excluded from the log and may not be NULL",
            hint="give the column a server default for the time of the restore, and fill it later",
        )
    return ReplayError(
        f"the rows that the log gives {plan.name} do not fit it: "
        f"{cause.diag.message_primary or cause}{f' ({detail})' if detail else ''}",
        hint="the table was migrated further than the log knows, or the log lacks a change",
    )
