"""The keys that a log knows, by age, and which of them may not seal any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.postgres.quoting import quote_for_driver
from oplog.postgres.sqlstate import read_sqlstate

_NOT_UPGRADED = "42883"
"""SQLSTATE of a function that is not there."""
_REFUSALS = ("22023", "25000", "55000")
"""SQLSTATEs by which `oplog_retire_key` refuses: an unknown key, an isolation, the last key."""


@dataclass(frozen=True, slots=True)
class LoggedKey:
    """A key that the log knows; `age` is the time since it was registered."""

    key_id: str
    check_value: bytes
    registered_at: datetime
    retired_at: datetime | None
    age: timedelta


def list_logged_keys(connection: Connection, schema: str) -> list[LoggedKey]:
    """All keys, oldest first."""
    rows = connection.exec_driver_sql(
        # By its name in JSON, a column that an earlier definition did not have is NULL.
        "SELECT k.key_id, k.check_value, k.created_at, "
        "(pg_catalog.to_jsonb(k) ->> 'retired_at')::timestamptz, "
        "pg_catalog.clock_timestamp() - k.created_at "
        f"FROM {quote_for_driver(schema)}.oplog_key k ORDER BY k.created_at, k.key_id"
    )
    return [LoggedKey(row[0], bytes(row[1]), *row[2:]) for row in rows]


def retire_key(connection: Connection, schema: str, *, key_id: str) -> datetime:
    """When the key was retired, be it now or before. In the caller's transaction.

    Raises `ConfigurationError` for a key that is unknown or the last that may seal, and
    `SchemaVersionError` for a log that has no retirement yet.
    """
    try:
        found: datetime = connection.exec_driver_sql(
            f"SELECT {quote_for_driver(schema)}.oplog_retire_key(%s::text)", (key_id,)
        ).scalar_one()
    except DBAPIError as cause:
        state = read_sqlstate(cause)
        if state == _NOT_UPGRADED:
            raise SchemaVersionError(
                "this log was created before keys could be retired",
                hint="op.upgrade_oplog(version=1) in a migration",
            ) from cause
        if state not in _REFUSALS:
            raise
        diagnostic = getattr(cause.orig, "diag", None)
        raise ConfigurationError(
            (getattr(diagnostic, "message_primary", None) or str(cause.orig)).removeprefix(
                "oplog: "
            ),
            hint=getattr(diagnostic, "message_hint", None)
            or "give a connection with isolation_level='READ COMMITTED'",
        ) from cause
    return found
