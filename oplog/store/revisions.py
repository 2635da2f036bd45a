"""The log's types: every revision, and where each database keeps its columns.

Takes a connection and shapes. A revision is stored once and its numbers once for each database:
a restored one keeps the same revision's columns elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.errors import SchemaDriftError
from oplog.payload.column_numbers import Numbers
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.sqlstate import read_sqlstate
from oplog.schema.registering import NOT_PROVEN


def list_types(connection: Connection, s: str) -> list[Shape]:
    """Every revision in the quoted schema `s`, revisions of a type rising."""
    rows = connection.exec_driver_sql(
        f"SELECT t.type_name, t.revision, t.shape::text, t.descriptor, t.change::text, (SELECT "
        "pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(n.database_id, n.table_oid, n.columns) "
        f"ORDER BY n.created_at, n.database_id)::text FROM {s}.oplog_type_numbers n "
        "WHERE n.type_name = t.type_name AND n.revision = t.revision) "
        f"FROM {s}.oplog_type t ORDER BY t.type_name, t.revision"
    )
    return [
        Shape.from_json(
            name,
            revision,
            shape=json.loads(shape),
            descriptor=bytes(descriptor),
            numbers=[Numbers(*one) for one in json.loads(numbers or "[]")],
            change=SchemaChange.from_json(json.loads(change)),
        )
        for name, revision, shape, descriptor, change, numbers in rows
    ]


def insert_type(connection: Connection, s: str, shape: Shape) -> bool:
    """Store what of a revision and its numbers is not there yet; False if nothing was new."""
    done = connection.exec_driver_sql(
        f"INSERT INTO {s}.oplog_type (type_name, revision, shape, descriptor, change) "
        "VALUES (%s, %s, %s::jsonb, %b, %s::jsonb) ON CONFLICT DO NOTHING",
        (
            shape.type_name,
            shape.revision,
            json.dumps(shape.to_json()),
            shape.descriptor,
            json.dumps(shape.change.to_json()),
        ),
    )
    new = done.rowcount
    for numbers in shape.numbers:
        done = connection.exec_driver_sql(
            f"INSERT INTO {s}.oplog_type_numbers "
            "(type_name, revision, database_id, table_oid, columns) "
            "VALUES (%s, %s, %s, %s, %s::jsonb) ON CONFLICT DO NOTHING",
            (
                shape.type_name,
                shape.revision,
                numbers.database,
                numbers.table,
                json.dumps(dict(numbers.columns)),
            ),
        )
        new += done.rowcount
    return new > 0


def register_type(connection: Connection, s: str, shape: Shape) -> bool:
    """Store a revision of a table of this database; False if another process has stored one first.

    The database reads the columns' numbers from its catalog, and compares the shape with it.
    `SchemaDriftError` if it cannot tell what became of the type's rows.
    """
    try:
        done = connection.exec_driver_sql(
            f"SELECT {s}.oplog_register_type(%s, %s, %s::jsonb, %b)",
            (shape.type_name, shape.revision, json.dumps(shape.to_json()), shape.descriptor),
        )
    except DBAPIError as cause:
        if read_sqlstate(cause) != NOT_PROVEN:
            raise
        said: Any = cause.orig
        raise SchemaDriftError(said.diag.message_primary, hint=said.diag.message_hint) from cause
    return bool(done.scalar_one())
