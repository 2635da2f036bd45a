"""The last statement before COMMIT, and COMMIT with it where the driver allows.

Sends a drafted append on the transaction's own driver connection. Must not build entries.
The hard thing is that errors raised here bypass SQLAlchemy: they are wrapped as it would
have, so that applications catch what they always caught. An error that leaves open whether
COMMIT happened is never passed on as one that says it did not.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.binding import BoundType
from oplog.capture.draft import Draft
from oplog.capture.request import Claim
from oplog.errors import (
    CommitCancelledError,
    CommitInterruptedError,
    CommitOutcomeUnknownError,
    CommitWouldRollBackError,
    ConfigurationError,
    ConflictError,
    EntryError,
    IdempotencyConflictError,
    OplogError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.postgres.namesake import refuse_other_table
from oplog.receipt import Receipt
from oplog.schema.append import ASYNCHRONOUS_COMMIT, FENCED, STALE_TICKET
from oplog.schema.tables import IDEMPOTENCY_INDEX
from oplog.schema.touched_keys import UNLOGGED
from oplog.schema.upgrade import ENTRY_ID_INDEX
from oplog.store.name_check import OTHER_TABLE

_SERIALIZATION_FAILURE = "40001"
_UNIQUE_VIOLATION = "23505"
_IDLE, _IN_ERROR = 0, 3
"""libpq's PQTRANS_IDLE and PQTRANS_INERROR, as psycopg passes them on."""


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
    failures: list[BaseException] = []
    sent = False
    # Asked now: a broken connection does not know it any more.
    process_id = find_process(connection)
    try:
        with raw.pipeline():
            # Raised inside the block, the first error would be followed by a log line of the
            # driver's about the rest of the pipeline, which is aborted as it should be.
            try:
                cursor.execute(draft.statement, draft.parameters)
                sent = True
                raw.execute("COMMIT")
            except _errors(connection) as first:
                failures.append(first)
    except BaseException as cause:  # noqa: BLE001 - what is raised while COMMIT is away is told
        failures.append(cause)
    if failures:
        if sent and is_undecided(connection, failures[0]):
            receipts = draft.guess_receipts(process_id)
            raise lose_outcome(connection, failures[0], receipts, draft.claim) from failures[0]
        # With a row of the append's own, it was COMMIT that failed.
        failed = None if cursor.rowcount == 1 else draft
        raise explain(connection, failures[0], draft=failed) from failures[0]
    return _make_receipts(draft, cursor.fetchone())


def is_undecided(connection: Connection, cause: BaseException) -> bool:
    """Whether COMMIT, which failed with `cause`, may have happened all the same.

    Only a server that says why, on a connection that lives, has decided. An SQLSTATE alone has
    not: a full disk for the WAL arrives as 53100, and the transaction may be on disk.
    """
    raw: Any = connection.connection.driver_connection
    if not isinstance(cause, _errors(connection)) or getattr(cause, "sqlstate", None) is None:
        return True
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return bool(raw.closed) or status not in (_IDLE, _IN_ERROR)


def lose_outcome(
    connection: Connection,
    cause: BaseException,
    receipts: Sequence[Receipt],
    claim: Claim | None,
) -> CommitOutcomeUnknownError:
    """The error for a COMMIT whose answer was lost; the connection is given up.

    Left in the pool, it might be in the middle of a transaction, or of an answer.
    """
    if not connection.invalidated:
        connection.invalidate(cause if isinstance(cause, Exception) else None)
    return describe_loss(cause, receipts, claim)


def describe_loss(
    cause: BaseException, receipts: Sequence[Receipt], claim: Claim | None
) -> CommitOutcomeUnknownError:
    """The same without a connection. A cancellation stays one, for whoever waits for it."""
    kind: type[CommitOutcomeUnknownError] = CommitOutcomeUnknownError
    if isinstance(cause, CancelledError):
        kind = CommitCancelledError
    elif isinstance(cause, KeyboardInterrupt):
        kind = CommitInterruptedError
    elif not isinstance(cause, Exception):
        # SystemExit, or a greenlet's end: whoever waits for that must get it.
        kind = type(kind.__name__, (kind, type(cause)), {"interrupted": True})
    return kind(
        f"the answer to COMMIT was lost ({type(cause).__name__}): the transaction may or may "
        "not have happened",
        hint="ask log.resolve(error, engine) before doing the same again; log.run with an "
        "idempotency_key does that by itself",
        receipts=receipts,
        idempotency_key=None if claim is None else claim.key,
    )


def find_process(connection: Connection) -> int:
    """The server process behind a connection, as far as the driver knows it; else 0."""
    raw: Any = connection.connection.driver_connection
    return int(getattr(getattr(raw, "pgconn", None), "backend_pid", 0) or 0)


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


def is_failed(connection: Connection) -> bool:
    """A statement of the transaction failed: the server takes nothing more but its end."""
    raw: Any = connection.connection.driver_connection
    return getattr(getattr(raw, "pgconn", None), "transaction_status", None) == _IN_ERROR


def check_committable(connection: Connection) -> None:
    """Raise `CommitWouldRollBackError` when Postgres would answer COMMIT with ROLLBACK."""
    if is_failed(connection):
        raise CommitWouldRollBackError(
            "a statement of this transaction failed and the error was swallowed; "
            "COMMIT would silently have rolled everything back",
            hint="let the error end the transaction, or put the statement in begin_nested()",
        )


def explain_refusal(cause: BaseException, draft: Draft) -> OplogError | None:
    """What the log's own functions refuse, and lost races for a ticket or a key."""
    state = getattr(cause, "sqlstate", None)
    diagnostic = getattr(cause, "diag", None)
    detail = getattr(diagnostic, "message_primary", None) or ""
    if state in (STALE_TICKET, _SERIALIZATION_FAILURE, FENCED):
        if state == _SERIALIZATION_FAILURE:
            detail = f"another transaction was there first ({detail})"
        return TicketConflictError(
            detail,
            hint="run the whole transaction again; log.run(sessionmaker, work) does that",
            aggregates=draft.aggregates,
        )
    if state == ASYNCHRONOUS_COMMIT:
        return ConfigurationError(detail, hint=getattr(diagnostic, "message_hint", None) or "")
    name = getattr(diagnostic, "constraint_name", None)
    if state == _UNIQUE_VIOLATION and name == IDEMPOTENCY_INDEX:
        conflict: ConflictError = IdempotencyConflictError(
            "the idempotency key was used by a transaction that committed after this one began",
            hint="run the whole transaction again: it will find the receipts of the first",
        )
        conflict.retryable = True
        return conflict
    if state == _UNIQUE_VIOLATION and name == ENTRY_ID_INDEX:
        # Ids are drawn at random for each transaction: no other attempt makes this one right.
        return EntryError(
            "an entry with this id is in the log already, and an entry is accepted once",
            hint="nothing was written; find out where an entry was sent twice, or copied from",
        )
    return None


def explain(connection: Connection, cause: BaseException, *, draft: Draft | None) -> BaseException:
    """A lost redeem as `TicketConflictError`, any other error as SQLAlchemy raises it.

    `draft` is None when it was COMMIT that failed.
    """
    dialect = connection.dialect
    if draft is not None:
        conflict = explain_refusal(cause, draft)
        if conflict is not None:
            return conflict
    unlogged = explain_unlogged(cause)
    if unlogged is not None:
        detail = getattr(getattr(cause, "diag", None), "message_detail", None) or ""
        if draft is not None and draft.named and detail.endswith(f" {OTHER_TABLE}"):
            return refuse_other_table(name for name, _ in draft.named)
        return unlogged
    if dialect.is_disconnect(cause, connection.connection.driver_connection, None):  # type: ignore[arg-type]
        connection.invalidate(cause if isinstance(cause, Exception) else None)
    if not isinstance(cause, Exception):
        return cause
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
    hint = getattr(diagnostic, "message_hint", None) or ""
    if (getattr(diagnostic, "message_detail", None) or "").startswith("tally "):
        hint += (
            "; a table without a guard that search_path finds before the tracked one of the "
            "same name, if there is one, was written in its place"
        )
    return UnloggedWriteError(getattr(diagnostic, "message_primary", None) or str(cause), hint=hint)


def _errors(connection: Connection) -> type[Exception]:
    found: type[Exception] = connection.dialect.loaded_dbapi.Error
    return found


def _make_receipts(draft: Draft, row: Any) -> list[Receipt]:
    return draft.make_receipts(row[0], row[1])
