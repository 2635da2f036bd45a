"""Operations that log the rows of a table: `op.adopt_table` and `op.replace_type`.

They need a log, which they are given or find, and they read rows, so SQL that is printed cannot do
their work.
"""

from __future__ import annotations

import shlex

from alembic.operations import MigrateOperation, Operations

from oplog.errors import ConfigurationError
from oplog.facade import Oplog
from oplog.migration.given_log import find_log


@Operations.register_operation("adopt_table")
class AdoptTableOp(MigrateOperation):
    """Log the rows that are in a table."""

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
        """Log the rows that are in table `name`.

        Runs in the migration's transaction: writers of the table wait until that ends. `name`
        may also be the name of a type. The log is `log`, or that given to
        `context.configure(oplog=...)`, or the one attached to the engine. Raises
        `ConfigurationError` without a log, and in a migration that is printed as SQL, which
        cannot read the rows.
        """
        operations.invoke(cls(name, schema=schema, log=log))

    def reverse(self) -> MigrateOperation:
        """Raise `ConfigurationError`: the log is append-only."""
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
            hint="run this revision online, or remove the line and run: oplog adopt "
            f"{shlex.quote(name)}",
        )
    log = _require_log(operations, operation.log, line=f"op.adopt_table({operation.name!r})")
    log.adopt(operations.get_bind(), [name])


@Operations.register_operation("replace_type")
class ReplaceTypeOp(MigrateOperation):
    """Log that another table has taken the place of a type's."""

    def __init__(
        self,
        type_name: str,
        *,
        reason: str,
        log_schema: str | None = None,
        log: Oplog | None = None,
    ) -> None:
        self.type_name = type_name
        self.reason = reason
        self.log_schema = log_schema
        self.log = log

    @classmethod
    def replace_type(
        cls,
        operations: Operations,
        type_name: str,
        *,
        reason: str,
        log_schema: str | None = None,
        log: Oplog | None = None,
    ) -> None:
        """Log that another table has taken the place of that of `type_name`, with its rows.

        For what the database does not prove: a table that was made anew under the name of one that
        was dropped, or that got another primary key. The rows that the log has are gone from here
        on, and those of the table as it is now are logged. Runs in the migration's transaction:
        writers of the table wait until that ends. The log is found as by `op.adopt_table`;
        `log_schema`, if it is given, must be its schema. Raises `ConfigurationError` for an empty
        reason, without a log, and in a migration that is printed as SQL.
        """
        if not reason.strip():
            raise ConfigurationError(
                "replace_type needs a reason", hint="say why another table took this one's place"
            )
        operations.invoke(cls(type_name, reason=reason, log_schema=log_schema, log=log))

    def reverse(self) -> MigrateOperation:
        """Raise `ConfigurationError`: the log is append-only."""
        raise ConfigurationError(
            f"the replacement of type {self.type_name!r} cannot be undone: the log is append-only",
            hint="leave it out of downgrade(), or write op.replace_type there as well",
        )


@Operations.implementation_for(ReplaceTypeOp)
def _replace(operations: Operations, operation: ReplaceTypeOp) -> None:
    name = operation.type_name
    if operations.migration_context.as_sql:
        raise ConfigurationError(
            f"the rows of type {name!r} cannot be logged by SQL that is printed",
            hint="run this revision online, or remove the line and run afterwards: oplog adopt "
            f"--again {shlex.quote(name)}",
        )
    log = _require_log(operations, operation.log, line=f"op.replace_type({name!r})")
    if operation.log_schema not in (None, log.schema):
        raise ConfigurationError(
            f"op.replace_type({name!r}) is for the log in schema {operation.log_schema!r}, and the "
            f"one that it was given is in {log.schema!r}",
            hint="pass that log: op.replace_type(..., log=log)",
        )
    log.replace_type(operations.get_bind(), name, reason=operation.reason)


def _require_log(operations: Operations, given: Oplog | None, *, line: str) -> Oplog:
    found = given or find_log(operations.migration_context.opts, operations.get_bind())
    if found is None:
        raise ConfigurationError(
            f"{line} does not know the log",
            hint="pass it in env.py: context.configure(connection=connection, ..., oplog=log)",
        )
    return found
