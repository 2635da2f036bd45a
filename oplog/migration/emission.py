"""Sends the statements of an operation, or prints them.

They reach the server exactly as they were written, executed or printed by `--sql`: SQLAlchemy
would read a colon as the start of a parameter, the driver a percent sign, and the name of a schema
may hold both.
"""

from __future__ import annotations

from collections.abc import Iterable

from alembic.operations import Operations

from oplog.errors import ConfigurationError
from oplog.postgres.live_table import check_settings


def emit(operations: Operations, statements: Iterable[str]) -> None:
    """Run or print the statements without any processing of parameters."""
    context = operations.migration_context
    if context.dialect.name != "postgresql":
        raise ConfigurationError(
            f"the log needs PostgreSQL, but this migration runs on {context.dialect.name}",
            hint="put the log's revisions into the environment of the PostgreSQL database",
        )
    # Some settings, such as standard_conforming_strings = off, change the meaning of the SQL.
    if not context.as_sql:
        check_settings(operations.get_bind())
    for statement in statements:
        if context.as_sql:
            context.impl.static_output(statement + context.impl.command_terminator)
        else:
            operations.get_bind().exec_driver_sql(
                statement, execution_options={"no_parameters": True}
            )
