"""What each role around a log needs: the statements that grant it.

Pure text. Nobody is given more than the role needs: an application writes the log by
functions, a worker and a consumer write one table each, an auditor none. Every table and function
is named, so that what stands beside the log in its schema is not given with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from oplog.postgres.quoting import (
    quote,
)
from oplog.schema.expected import list_log_tables
from oplog.schema.locks import LOCK_TABLES
from oplog.schema.rights import (
    APPLICATION_WRITES,
    CALLED_BY_APPLICATIONS,
    CALLED_BY_WORKERS,
    CONSUMER_WRITES,
    WORKER_WRITES,
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


_WRITES = {
    RoleKind.APPLICATION: APPLICATION_WRITES,
    RoleKind.WORKER: WORKER_WRITES,
    RoleKind.CONSUMER: CONSUMER_WRITES,
    RoleKind.AUDITOR: {},
}
_CALLED = {
    RoleKind.APPLICATION: CALLED_BY_APPLICATIONS,
    RoleKind.WORKER: CALLED_BY_WORKERS,
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
    whom, s = quote(role), quote(schema)
    yield f"GRANT USAGE ON SCHEMA {s} TO {whom};"
    tables_read = (name for name in list_log_tables(schema) if name not in LOCK_TABLES)
    read = ", ".join(f"{s}.{name}" for name in tables_read)
    yield f"GRANT SELECT ON {read} TO {whom};"
    for table, rights in _WRITES[kind].items():
        yield f"GRANT {', '.join(rights)} ON {s}.oplog_{table} TO {whom};"
    if called := _CALLED.get(kind):
        functions = ", ".join(f"{s}.oplog_{name}" for name in called)
        yield f"GRANT EXECUTE ON FUNCTION {functions} TO {whom};"
    named = [(table_schema or "public", table) for table_schema, table in tables]
    for table_schema, table in named:
        yield f"GRANT SELECT ON {quote(table_schema)}.{quote(table)} TO {whom};"
    for table_schema in sorted({table_schema for table_schema, _ in named}):
        yield f"GRANT USAGE ON SCHEMA {quote(table_schema)} TO {whom};"
        # A snapshot holds where sequences stand.
        yield f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA {quote(table_schema)} TO {whom};"
