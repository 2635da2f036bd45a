"""Finds out what became of a transaction whose answer was lost: COMMITTED, ABORTED or PENDING.

Runs on a connection of its own. ABORTED must stay true: a COMMIT that the network delays may
arrive long after its client died. So a missing transaction is not only reported, it is fenced off:
its record's id is used up, so that the database refuses the transaction if it comes yet. The status
of a transaction id is not asked for: after a crash the id may be given to another transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.errors import CommitOutcomeUnknownError, ConfigurationError
from oplog.outcome import Outcome, Resolution
from oplog.postgres.driver import require_driver
from oplog.postgres.sqlstate import LOCK_NOT_AVAILABLE, read_sqlstate
from oplog.receipt import Receipt
from oplog.store.commit_lookup import OutcomeStore

WAIT_SECONDS = 10.0
"""How long a resolver waits for a session that may still commit."""
_GLANCE_SECONDS = 0.02
_LEAST_SECONDS = 0.1


def resolve_on(
    connection: Connection,
    question: Sequence[Receipt] | str,
    *,
    store: OutcomeStore,
    wait_seconds: float = WAIT_SECONDS,
) -> Resolution:
    """The outcome of the transaction with these receipts, or under this idempotency key.

    `connection` is in no transaction. Raises `ConfigurationError` on a standby.
    """
    require_driver(connection)
    # Each statement must see what was committed while the one before it waited.
    connection = connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        _require_primary(connection, store)
    if isinstance(question, str):
        return _resolve_key(connection, question, store=store, wait_seconds=wait_seconds)
    return _resolve_receipts(connection, question, store=store, wait_seconds=wait_seconds)


def read_question(given: Any) -> list[Receipt] | str:
    """What may be asked about: a receipt, several, an idempotency key, or the error itself.

    Raises `ConfigurationError` for anything else, and for an error without receipts.
    """
    if isinstance(given, CommitOutcomeUnknownError):
        # By receipt the answer does not wait for a lost session to let go of its key.
        given = given.receipts or given.idempotency_key
    if isinstance(given, Receipt):
        return [given]
    if isinstance(given, str) and given:
        return given
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        receipts = list(given)
        if receipts and all(isinstance(receipt, Receipt) for receipt in receipts):
            return receipts
    raise ConfigurationError(
        f"{given!r:.100} does not name a transaction",
        hint="give a receipt, the receipts of one transaction, an idempotency key, or the "
        "CommitOutcomeUnknownError",
    )


def _require_primary(connection: Connection, store: OutcomeStore) -> None:
    if store.is_standby(connection):
        raise ConfigurationError(
            "a standby cannot say what became of a transaction: it shows a past, and what is "
            "not there may come yet",
            hint="ask the primary",
        )


def _resolve_receipts(
    connection: Connection,
    receipts: Sequence[Receipt],
    *,
    store: OutcomeStore,
    wait_seconds: float,
) -> Resolution:
    _check_one_record(receipts)
    deadline = time.monotonic() + wait_seconds
    receipt = receipts[0]
    _await_process(connection, receipt, store=store, deadline=deadline)
    try:
        with connection.begin():
            store.limit_wait(connection, max(_LEAST_SECONDS, deadline - time.monotonic()))
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            if store.declare_aborted(connection, receipt.record_id):
                return Resolution(Outcome.ABORTED)
            found = store.list_receipts(connection, receipt.record_id)
    except DBAPIError as error:
        if not _is_timeout(error):
            raise
        with connection.begin():
            blockers = store.list_append_blockers(connection)
        return Resolution(Outcome.PENDING, blockers=tuple(blockers))
    # Of a record that was pruned, all that is known here may be that it was committed.
    return Resolution(Outcome.COMMITTED, found or tuple(receipts))


def _check_one_record(asked: Sequence[Receipt]) -> None:
    others = sum(one.record_id != asked[0].record_id for one in asked)
    if others:
        raise ConfigurationError(
            f"of {len(asked)} receipts, {others} are not of the record of the first",
            hint="ask about one transaction at a time; where one wrote to several logs, ask each "
            "log about its own record",
        )


def _await_process(
    connection: Connection, receipt: Receipt, *, store: OutcomeStore, deadline: float
) -> None:
    """Wait for the transaction's backend to finish, so that a late COMMIT is not fenced off.

    Not needed for a right answer: behind a pooler the backend is unknown, or its id is another's.
    """
    pause = 0.0
    while receipt.process_id and time.monotonic() < deadline:
        with connection.begin():
            if not store.is_under_way(connection, receipt.process_id, pause_seconds=pause):
                return
        pause = _GLANCE_SECONDS


def _resolve_key(
    connection: Connection, key: str, *, store: OutcomeStore, wait_seconds: float
) -> Resolution:
    try:
        with connection.begin():
            store.limit_wait(connection, wait_seconds)
            # Held by every transaction under the key from before its first statement.
            store.lock_key(connection, key)
            found = store.find_request(connection, key)
    except DBAPIError as error:
        if not _is_timeout(error):
            raise
        with connection.begin():
            return Resolution(
                Outcome.PENDING, blockers=tuple(store.list_key_blockers(connection, key))
            )
    if found is None:
        return Resolution(Outcome.ABORTED)
    return Resolution(Outcome.COMMITTED, found.receipts)


def _is_timeout(error: DBAPIError) -> bool:
    return read_sqlstate(error) == LOCK_NOT_AVAILABLE
