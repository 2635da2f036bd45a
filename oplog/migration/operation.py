"""The log's tables and guards as Alembic operations: `op.create_oplog`, `op.track_tables` etc.

`import oplog.migration` in an `env.py` registers them. Operations work on names and statements
only; `op.adopt_table`, which needs a log, is given one. Statements reach the server exactly as
they were written, executed or printed by `--sql`: SQLAlchemy would read a colon as the start of
a parameter, the driver a percent sign, and the name of a schema may hold both.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from alembic.operations import MigrateOperation, Operations

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.facade import Oplog
from oplog.postgres.live_table import check_settings
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.tables import (
    VERSION,
    create_statements,
    drop_statements,
    retire_statement,
    track_statements,
    untrack_statements,
    upgrade_statements,
)
from oplog.store.version import require_comment


@Operations.register_operation("create_oplog")
class CreateOplogOp(MigrateOperation):
    """Create the log's tables."""

    def __init__(self, version: int, *, schema: str = "oplog") -> None:
        self.version = version
        self.schema = schema

    @classmethod
    def create_oplog(cls, operations: Operations, version: int, *, schema: str = "oplog") -> None:
        """Create the log's tables at schema `version` in `schema`, and the schema if need be.

        The version has no default: what a revision does must not change with the library.
        Raises `SchemaVersionError` for a version that this library cannot create, and
        `ConfigurationError` when the database is not PostgreSQL.
        """
        operations.invoke(cls(version, schema=schema))

    def reverse(self) -> DropOplogOp:
        """Return the operation that undoes this one."""
        return DropOplogOp(schema=self.schema, version=self.version)


@Operations.register_operation("upgrade_oplog")
class UpgradeOplogOp(MigrateOperation):
    """Bring the log's tables to the present definition of a schema version."""

    def __init__(self, version: int, *, schema: str = "oplog") -> None:
        self.version = version
        self.schema = schema

    @classmethod
    def upgrade_oplog(cls, operations: Operations, version: int, *, schema: str = "oplog") -> None:
        """Bring the log's tables in `schema` to this library's definition of `version`.

        For a log that an earlier library created. Replaces functions and triggers of the log, adds
        tables, columns, indexes and constraints that came later, and takes back rights that no
        role needs any more. Keeps everything that was logged, needs no lock on a table of the
        application, and changes nothing when it runs again. Writers of the log wait while it
        runs. Raises `SchemaVersionError` for a version that this library does not know, and where
        there is no log of that version.
        """
        operations.invoke(cls(version, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Raise `SchemaVersionError`: what was closed is not opened again."""
        raise SchemaVersionError(
            f"the upgrade of schema {self.schema!r} to version {self.version} cannot be undone",
            hint="leave it out of downgrade(): older libraries of this version work with it",
        )


@Operations.register_operation("drop_oplog")
class DropOplogOp(MigrateOperation):
    """Remove the log's tables with everything that is in them."""

    def __init__(self, *, schema: str = "oplog", version: int | None = None) -> None:
        self.schema = schema
        self.version = version

    @classmethod
    def drop_oplog(cls, operations: Operations, *, schema: str = "oplog") -> None:
        """Remove the log from `schema`: the tables, every entry in them, and an emptied schema.

        Tables of others in the same schema stay. What was logged is lost. Raises
        `ConfigurationError` when the database is not PostgreSQL.
        """
        operations.invoke(cls(schema=schema))

    def reverse(self) -> CreateOplogOp:
        """Return the operation that creates the tables anew, empty.

        Raises `SchemaVersionError` when it is not known which version was there.
        """
        if self.version is None:
            raise SchemaVersionError(
                f"which version of the log was dropped from schema {self.schema!r} is not known",
                hint=f"write op.create_oplog(version={VERSION}) into the revision",
            )
        return CreateOplogOp(self.version, schema=self.schema)


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
        log_schema: str = "oplog",
    ) -> None:
        """Guard the tables: what is not logged can no longer be committed.

        Names as they are, unquoted, in `schema` or found by the search path. Only members of
        `bypass_role`, if one is given, may let a transaction pass unlogged. Needs a short
        exclusive lock on each table; run again after adding partitions or changing keys.
        """
        operations.invoke(
            cls(*tables, schema=schema, bypass_role=bypass_role, log_schema=log_schema)
        )

    def reverse(self) -> UntrackTablesOp:
        """Return the operation that undoes this one."""
        return UntrackTablesOp(
            *self.tables, reason="downgrade", schema=self.schema, log_schema=self.log_schema
        )


@Operations.register_operation("untrack_tables")
class UntrackTablesOp(MigrateOperation):
    """Take guards from tables."""

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
                "untrack_tables needs a reason", hint="say why nothing guards the tables now"
            )
        operations.invoke(cls(*tables, reason=reason, schema=schema, log_schema=log_schema))

    def reverse(self) -> TrackTablesOp:
        """Return the operation that undoes this one."""
        return TrackTablesOp(
            *self.tables, schema=self.schema, bypass_role=None, log_schema=self.log_schema
        )


@Operations.register_operation("retire_type")
class RetireTypeOp(MigrateOperation):
    """Say that the table of a type is gone."""

    def __init__(self, type_name: str, *, reason: str, log_schema: str) -> None:
        self.type_name = type_name
        self.reason = reason
        self.log_schema = log_schema

    @classmethod
    def retire_type(
        cls,
        operations: Operations,
        type_name: str,
        *,
        reason: str,
        log_schema: str = "oplog",
    ) -> None:
        """Say in the log that the table of `type_name` is gone, and all its rows with it.

        For a table that a migration drops, renames or moves, in the same revision: from then on
        replay, verify and restore do without it. What was logged before stays readable. Rows
        that go on under another name are a new type: `op.adopt_table`. Raises
        `ConfigurationError` for an empty reason.
        """
        if not reason.strip():
            raise ConfigurationError(
                "retire_type needs a reason", hint="say what became of the table"
            )
        operations.invoke(cls(type_name, reason=reason, log_schema=log_schema))

    def reverse(self) -> MigrateOperation:
        """Raise `ConfigurationError`: what is in the log stays there."""
        raise ConfigurationError(
            f"the retirement of type {self.type_name!r} cannot be undone: the log is append-only",
            hint="leave it out of downgrade(); rows that are logged again count from then on",
        )


@Operations.implementation_for(RetireTypeOp)
def _retire(operations: Operations, operation: RetireTypeOp) -> None:
    statement = retire_statement(
        operation.type_name, reason=operation.reason, schema=operation.log_schema
    )
    _emit(operations, [statement])


@Operations.implementation_for(TrackTablesOp)
def _track(operations: Operations, operation: TrackTablesOp) -> None:
    names = qualify(operation.tables, operation.schema)
    role = operation.bypass_role
    _emit(operations, track_statements(names, bypass_role=role, schema=operation.log_schema))


@Operations.implementation_for(UntrackTablesOp)
def _untrack(operations: Operations, operation: UntrackTablesOp) -> None:
    names = qualify(operation.tables, operation.schema)
    reason = operation.reason
    _emit(operations, untrack_statements(names, reason=reason, schema=operation.log_schema))


@Operations.implementation_for(CreateOplogOp)
def _create(operations: Operations, operation: CreateOplogOp) -> None:
    _emit(operations, create_statements(operation.schema, operation.version))


@Operations.implementation_for(UpgradeOplogOp)
def _upgrade(operations: Operations, operation: UpgradeOplogOp) -> None:
    statements = upgrade_statements(operation.schema, operation.version)
    context = operations.migration_context
    if not context.as_sql and context.dialect.name == "postgresql":
        # The first statement asks the same; here the error says more.
        require_comment(operations.get_bind(), operation.schema, version=operation.version)
    _emit(operations, statements)


@Operations.implementation_for(DropOplogOp)
def _drop(operations: Operations, operation: DropOplogOp) -> None:
    _emit(operations, drop_statements(operation.schema))


# -- adoption ---------------------------------------------------------------------------------


@Operations.register_operation("adopt_table")
class AdoptTableOp(MigrateOperation):
    """Log the rows that a table has."""

    def __init__(self, name: str, *, schema: str | None = None, log: Oplog | None = None) -> None:
        self.name = name
        self.schema = schema
        self.log = log

    @classmethod
    def adopt_table(
        cls,
        operations: Operations,
        name: str,
        *,
        schema: str | None = None,
        log: Oplog | None = None,
    ) -> None:
        """Log the rows that table `name` has, so that the log tells of them from now on.

        In the migration's transaction: writers of the table wait until that ends. `name` may
        also be the name of a type. The log is `log`, or what `context.configure(oplog=...)`
        was given, or what the engine is attached to. Raises `ConfigurationError` without one,
        and in a migration that is printed as SQL: its rows are not known there.
        """
        operations.invoke(cls(name, schema=schema, log=log))

    def reverse(self) -> MigrateOperation:
        """Raise `ConfigurationError`: what is in the log stays there."""
        raise ConfigurationError(
            f"the adoption of {self.name} cannot be undone: the log is append-only",
            hint="leave it out of downgrade(); adopting again does nothing",
        )


@Operations.implementation_for(AdoptTableOp)
def _adopt(operations: Operations, operation: AdoptTableOp) -> None:
    context = operations.migration_context
    name = operation.name if operation.schema is None else f"{operation.schema}.{operation.name}"
    if context.as_sql:
        raise ConfigurationError(
            f"the rows of {name} cannot be adopted by SQL that is printed",
            hint="run this revision online, or take the line out and run: oplog adopt "
            f"{shlex.quote(name)}",
        )
    connection = operations.get_bind()
    log = operation.log or context.opts.get("oplog") or connection.info.get("oplog.log")
    if not isinstance(log, Oplog):
        raise ConfigurationError(
            f"op.adopt_table({operation.name!r}) does not know the log",
            hint="write in env.py: context.configure(connection=connection, ..., oplog=log)",
        )
    log.adopt(connection, [name])


def _emit(operations: Operations, statements: Iterable[str]) -> None:
    """Run the statements, or print them, untouched by anything that looks for parameters."""
    context = operations.migration_context
    if context.dialect.name != "postgresql":
        raise ConfigurationError(
            f"the log lives in PostgreSQL, this migration runs on {context.dialect.name}",
            hint="keep the log's revisions in the environment of the PostgreSQL database",
        )
    if not context.as_sql:
        check_settings(operations.get_bind())
    for statement in statements:
        if context.as_sql:
            context.impl.static_output(statement + context.impl.command_terminator)
        else:
            operations.get_bind().exec_driver_sql(
                statement, execution_options={"no_parameters": True}
            )


def migrations_path() -> Path:
    """Directory of the log's own Alembic environment, to be used as `script_location`.

    It holds `alembic.ini`, too. Raises `ConfigurationError` when the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    # Installed first: beside an installed package, `migrations` would be somebody else's.
    for directory in (package / "_migrations", package.parent / "migrations"):
        if (directory / "versions" / "0001_create_oplog.py").is_file():
            return directory
    raise ConfigurationError(
        f"the Alembic environment of oplog is not beside the package in {package}",
        hint="install oplog from its wheel, or run from a checkout of its repository",
    )


__all__ = [
    "AdoptTableOp",
    "CreateOplogOp",
    "DropOplogOp",
    "RetireTypeOp",
    "TrackTablesOp",
    "UntrackTablesOp",
    "UpgradeOplogOp",
    "migrations_path",
]
