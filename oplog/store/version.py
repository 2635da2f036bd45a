"""The comment on the record table: the schema's version, and whether a restore is under way.

A restore must be visible to every application before its first row is there, and the transaction
that ends it removes the mark.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.errors import SchemaVersionError
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.schema.tables import (
    BEING_RESTORED,
    COMMENT_PREFIX,
    VERSION,
)
from oplog.schema.upgrade import OTHER_DEFINITION, OTHER_REMEDY, has_other_definition


def read_comment(connection: Connection, schema: str) -> str:
    """The comment; empty where there is no table, or nothing is said of it."""
    comment = connection.exec_driver_sql(
        "SELECT pg_catalog.obj_description(pg_catalog.to_regclass(%s), 'pg_class')",
        (f"{quote(schema)}.oplog_record",),
    ).scalar()
    return str(comment or "")


def require_free(connection: Connection, schema: str) -> None:
    """Raise `SchemaVersionError` if there are tables of a log in the schema."""
    refuse_other_definition(connection, schema)
    found = parse_version(read_comment(connection, schema))
    if found is not None:
        where = "" if schema == "oplog" else f", schema={schema!r}"
        raise SchemaVersionError(
            f"schema {schema!r} of this database has a log of schema version {found} already",
            hint="leave the line out; to bring that log to its present definition write "
            f"op.upgrade_oplog(version={found}{where})",
        )


def refuse_other_definition(connection: Connection, schema: str) -> None:
    """Raise `SchemaVersionError` for tables of a log that no released library created."""
    other = connection.exec_driver_sql(
        f"SELECT {has_other_definition('%s')}", (f"{quote(schema)}.oplog_entry",)
    ).scalar_one()
    if other:
        raise SchemaVersionError(
            f"schema {schema!r} of this database has the tables of {OTHER_DEFINITION}",
            hint=OTHER_REMEDY,
        )


def list_log_schemas(connection: Connection) -> list[str]:
    """The schemas of this database that hold a log, of whatever version."""
    rows = connection.exec_driver_sql(
        "SELECT n.nspname::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relname = 'oplog_record' AND c.relkind IN ('r', 'p') AND pg_catalog.starts_with("
        "pg_catalog.obj_description(c.oid, 'pg_class'), %s::text) ORDER BY 1",
        (COMMENT_PREFIX,),
    )
    return list(rows.scalars())


def parse_version(comment: str) -> int | None:
    """The schema version; None if the comment is somebody else's."""
    if not comment.startswith(COMMENT_PREFIX):
        return None
    number = comment[len(COMMENT_PREFIX) :].removesuffix(BEING_RESTORED)
    return int(number) if number.isdecimal() else None


def says_restoring(comment: str) -> bool:
    """Whether a restore was begun and has not finished."""
    return comment.endswith(BEING_RESTORED)


def require_comment(connection: Connection, schema: str, *, version: int) -> None:
    """Raise `SchemaVersionError` unless a log of this version is there and not being restored."""
    comment = read_comment(connection, schema)
    found = parse_version(comment)
    where = "" if schema == "oplog" else f", schema={schema!r}"
    if found is None:
        refuse_other_definition(connection, schema)
        raise SchemaVersionError(
            f"schema {schema!r} of this database has no oplog tables to upgrade",
            hint=f"write op.create_oplog(version={version}{where})",
        )
    if found != version:
        raise SchemaVersionError(
            f"the oplog tables are at schema version {found}, and this is the upgrade of {version}",
            hint=f"write op.upgrade_oplog(version={found}{where}), with a library that knows it",
        )
    if says_restoring(comment):
        raise SchemaVersionError(
            "this database is being restored, and the restore has not finished",
            hint="wait for its end; if it was interrupted, run the restore again",
        )


def require_version(comment: str, schema: str) -> None:
    """Raise `SchemaVersionError` with the exact line to add unless a log is current and whole."""
    found = parse_version(comment)
    where = "" if schema == "oplog" else f", schema={schema!r}"
    if found is None:
        raise SchemaVersionError(
            f"schema {schema!r} of this database has no oplog tables",
            hint=f"add this line to a migration: op.create_oplog(version={VERSION}{where})",
        )
    if found < VERSION:
        raise SchemaVersionError(
            f"the oplog tables are at schema version {found}, this library needs {VERSION}",
            hint=f"add this line to a migration: op.upgrade_oplog(version={VERSION}{where})",
        )
    if found > VERSION:
        raise SchemaVersionError(
            f"the oplog tables are at schema version {found}, this library knows {VERSION}",
            hint="upgrade the oplog package in this application",
        )
    if says_restoring(comment):
        raise SchemaVersionError(
            "this database is being restored, and the restore has not finished",
            hint="wait for its end; if it was interrupted, run the restore again, which "
            "starts anew",
        )


def write_comment(connection: Connection, schema: str, *, version: int, restoring: bool) -> None:
    """Say which version the tables have, and whether they are being restored."""
    text = f"{COMMENT_PREFIX}{version}{BEING_RESTORED if restoring else ''}"
    connection.exec_driver_sql(
        f"COMMENT ON TABLE {quote(schema)}.oplog_record IS {quote_literal(text)}",
        execution_options={"no_parameters": True},
    )
