"""Alembic's autogenerate in a database with a log: no proposal touches the log's own tables.

`import oplog.migration` in an `env.py` registers this. With `context.configure(..., oplog=log)`
guards are proposed as well, for tables of the log's catalog that have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from alembic import util
from alembic.autogenerate import comparators, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from sqlalchemy.engine import Connection

from oplog.facade import Oplog
from oplog.migration.given_log import find_log, list_catalog_tables
from oplog.migration.guard_operation import TrackTablesOp, UntrackTablesOp
from oplog.migration.operation import (
    CreateOplogOp,
    DropOplogOp,
    RetireTypeOp,
    UpgradeOplogOp,
)
from oplog.migration.row_operation import AdoptTableOp, ReplaceTypeOp
from oplog.schema.tables import list_table_names
from oplog.store.guard_state import list_declared_guards
from oplog.store.partition_store import list_partition_names
from oplog.store.version import list_log_schemas

Place = tuple[str, str]
"""Schema and name of a table."""


def hide_log(context: AutogenContext, _upgrade: ops.UpgradeOps, schemas: set[str | None]) -> None:
    """Have Alembic not look at the log's own tables: it would warn of types that it does not know.

    Runs before it compares. Where it has no filters to add to, `compare_log` alone must do.
    """
    filters = getattr(context, "_name_filters", None)
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql" or filters is None:
        return
    default, own = _find_default(connection), _list_own_tables(connection)

    def is_others(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
        return kind != "table" or (parents.get("schema_name") or default, name) not in own

    filters.append(is_others)
    # Of a schema of which no table is left, Alembic would read all of them.
    for schema in list(schemas):
        names = context.inspector.get_table_names(schema=schema)
        if names and all((schema or default, name) in own for name in names):
            schemas.discard(schema)


def compare_log(
    context: AutogenContext, upgrade: ops.UpgradeOps, _schemas: Collection[str | None]
) -> None:
    """Remove what would change the log's own tables, and propose guards that are missing.

    Runs when Alembic has compared all tables.
    """
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    default, own = _find_default(connection), _list_own_tables(connection)
    upgrade.ops[:] = [one for one in upgrade.ops if _find_place(one, default) not in own]
    log = find_log(context.opts, connection)
    if log is not None and log.schema in list_log_schemas(connection):
        missing = list(_list_unguarded(context, upgrade, log, default=default))
        upgrade.ops.extend(_propose_guards(missing, log_schema=log.schema))


def _find_default(connection: Connection) -> str:
    """The schema of tables that Alembic names without one."""
    return connection.dialect.default_schema_name or "public"


def _list_own_tables(connection: Connection) -> set[Place]:
    names = list_table_names()
    return {
        (schema, name)
        for schema in list_log_schemas(connection)
        for name in (*names, *list_partition_names(connection, schema))
    }


def _find_place(operation: MigrateOperation, default: str) -> Place | None:
    """The table that an operation creates, drops or changes."""
    if isinstance(operation, (ops.CreateTableOp, ops.DropTableOp, ops.ModifyTableOps)):
        return operation.schema or default, operation.table_name
    return None


def _list_unguarded(
    context: AutogenContext, upgrade: ops.UpgradeOps, log: Oplog, *, default: str
) -> Iterator[tuple[str | None, str]]:
    """Tables of the catalog that are there, or will be, and that nobody tracks or untracks.

    As the models name them: without a schema where they have none.
    """
    connection: Connection = context.connection  # type: ignore[assignment]
    decided = {(one.schema, one.table) for one in list_declared_guards(connection, log.schema)}
    # Registered twice, as by a reload, this runs twice.
    decided |= {
        (one.schema or default, name)
        for one in upgrade.ops
        if isinstance(one, TrackTablesOp)
        for name in one.tables
    }
    made = {_find_place(one, default) for one in upgrade.ops if isinstance(one, ops.CreateTableOp)}
    compared = {(table.schema or default, table.name) for table in context.sorted_tables}
    for schema, name in list_catalog_tables(log):
        place = (schema or default, name)
        if place in decided or place not in compared:
            continue
        if place in made or context.inspector.has_table(name, schema=schema):
            yield schema, name


def _propose_guards(
    tables: Iterable[tuple[str | None, str]], *, log_schema: str
) -> list[TrackTablesOp]:
    """One operation for each schema."""
    by_schema: dict[str | None, list[str]] = {}
    for schema, name in tables:
        by_schema.setdefault(schema, []).append(name)
    return [
        TrackTablesOp(*sorted(names), schema=schema, bypass_role=None, log_schema=log_schema)
        for schema, names in sorted(by_schema.items(), key=lambda item: item[0] or "")
    ]


# -- in the text of a revision ----------------------------------------------------------------


def _print_call(name: str, *given: str, **named: str | int | None) -> str:
    """A call of an operation; members that are None or the default are left out."""
    defaults = {"schema": "oplog"} if name.endswith("_oplog") else {"log_schema": "oplog"}
    arguments = [repr(one) for one in given]
    arguments += [
        f"{key}={value!r}"
        for key, value in named.items()
        if value is not None and defaults.get(key) != value
    ]
    return f"op.{name}({', '.join(arguments)})"


def _print_track(_context: AutogenContext, operation: TrackTablesOp) -> str:
    return _print_call(
        "track_tables",
        *operation.tables,
        schema=operation.schema,
        bypass_role=operation.bypass_role,
        log_schema=operation.log_schema,
    )


def _print_untrack(_context: AutogenContext, operation: UntrackTablesOp) -> str:
    return _print_call(
        "untrack_tables",
        *operation.tables,
        reason=operation.reason,
        schema=operation.schema,
        log_schema=operation.log_schema,
    )


def _print_create(_context: AutogenContext, operation: CreateOplogOp) -> str:
    return _print_call("create_oplog", version=operation.version, schema=operation.schema)


def _print_upgrade(_context: AutogenContext, operation: UpgradeOplogOp) -> str:
    return _print_call("upgrade_oplog", version=operation.version, schema=operation.schema)


def _print_drop(_context: AutogenContext, operation: DropOplogOp) -> str:
    return _print_call("drop_oplog", schema=operation.schema)


def _print_retire(_context: AutogenContext, operation: RetireTypeOp) -> str:
    return _print_call(
        "retire_type",
        operation.type_name,
        reason=operation.reason,
        log_schema=operation.log_schema,
    )


def _print_adopt(_context: AutogenContext, operation: AdoptTableOp) -> str:
    return _print_call("adopt_table", operation.name, schema=operation.schema)


def _print_replace(_context: AutogenContext, operation: ReplaceTypeOp) -> str:
    return _print_call(
        "replace_type",
        operation.type_name,
        reason=operation.reason,
        log_schema=operation.log_schema,
    )


# -- registration -----------------------------------------------------------------------------


def register_autogenerate() -> None:
    """Have `compare_log` called after Alembic's own comparison, and operations printed.

    From Alembic 1.18 on functions have priorities: before that they are called in order.
    """
    priorities: Any = getattr(util, "DispatchPriority", None)
    if priorities is None:
        comparators.dispatch_for("schema")(compare_log)
    else:
        comparators.dispatch_for("schema", priority=priorities.FIRST)(hide_log)
        comparators.dispatch_for("schema", priority=priorities.LAST)(compare_log)
    renderers.dispatch_for(TrackTablesOp, replace=True)(_print_track)
    renderers.dispatch_for(UntrackTablesOp, replace=True)(_print_untrack)
    renderers.dispatch_for(CreateOplogOp, replace=True)(_print_create)
    renderers.dispatch_for(UpgradeOplogOp, replace=True)(_print_upgrade)
    renderers.dispatch_for(DropOplogOp, replace=True)(_print_drop)
    renderers.dispatch_for(RetireTypeOp, replace=True)(_print_retire)
    renderers.dispatch_for(AdoptTableOp, replace=True)(_print_adopt)
    renderers.dispatch_for(ReplaceTypeOp, replace=True)(_print_replace)
