"""Guards as Alembic operations: `op.track_tables` and `op.untrack_tables`."""

from __future__ import annotations

from alembic.operations import MigrateOperation, Operations

from oplog.errors import ConfigurationError
from oplog.facade import Oplog
from oplog.migration.emission import emit
from oplog.migration.given_log import find_given_log, list_catalog_tables
from oplog.postgres.quoting import qualify
from oplog.schema.tables import track_statements, untrack_statements


@Operations.register_operation("track_tables")
class TrackTablesOp(MigrateOperation):
    """Put guards on tables."""

    def __init__(
        self, *tables: str, schema: str | None, bypass_role: str | None, log_schema: str
    ) -> None:
        self.tables = tables
        self.schema = schema
        self.bypass_role = bypass_role
        self.log_schema = log_schema

    @classmethod
    def track_tables(
        cls,
        operations: Operations,
        *tables: str,
        schema: str | None = None,
        bypass_role: str | None = None,
        log_schema: str | None = None,
        log: Oplog | None = None,
    ) -> None:
        """Guard the tables: a change that is not logged can no longer be committed.

        Names are given unquoted, and are looked up in `schema` or by the search path. Without
        names they are all tables of the catalog of `log`, or of the log given to
        `context.configure(oplog=...)`. Only members of `bypass_role`, if one is given, may
        commit unlogged changes. Takes a short exclusive lock on each table. Run it again after
        adding partitions or changing keys. Raises `ConfigurationError` without names and
        without a log.
        """
        if tables:
            operations.invoke(
                cls(
                    *tables,
                    schema=schema,
                    bypass_role=bypass_role,
                    log_schema=log_schema or "oplog",
                )
            )
            return
        found = log or find_given_log(operations)
        if found is None:
            raise ConfigurationError(
                "op.track_tables() is given no table, and no log that could name them",
                hint="name the tables, or pass the log in env.py: "
                "context.configure(connection=connection, ..., oplog=log)",
            )
        for place, name in list_catalog_tables(found):
            if schema is None or schema == place:
                operations.invoke(
                    cls(
                        name,
                        schema=place,
                        bypass_role=bypass_role,
                        log_schema=log_schema or found.schema,
                    )
                )

    def to_diff_tuple(self) -> tuple[str, ...]:
        """How `alembic check` shows that guards are missing."""
        return ("track_tables", *self.tables)

    def reverse(self) -> UntrackTablesOp:
        """Return the operation that undoes this one."""
        return UntrackTablesOp(
            *self.tables, reason="downgrade", schema=self.schema, log_schema=self.log_schema
        )


@Operations.register_operation("untrack_tables")
class UntrackTablesOp(MigrateOperation):
    """Remove guards from tables."""

    def __init__(self, *tables: str, reason: str, schema: str | None, log_schema: str) -> None:
        self.tables = tables
        self.reason = reason
        self.schema = schema
        self.log_schema = log_schema

    @classmethod
    def untrack_tables(
        cls,
        operations: Operations,
        *tables: str,
        reason: str,
        schema: str | None = None,
        log_schema: str = "oplog",
    ) -> None:
        """Remove the tables' guards; `oplog doctor` shows the reason from then on.

        Raises `ConfigurationError` for an empty reason.
        """
        if not reason.strip():
            raise ConfigurationError(
                "untrack_tables needs a reason", hint="say why the tables are no longer guarded"
            )
        operations.invoke(cls(*tables, reason=reason, schema=schema, log_schema=log_schema))

    def reverse(self) -> TrackTablesOp:
        """Return the operation that undoes this one."""
        return TrackTablesOp(
            *self.tables, schema=self.schema, bypass_role=None, log_schema=self.log_schema
        )


@Operations.implementation_for(TrackTablesOp)
def _track(operations: Operations, operation: TrackTablesOp) -> None:
    names = qualify(operation.tables, operation.schema)
    role = operation.bypass_role
    emit(operations, track_statements(names, bypass_role=role, schema=operation.log_schema))


@Operations.implementation_for(UntrackTablesOp)
def _untrack(operations: Operations, operation: UntrackTablesOp) -> None:
    names = qualify(operation.tables, operation.schema)
    reason = operation.reason
    emit(operations, untrack_statements(names, reason=reason, schema=operation.log_schema))
