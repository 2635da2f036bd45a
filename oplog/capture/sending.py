"""The send step of COMMIT: the append, and COMMIT together with it where the driver allows.

Executes on the transaction's own driver connection, so errors raised here bypass SQLAlchemy.
They are wrapped as SQLAlchemy would have wrapped them, so that applications catch the classes
that they always caught. An error that leaves open whether COMMIT happened is never passed on as
one that says it did not.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.capture.draft import Draft
from oplog.capture.request import Claim
from oplog.errors import (
    ChainBrokenError,
    CommitCancelledError,
    CommitInterruptedError,
    CommitOutcomeUnknownError,
    CommitWouldRollBackError,
    ConfigurationError,
    EntryError,
    IdempotencyConflictError,
    KeyRetiredError,
    NotCapturableError,
    OplogError,
    SchemaChangedError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.postgres.binary_message import Message
from oplog.postgres.exchange import exchange
from oplog.postgres.namesake import refuse_other_table
from oplog.postgres.sqlstate import SERIALIZATION_FAILURE, UNIQUE_VIOLATION
from oplog.receipt import Receipt
from oplog.schema.append import FENCED, HEAD_MISSING, SENT_TWICE, STALE_TICKET
from oplog.schema.append_checks import ASYNCHRONOUS_COMMIT, KEY_RETIRED
from oplog.schema.tables import IDEMPOTENCY_INDEX
from oplog.schema.touched_keys import UNLOGGED
from oplog.schema.type_changes import TYPES_CHANGED
from oplog.store import Store
from oplog.store.name_check import OTHER_TABLE
from oplog.type_binding import BoundType

_IDLE, _IN_ERROR = 0, 3
"""libpq's PQTRANS_IDLE and PQTRANS_INERROR, as psycopg passes them on."""

_AS_THE_SERVER_SAYS: Mapping[str, type[OplogError]] = MappingProxyType(
    {
        ASYNCHRONOUS_COMMIT: ConfigurationError,
        HEAD_MISSING: ChainBrokenError,
        KEY_RETIRED: KeyRetiredError,
        TYPES_CHANGED: SchemaChangedError,
    }
)
"""Refusals of the append function whose message and hint say everything."""


@dataclass(frozen=True, slots=True)
class Append:
    """A draft as a message to the log's functions."""

    draft: Draft
    message: Message


def bind_draft(store: Store, draft: Draft) -> Append:
    """The message that appends a draft's record, or tells the guards that there is none."""
    if draft.record is not None:
        message = store.bind_append(draft.record, tally=draft.tally, named=draft.named)
    else:
        message = store.bind_settle(draft.tally or 0, named=draft.named)
    return Append(draft, message)


def send(connection: Connection, append: Append, *, commit: bool) -> list[Receipt]:
    """Execute the append in the open transaction; with `commit`, in one round trip with COMMIT.

    The append raises when a ticket is stale; the server then skips the COMMIT behind it.
    """
    # Asked before: a broken connection does not know it any more.
    process_id = find_process(connection) if commit else 0
    answer = exchange(connection, append.message, commit=commit)
    error = answer.error
    if error is None:
        return _make_receipts(append, answer.row)
    if answer.sent and is_undecided(connection, error):
        receipts = append.draft.guess_receipts(process_id)
        raise lose_outcome(
            connection, error, receipts=receipts, claim=append.draft.claim
        ) from error
    # If the append returned its row, it was COMMIT that failed.
    failure = explain(connection, error, append=None if answer.row else append)
    if answer.interrupted and not connection.invalidated:
        connection.invalidate(error if isinstance(error, Exception) else None)
    if failure is error:
        raise error
    raise failure from error


def is_undecided(connection: Connection, cause: BaseException) -> bool:
    """Whether COMMIT, which failed with `cause`, may have happened all the same.

    It is decided only if the server gave an SQLSTATE and the connection still works. An
    SQLSTATE alone does not decide: a full disk for the WAL arrives as 53100, and the
    transaction may be on disk.
    """
    raw: Any = connection.connection.driver_connection
    if not isinstance(cause, _errors(connection)) or getattr(cause, "sqlstate", None) is None:
        return True
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return bool(raw.closed) or status not in (_IDLE, _IN_ERROR)


def lose_outcome(
    connection: Connection,
    cause: BaseException,
    *,
    receipts: Sequence[Receipt],
    claim: Claim | None,
) -> CommitOutcomeUnknownError:
    """The error for a COMMIT whose answer was lost; the connection is invalidated.

    In the pool it might be in the middle of a transaction, or of an answer.
    """
    if not connection.invalidated:
        connection.invalidate(cause if isinstance(cause, Exception) else None)
    return describe_loss(cause, receipts, claim)


def describe_loss(
    cause: BaseException, receipts: Sequence[Receipt], claim: Claim | None
) -> CommitOutcomeUnknownError:
    """The same without a connection.

    The error of a cancellation is a cancellation as well, so that asyncio recognises it.
    """
    kind: type[CommitOutcomeUnknownError] = CommitOutcomeUnknownError
    if isinstance(cause, CancelledError):
        kind = CommitCancelledError
    elif isinstance(cause, KeyboardInterrupt):
        kind = CommitInterruptedError
    elif not isinstance(cause, Exception):
        # SystemExit, or the end of a greenlet: it has to arrive as an instance of its class.
        kind = type(kind.__name__, (kind, type(cause)), {"interrupted": True})
    return kind(
        f"the answer to COMMIT was lost ({type(cause).__name__}): the transaction may or may "
        "not have happened",
        hint="ask log.resolve(error, engine) before doing the same again; log.run with an "
        "idempotency_key does that by itself",
        receipts=receipts,
        idempotency_key=None if claim is None else claim.key,
    )


def list_undecided(receipts: Sequence[Receipt], process_id: int) -> list[Receipt]:
    """Of the receipts of a transaction those to ask with: one record tells the outcome of all."""
    newest = receipts[-1].record_id
    return [replace(one, process_id=process_id) for one in receipts if one.record_id == newest]


def find_process(connection: Connection) -> int:
    """The server process behind a connection; 0 if the driver does not know it."""
    raw: Any = connection.connection.driver_connection
    return int(getattr(getattr(raw, "pgconn", None), "backend_pid", 0) or 0)


def can_commit_at_once(connection: Connection) -> bool:
    """Whether COMMIT may travel together with the append."""
    raw: Any = connection.connection.driver_connection
    return not connection.in_nested_transaction() and not raw.autocommit


def check_transactional(connection: Connection, bound: BoundType) -> None:
    """Raise `ConfigurationError` where nobody knows when a statement commits."""
    raw: Any = connection.connection.driver_connection
    if getattr(raw, "autocommit", False):
        raise ConfigurationError(
            f"table {bound.live.qualified} is written on a connection in AUTOCOMMIT, after a "
            "statement of the application's began a transaction there",
            hint="leave out BEGIN and COMMIT, and each statement commits with its record; or use "
            "a connection without AUTOCOMMIT",
        )


def is_autocommitting(connection: Connection) -> bool:
    """The next statement would be a transaction of its own."""
    raw: Any = connection.connection.driver_connection
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return bool(getattr(raw, "autocommit", False)) and status == _IDLE


def is_failed(connection: Connection) -> bool:
    """A statement of the transaction failed: the server accepts only its end."""
    raw: Any = connection.connection.driver_connection
    return getattr(getattr(raw, "pgconn", None), "transaction_status", None) == _IN_ERROR


def send_control(connection: Connection, statement: str) -> None:
    """Begin or end a transaction that SQLAlchemy shall not know of; errors are the driver's."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def commit_alone(connection: Connection) -> None:
    """COMMIT of such a transaction, without a record; errors as SQLAlchemy raises them."""
    try:
        send_control(connection, "COMMIT")
    except connection.dialect.loaded_dbapi.Error as cause:
        failure = explain(connection, cause, append=None)
        raise failure from cause


def roll_back_apart(connection: Connection) -> None:
    """ROLLBACK of such a transaction, on a connection that may be broken.

    Sent by hand: SQLAlchemy's dialect may be told to send none in AUTOCOMMIT.
    """
    try:
        send_control(connection, "ROLLBACK")
    except connection.dialect.loaded_dbapi.Error as failure:
        # Not raised: the caller is raising why the statement failed.
        connection.invalidate(failure)


def check_committable(connection: Connection) -> None:
    """Raise `CommitWouldRollBackError` when Postgres would answer COMMIT with ROLLBACK."""
    if is_failed(connection):
        raise CommitWouldRollBackError(
            "a statement of this transaction failed and the error was swallowed; "
            "COMMIT would silently have rolled everything back",
            hint="let the error end the transaction, or put the statement in begin_nested()",
        )


def check_under_way(connection: Connection) -> None:
    """Raise `NotCapturableError` if the transaction was ended where SQLAlchemy did not see it."""
    raw: Any = connection.connection.driver_connection
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    if status == _IDLE and not getattr(raw, "autocommit", False):
        raise NotCapturableError(
            "the driver's own connection ended the transaction while changes waited to be logged: "
            "if it committed, they are in tables without guards, and in no record",
            hint="end transactions through the session or connection of SQLAlchemy; `oplog verify` "
            "tells what is not logged, and where there are guards, such a COMMIT is refused",
        )


def explain_refusal(cause: BaseException, draft: Draft) -> OplogError | None:
    """The error for a refusal by the log's own function or by one of its unique indexes.

    None if `cause` is neither.
    """
    state = getattr(cause, "sqlstate", None)
    diagnostic = getattr(cause, "diag", None)
    detail = getattr(diagnostic, "message_primary", None) or ""
    if state in (STALE_TICKET, SERIALIZATION_FAILURE, FENCED):
        if state == SERIALIZATION_FAILURE:
            detail = f"another transaction was there first ({detail})"
        return TicketConflictError(
            detail,
            hint="run the whole transaction again; log.run(sessionmaker, work) does that",
            aggregates=draft.aggregates,
        )
    kind = _AS_THE_SERVER_SAYS.get(state or "")
    if kind is not None:
        return kind(detail, hint=getattr(diagnostic, "message_hint", None) or "")
    name = getattr(diagnostic, "constraint_name", None)
    if state == UNIQUE_VIOLATION and name == IDEMPOTENCY_INDEX:
        return IdempotencyConflictError(
            "the idempotency key was used by a transaction that committed after this one began",
            hint="run the whole transaction again: it will find the receipts of the first",
            retryable=True,
        )
    if state == SENT_TWICE:
        # Not retryable: ids are drawn at random, so another attempt would hide what happened.
        return EntryError(
            "a record with this id is in the log already, and a record is accepted once",
            hint="nothing was written; find out where a record was sent twice, or copied from",
        )
    return None


def explain(
    connection: Connection, cause: BaseException, *, append: Append | None
) -> BaseException:
    """A lost ticket or key as its own error, any other error as SQLAlchemy raises it.

    `append` is None when it was COMMIT that failed.
    """
    dialect = connection.dialect
    draft = None if append is None else append.draft
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
        "COMMIT" if append is None else append.message.statement,
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
    # A guard that counts what it did not before, or no more, was put on or taken off meanwhile.
    counted = (getattr(diagnostic, "message_detail", None) or "").startswith("tally ")
    if counted:
        hint += (
            "; a table without a guard that search_path finds before the tracked one of the "
            "same name, if there is one, was written in its place"
        )
    message = getattr(diagnostic, "message_primary", None) or str(cause)
    return UnloggedWriteError(message, hint=hint, retryable=counted)


def _errors(connection: Connection) -> type[Exception]:
    found: type[Exception] = connection.dialect.loaded_dbapi.Error
    return found


def _make_receipts(append: Append, row: Sequence[bytes] | None) -> list[Receipt]:
    draft = append.draft
    if draft.record is None or row is None:
        return []
    versions, record_hash = Store.read_append(row)
    return draft.make_receipts(versions or [1] * len(draft.aggregates), record_hash)


def roll_back_refused(connection: Connection) -> None:
    """End a transaction whose COMMIT was refused, on a connection that may be broken."""
    if connection.invalidated:
        return
    try:
        connection.dialect.do_rollback(connection.connection)
    except connection.dialect.loaded_dbapi.Error as failure:
        # Not raised: the caller is raising why the COMMIT was refused.
        connection.invalidate(failure)
