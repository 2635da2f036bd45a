"""The log's tables and types as Alembic operations: `op.create_oplog`, `op.retire_type` etc.

`import oplog.migration` in an `env.py` registers them. They work on names and statements only.
"""

from __future__ import annotations

from pathlib import Path

from alembic.operations import MigrateOperation, Operations

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.migration.emission import emit
from oplog.schema.tables import (
    VERSION,
    create_statements,
    drop_statements,
    retire_statement,
    upgrade_statements,
)
from oplog.store.version import require_comment, require_free


@Operations.register_operation("create_oplog")
class CreateOplogOp(MigrateOperation):
    """Create the log's tables."""

    def __init__(self, version: int, *, schema: str = "oplog") -> None:
        self.version = version
        self.schema = schema

    @classmethod
    def create_oplog(cls, operations: Operations, version: int, *, schema: str = "oplog") -> None:
        """Create the log's tables of `version` in `schema`, and the schema if it is missing.

        The version has no default: the effect of a revision must not change with the library.
        Raises `SchemaVersionError` for a version that this library cannot create and for a schema
        that has a log already, and `ConfigurationError` when the database is not PostgreSQL.
        """
        operations.invoke(cls(version, schema=schema))

    def reverse(self) -> DropOplogOp:
        """Return the operation that undoes this one."""
        return DropOplogOp(schema=self.schema, version=self.version)


@Operations.register_operation("upgrade_oplog")
class UpgradeOplogOp(MigrateOperation):
    """Upgrade the log's tables to the current definition of a schema version."""

    def __init__(self, version: int, *, schema: str = "oplog") -> None:
        self.version = version
        self.schema = schema

    @classmethod
    def upgrade_oplog(cls, operations: Operations, version: int, *, schema: str = "oplog") -> None:
        """Upgrade the log's tables in `schema` to this library's definition of `version`.

        For a log that an earlier library created. Replaces functions and triggers of the log, adds
        newer tables, columns, indexes and constraints, and revokes privileges that no role needs
        any more. Keeps everything that was logged, takes no lock on a table of the application,
        and changes nothing when it runs again. Writers of the log wait while it runs. Raises
        `SchemaVersionError` for a version that this library does not know, and if the schema does
        not hold a log of that version.
        """
        operations.invoke(cls(version, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Raise `SchemaVersionError`: an upgrade cannot be undone."""
        raise SchemaVersionError(
            f"the upgrade of schema {self.schema!r} to version {self.version} cannot be undone",
            hint="leave it out of downgrade(): older libraries of this version work with it",
        )


@Operations.register_operation("drop_oplog")
class DropOplogOp(MigrateOperation):
    """Drop the log's tables and everything in them."""

    def __init__(self, *, schema: str = "oplog", version: int | None = None) -> None:
        self.schema = schema
        self.version = version

    @classmethod
    def drop_oplog(cls, operations: Operations, *, schema: str = "oplog") -> None:
        """Drop the log from `schema`: its tables, every entry, and the schema if that is empty.

        Other tables in the schema stay. Everything that was logged is lost. Raises
        `ConfigurationError` when the database is not PostgreSQL.
        """
        operations.invoke(cls(schema=schema))

    def reverse(self) -> CreateOplogOp:
        """Return the operation that creates the tables again, empty.

        Raises `SchemaVersionError` when the dropped version is not known.
        """
        if self.version is None:
            raise SchemaVersionError(
                f"the version of the log that was dropped from schema {self.schema!r} is not known",
                hint=f"write op.create_oplog(version={VERSION}) into the revision",
            )
        return CreateOplogOp(self.version, schema=self.schema)


@Operations.register_operation("retire_type")
class RetireTypeOp(MigrateOperation):
    """Log that the table of a type is gone."""

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
        """Log that the table of `type_name` is gone, and all its rows with it.

        For a table that a migration drops, renames or moves, in the same revision: from then on
        replay, verify and restore ignore it. Earlier entries stay readable. Rows that continue
        under another name are a new type: `op.adopt_table`. Raises `ConfigurationError` for an
        empty reason.
        """
        if not reason.strip():
            raise ConfigurationError(
                "retire_type needs a reason", hint="say what became of the table"
            )
        operations.invoke(cls(type_name, reason=reason, log_schema=log_schema))

    def reverse(self) -> MigrateOperation:
        """Raise `ConfigurationError`: the log is append-only."""
        raise ConfigurationError(
            f"the retirement of type {self.type_name!r} cannot be undone: the log is append-only",
            hint="leave it out of downgrade(); rows logged later count from then on",
        )


@Operations.implementation_for(RetireTypeOp)
def _retire(operations: Operations, operation: RetireTypeOp) -> None:
    statement = retire_statement(
        operation.type_name, reason=operation.reason, schema=operation.log_schema
    )
    emit(operations, [statement])


@Operations.implementation_for(CreateOplogOp)
def _create(operations: Operations, operation: CreateOplogOp) -> None:
    statements = create_statements(operation.schema, operation.version)
    context = operations.migration_context
    if not context.as_sql and context.dialect.name == "postgresql":
        # The first statement checks the same; an error raised here has a better message.
        require_free(operations.get_bind(), operation.schema)
    emit(operations, statements)


@Operations.implementation_for(UpgradeOplogOp)
def _upgrade(operations: Operations, operation: UpgradeOplogOp) -> None:
    statements = upgrade_statements(operation.schema, operation.version)
    context = operations.migration_context
    if not context.as_sql and context.dialect.name == "postgresql":
        # The first statement checks the same; an error raised here has a better message.
        require_comment(operations.get_bind(), operation.schema, version=operation.version)
    emit(operations, statements)


@Operations.implementation_for(DropOplogOp)
def _drop(operations: Operations, operation: DropOplogOp) -> None:
    emit(operations, drop_statements(operation.schema))


def migrations_path() -> Path:
    """Return the directory of the log's own Alembic environment, a `script_location`.

    It also holds `alembic.ini`. Raises `ConfigurationError` when the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    # The installed directory first: `migrations` beside an installed package would belong to
    # another project.
    for directory in (package / "_migrations", package.parent / "migrations"):
        if (directory / "versions" / "0001_create_oplog.py").is_file():
            return directory
    raise ConfigurationError(
        f"the Alembic environment of oplog is not beside the package in {package}",
        hint="install oplog from its wheel, or run from a checkout of its repository",
    )


__all__ = [
    "CreateOplogOp",
    "DropOplogOp",
    "RetireTypeOp",
    "UpgradeOplogOp",
    "migrations_path",
]
