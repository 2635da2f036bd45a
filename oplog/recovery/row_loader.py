"""Fills live tables with the rows of a log: a snapshot's rows, then later records' changes.

Rows are collected in temporary tables without constraints and moved into the live ones at once.
Only the last state is sure to satisfy constraints: before it, two rows may have swapped a unique
name, or break a check that was added later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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

_DELETED = "pg_temp.oplog_gone"


def load_snapshot(
    driver: Driver,
    loaders: Sequence[TableLoader],
    *,
    snapshot: SnapshotReader,
    judge: Judge = accept,
) -> None:
    """Put a snapshot's rows into the loaders' empty tables.

    Tables whose rows are superseded, by `judge`, are left out. `SchemaDriftError` for a table
    or column that the database does not have, or has under another name; `ReplayError` for
    rows that the table refuses.
    """
    by_name = {(one.plan.live.schema, one.plan.live.name): one for one in loaders}
    for table in snapshot.tables():
        found = [judge(shape) for shape in table.shapes]
        if found and all(one.since > snapshot.position for one in found):
            continue
        for one in found:
            if one.refusal is not None:
                raise one.refusal
        loader = by_name.get(table.name)
        if loader is None:
            raise SchemaDriftError(
                f"table {'.'.join(table.name)} is in the snapshot and not in the database",
                hint="migrate the database to the version that the snapshot was taken of",
            )
        _check_columns(loader.plan, table)
        _load_table(driver, loader, table)


def _check_columns(plan: TablePlan, table: SnapshotTable) -> None:
    unknown = [name for name in table.columns if name not in plan.names]
    if unknown or sorted(table.key_names) != sorted(plan.key_names):
        raise SchemaDriftError(
            f"{plan.name} has other columns than the snapshot: {', '.join(unknown) or 'its key'}",
            hint="migrate the database to the version that the snapshot was taken of, or restore "
            "from the log alone",
        )


def _load_table(driver: Driver, loader: TableLoader, table: SnapshotTable) -> None:
    copy_rows = f"COPY {loader.target} ({list_quoted(table.columns)}) FROM STDIN"
    try:
        driver.copy(copy_rows, _decode(table.rows()))
        loader.build_key()
        for layer in table.layers():
            driver.execute(
                f"CREATE TEMPORARY TABLE oplog_gone ON COMMIT DROP AS SELECT "
                f"{list_quoted(table.key_names)} FROM {loader.target} WITH NO DATA"
            )
            driver.copy(f"COPY {_DELETED} FROM STDIN", _decode(layer.gone()))
            on_key = " AND ".join(f"t.{quote(n)} = g.{quote(n)}" for n in table.key_names)
            driver.execute(f"DELETE FROM {loader.target} t USING {_DELETED} g WHERE {on_key}")
            driver.execute(f"DROP TABLE {_DELETED}")
            driver.copy(copy_rows, _decode(layer.rows()))
    except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
        raise ReplayError(
            f"the snapshot's rows do not fit {loader.plan.name}: {cause.diag.message_primary}",
            hint="the table's definition was changed since; restore from the log alone",
        ) from cause
    counted = driver.execute(f"SELECT count(*) FROM {loader.target}").fetchone()
    loader.rows = int(counted[0]) if counted else 0


def _decode(chunks: Iterable[bytes]) -> Iterator[str]:
    return (chunk.decode() for chunk in chunks)


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
