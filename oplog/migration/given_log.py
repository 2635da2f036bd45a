"""The log that a migration was given, and the tables of its catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic.operations import Operations
from sqlalchemy.engine import Connection

from oplog.facade import Oplog


def find_log(options: Mapping[str, Any], connection: Connection | None) -> Oplog | None:
    """The log given to `context.configure(oplog=...)`, or the one attached to the engine."""
    found = options.get("oplog")
    if found is None and connection is not None:
        found = connection.info.get("oplog.log")
    return found if isinstance(found, Oplog) else None


def find_given_log(operations: Operations) -> Oplog | None:
    """The same for operations; the engine is not asked when they are printed."""
    context = operations.migration_context
    return find_log(context.opts, None if context.as_sql else operations.get_bind())


def list_catalog_tables(log: Oplog) -> list[tuple[str | None, str]]:
    """Schema, as the models give it, and name of each logged table, sorted."""
    tables = {(one.table.schema, one.table.name) for one in log.catalog.types.values()}
    return sorted(tables, key=lambda place: (place[0] or "", place[1]))
