"""The keys that a log knows, by age, and which of them may not seal any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.postgres.quoting import quote_for_driver
from oplog.postgres.sqlstate import read_sqlstate
from oplog.store.rows import read_microseconds

_RETIRED = "(pg_catalog.to_jsonb(k) ->> 'retired_at')::timestamptz"
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
        "SELECT k.key_id, k.check_value, "
        f"{_count('k.created_at')}, {_count(_RETIRED)}, "
        f"{_count('pg_catalog.clock_timestamp() - k.created_at')} "
        f"FROM {quote_for_driver(schema)}.oplog_key k ORDER BY k.created_at, k.key_id"
    )
    return [
        LoggedKey(
            key_id,
            bytes(check_value),
            registered_at=read_microseconds(registered),
            retired_at=None if retired is None else read_microseconds(retired),
            age=timedelta(microseconds=age),
        )
        for key_id, check_value, registered, retired, age in rows
    ]


def _count(moment: str) -> str:
    # A number: as text it would be in the session's DateStyle and time zone.
    return f"(extract(epoch FROM {moment}) * 1000000)::bigint"


def retire_key(connection: Connection, schema: str, *, key_id: str) -> datetime:
    """When the key was retired, be it now or before. In the caller's transaction.

    Raises `ConfigurationError` for a key that is unknown or the last that may seal, and
    `SchemaVersionError` for a log that has no retirement yet.
    """
    try:
        retired = f"{quote_for_driver(schema)}.oplog_retire_key(%s::text)"
        found: int = connection.exec_driver_sql(f"SELECT {_count(retired)}", (key_id,)).scalar_one()
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
    return read_microseconds(found)
