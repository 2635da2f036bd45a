"""What each role around a log needs: the statements that grant it.

Pure text. Nobody is given more than the role needs. No role but the owner writes a table of the
log: the others execute functions, each of which checks what it is given. Every table and function
is named, so that what stands beside the log in its schema is not given with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from oplog.postgres.quoting import quote, quote_literal
from oplog.schema.expected import list_log_tables
from oplog.schema.locks import LOCK_TABLES
from oplog.schema.rights import (
    APPLICATION_EXECUTES,
    CONSUMER_EXECUTES,
    READER_EXECUTES,
    WORKER_EXECUTES,
)


class RoleKind(StrEnum):
    """What a role is for."""

    APPLICATION = "application"
    """Writes its tables, and with them the log."""
    WORKER = "worker"
    """Publishes the log to an archive."""
    CONSUMER = "consumer"
    """Consumes the log with `log.subscribe`."""
    AUDITOR = "auditor"
    """Reads the log."""
    OWNER = "owner"
    """Creates the log, guards tables, adopts, prunes and quarantines."""
    RESTORER = "restorer"
    """Restores a database from an archive, or follows one, as a member of the owner."""


_EXECUTES = {
    RoleKind.APPLICATION: APPLICATION_EXECUTES,
    RoleKind.WORKER: WORKER_EXECUTES,
    RoleKind.CONSUMER: CONSUMER_EXECUTES,
    RoleKind.AUDITOR: READER_EXECUTES,
}


@dataclass(frozen=True, slots=True)
class GrantsReport:
    """The SQL that gives `role` what a role of its `kind` needs."""

    kind: RoleKind
    role: str
    statements: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "kind": self.kind.value,
            "role": self.role,
            "statements": list(self.statements),
        }


def report_grants(
    role: str, kind: RoleKind, *, schema: str, tables: Iterable[tuple[str | None, str]] = ()
) -> GrantsReport:
    """`list_grants` with what was asked."""
    return GrantsReport(kind, role, tuple(list_grants(role, kind, schema=schema, tables=tables)))


def list_grants(
    role: str, kind: RoleKind, *, schema: str, tables: Iterable[tuple[str | None, str]] = ()
) -> Iterator[str]:
    """The statements for `role`; `tables`, by schema and name, are those it reads besides.

    A table without a schema is taken to be in public.
    """
    named = [(table_schema or "public", table) for table_schema, table in tables]
    if kind is RoleKind.OWNER:
        yield from _list_owner_grants(quote(role), named)
    elif kind is RoleKind.RESTORER:
        yield _grant_owner(quote(role), schema)
    else:
        yield from _list_reader_grants(quote(role), kind, schema=schema, named=named)


def _list_reader_grants(
    whom: str, kind: RoleKind, *, schema: str, named: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """For roles that read all of the log, and write it by functions."""
    s = quote(schema)
    yield f"GRANT USAGE ON SCHEMA {s} TO {whom};"
    tables_read = (name for name in list_log_tables(schema) if name not in LOCK_TABLES)
    read = ", ".join(f"{s}.{name}" for name in tables_read)
    yield f"GRANT SELECT ON {read} TO {whom};"
    functions = ", ".join(f"{s}.oplog_{name}" for name in _EXECUTES[kind])
    if functions:
        yield f"GRANT EXECUTE ON FUNCTION {functions} TO {whom};"
    for table_schema, table in named:
        yield f"GRANT SELECT ON {quote(table_schema)}.{quote(table)} TO {whom};"
    for table_schema in sorted({table_schema for table_schema, _ in named}):
        yield f"GRANT USAGE ON SCHEMA {quote(table_schema)} TO {whom};"
        # A snapshot holds where sequences stand.
        yield f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA {quote(table_schema)} TO {whom};"


def _list_owner_grants(whom: str, named: Sequence[tuple[str, str]]) -> Iterator[str]:
    grant = f"EXECUTE pg_catalog.concat('GRANT CREATE ON DATABASE ', {_DATABASE}, {_to(whom)});"
    yield f"DO $oplog_do$ BEGIN {grant} END $oplog_do$;"
    for table_schema in sorted({table_schema for table_schema, _ in named}):
        yield f"GRANT USAGE, CREATE ON SCHEMA {quote(table_schema)} TO {whom};"
    for table_schema, table in named:
        # Only the owner of a table can keep its guard's triggers enabled.
        yield f"ALTER TABLE {quote(table_schema)}.{quote(table)} OWNER TO {whom};"


def _grant_owner(whom: str, schema: str) -> str:
    table = quote_literal(f"{quote(schema)}.oplog_record")
    return f"""DO $oplog_do$ BEGIN
  EXECUTE (SELECT pg_catalog.concat('GRANT ', pg_catalog.quote_ident(r.rolname), {_to(whom)})
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
    WHERE c.oid = {table}::pg_catalog.regclass);
END $oplog_do$;"""


_DATABASE = "pg_catalog.quote_ident(pg_catalog.current_database())"


def _to(whom: str) -> str:
    return quote_literal(f" TO {whom}")
