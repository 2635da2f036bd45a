"""Asks the database what became of a type's table, and keeps what the next change is compared with.

Takes a connection, the log's schema and shapes; see `oplog.schema.type_changes`.
"""

from __future__ import annotations

import json

from sqlalchemy.engine import Connection

from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.quoting import quote_for_driver

_ASKED = (
    "oplog_describe_change",
    "oplog_find_database",
    "oplog_is_retired",
    "oplog_list_files",
)
"""Functions that a role executes which asks for a change."""


def describe_change(
    connection: Connection, schema: str, shape: Shape, *, table: int
) -> SchemaChange | None:
    """What became of rows of the newest stored revision if the table with this oid has the shape.

    None if the role may not ask.
    """
    allowed = connection.exec_driver_sql(
        "SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) "
        "FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = %s AND p.proname = ANY (%s::text[])",
        (schema, list(_ASKED)),
    ).scalar_one()
    if not allowed:
        return None
    found = connection.exec_driver_sql(
        f"SELECT {quote_for_driver(schema)}.oplog_describe_change("
        "%s, %s::jsonb, %s::bigint::oid)::text",
        (shape.type_name, json.dumps(shape.to_json()), table),
    ).scalar_one()
    return SchemaChange.from_json(json.loads(found))


def keep_state(connection: Connection, schema: str, type_name: str, *, table: int) -> None:
    """Keep what the next change of the table is compared with."""
    connection.exec_driver_sql(
        f"SELECT {quote_for_driver(schema)}.oplog_keep_state(%s, %s::bigint::oid)",
        (type_name, table),
    )
