"""The last statement before COMMIT, and COMMIT with it where the driver allows.

Sends a drafted append on the transaction's own driver connection. Must not build entries.
The hard thing is that errors raised here bypass SQLAlchemy: they are wrapped as it would
have, so that applications catch what they always caught.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.binding import BoundType
from oplog.capture.writer import Draft
from oplog.entry import Receipt
from oplog.errors import (
    CommitWouldRollBackError,
    ConfigurationError,
    OplogError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.guard import UNLOGGED
from oplog.tables import STALE_TICKET

_SERIALIZATION_FAILURE = "40001"
_IN_ERROR = 3
"""libpq's PQTRANS_INERROR, as psycopg passes it on."""


def send_draft(connection: Connection, draft: Draft) -> list[Receipt]:
    """Execute the append in the open transaction."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(draft.statement, draft.parameters)
        row = cursor.fetchone()
    except _errors(connection) as cause:
        raise explain(connection, cause, draft=draft) from cause
    finally:
        cursor.close()
    return _make_receipts(draft, row)


def send_draft_and_commit(connection: Connection, draft: Draft) -> list[Receipt]:
    """Execute the append and COMMIT in one round trip.

    The append raises when a ticket is stale; the server then skips the COMMIT behind it.
    """
    raw: Any = connection.connection.driver_connection
    cursor = raw.cursor()
    errors = _errors(connection)
    failures: list[Exception] = []
    try:
        with raw.pipeline():
            # Raised inside the block, the first error would be followed by a log line of the
            # driver's about the rest of the pipeline, which is aborted as it should be.
            try:
                cursor.execute(draft.statement, draft.parameters)
                raw.execute("COMMIT")
            except errors as first:
                failures.append(first)
    except errors as cause:
        failures.append(cause)
    if failures:
        # With a row of the append's own, it was COMMIT that failed.
        failed = None if cursor.rowcount == 1 else draft
        raise explain(connection, failures[0], draft=failed) from failures[0]
    return _make_receipts(draft, cursor.fetchone())


def can_pipeline(connection: Connection) -> bool:
    """Whether the driver is psycopg in its blocking form, with pipelines in its libpq."""
    raw: Any = connection.connection.driver_connection
    return (
        connection.dialect.driver == "psycopg"
        and not connection.dialect.is_async
        and not connection.in_nested_transaction()
        and not raw.autocommit
    )


def check_transactional(connection: Connection, bound: BoundType) -> None:
    """Raise `ConfigurationError` where every statement commits by itself."""
    raw: Any = connection.connection.driver_connection
    if getattr(raw, "autocommit", False):
        raise ConfigurationError(
            f"table {bound.live.qualified} is written on a connection in AUTOCOMMIT, where row "
            "and entry cannot commit together",
            hint="use a transaction for writes; keep AUTOCOMMIT for engines that only read",
        )


def check_committable(connection: Connection) -> None:
    """Raise `CommitWouldRollBackError` when Postgres would answer COMMIT with ROLLBACK."""
    raw: Any = connection.connection.driver_connection
    if getattr(getattr(raw, "pgconn", None), "transaction_status", None) == _IN_ERROR:
        raise CommitWouldRollBackError(
            "a statement of this transaction failed and the error was swallowed; "
            "COMMIT would silently have rolled everything back",
            hint="let the error end the transaction, or put the statement in begin_nested()",
        )


def explain(connection: Connection, cause: Exception, *, draft: Draft | None) -> Exception:
    """A lost redeem as `TicketConflictError`, any other error as SQLAlchemy raises it.

    `draft` is None when it was COMMIT that failed.
    """
    dialect = connection.dialect
    lost = (STALE_TICKET, _SERIALIZATION_FAILURE)
    if draft is not None and getattr(cause, "sqlstate", None) in lost:
        detail = getattr(getattr(cause, "diag", None), "message_primary", None)
        return TicketConflictError(
            detail or "an aggregate of this transaction was changed by another one",
            hint="run the whole transaction again; log.run(sessionmaker, work) does that",
        )
    unlogged = explain_unlogged(cause)
    if unlogged is not None:
        return unlogged
    if dialect.is_disconnect(cause, connection.connection.driver_connection, None):  # type: ignore[arg-type]
        connection.invalidate(cause)
    return DBAPIError.instance(
        "COMMIT" if draft is None else draft.statement,
        None,
        cause,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        dialect=dialect,
    )


def explain_unlogged(cause: BaseException) -> OplogError | None:
    """A guard's refusal as `UnloggedWriteError`; None for any other error."""
    if getattr(cause, "sqlstate", None) != UNLOGGED:
        return None
    diagnostic = getattr(cause, "diag", None)
    return UnloggedWriteError(
        getattr(diagnostic, "message_primary", None) or str(cause),
        hint=getattr(diagnostic, "message_hint", None) or "",
    )


def _errors(connection: Connection) -> type[Exception]:
    found: type[Exception] = connection.dialect.loaded_dbapi.Error
    return found


def _make_receipts(draft: Draft, row: Any) -> list[Receipt]:
    return draft.make_receipts(row[0], row[1])
