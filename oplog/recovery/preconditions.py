"""Conditions of a restore: no other restore, an empty target, a snapshot that fits the log.

A target is empty when the log's own tables, the tables that the log knows and all guarded tables
have no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Table
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError, ConflictError
from oplog.postgres.quoting import (
    qualify,
    quote,
)
from oplog.postgres.suspension import find_oids
from oplog.postgres.work import Driver
from oplog.replay.table_plan import TablePlan
from oplog.snapshot.base import SnapshotReader
from oplog.store import SequencedLog
from oplog.store.guard_state import list_declared_guards
from oplog.store.intake import RestorationStore


def take_lock(connection: Connection, store: RestorationStore) -> None:
    """Lock out other restores and followers; `ConflictError` if one is running."""
    if not store.try_lock(connection):
        raise ConflictError(
            "another restore into this database is under way, or another process follows",
            hint="wait for its end",
        )
    store.lock_partitions(connection)


def describe_rows(driver: Driver, store: RestorationStore, plans: Sequence[TablePlan]) -> str:
    """The log's and the logged tables that have rows, for an error; empty if none has."""
    connection = driver.connection
    counted = store.count_rows(connection)
    names = {plan.name: plan.live.qualified for plan in plans}
    for guard in list_declared_guards(connection, store.schema):
        if guard.tracked:
            (names[f"{guard.schema}.{guard.table}"],) = qualify([guard.table], guard.schema)
    for name, qualified in sorted(names.items()):
        if not find_oids(connection, [qualified]):
            continue
        found = driver.execute(f"SELECT count(*) FROM {qualified}").fetchone()
        if found and found[0]:
            counted[name] = int(found[0])
    return ", ".join(
        f"{name} has {count} {'row' if count == 1 else 'rows'}" for name, count in counted.items()
    )


def is_in_use(connection: Connection, tables: Iterable[Table], *, schema: str) -> bool:
    """Whether there is a record, or a row in one of the tables; missing tables are empty."""
    names = [f"{quote(schema)}.oplog_record"]
    for table in tables:
        names += qualify([table.name], table.schema)
    for name in names:
        if find_oids(connection, [name]):
            statement = f"SELECT EXISTS (SELECT FROM {name})"
            if connection.exec_driver_sql(
                statement, execution_options={"no_parameters": True}
            ).scalar():
                return True
    return False


def refuse_filled(found: str) -> ConfigurationError:
    """The error for a target that has the rows which `describe_rows` lists."""
    return ConfigurationError(
        f"a restore needs an empty database: {found}",
        hint="create a database, run the migrations, start no application on it, and restore "
        "into that",
    )


def check_snapshot(source: SequencedLog, snapshot: SnapshotReader | None) -> None:
    """Raise `ConfigurationError` unless the kept records continue the snapshot, or are all."""
    known = source.first_sequence - 1 if snapshot is None else snapshot.sequence
    fits = source.first_sequence - 1 <= known <= source.sequence
    if fits and (snapshot is not None or known == 0):
        return
    what = "no snapshot is given" if snapshot is None else f"the snapshot is at {known}"
    raise ConfigurationError(
        f"the log is kept from sequence {source.first_sequence} to {source.sequence}, and {what}",
        hint="give a snapshot from which the kept records go on",
    )
