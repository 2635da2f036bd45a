"""What a transaction holds before it reads or writes: an idempotency key, and locked aggregates.

Every transaction locks in one order: keys, then aggregates, then rows of the application, then
tickets. Otherwise two of them could wait for each other. So a key or lock is refused after the
transaction's first write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from oplog.capture.attachment import Attachments, Enlisted
from oplog.capture.recorder import Recorder
from oplog.capture.request import Claim, check_key, check_same
from oplog.capture.retry import Beginning, KeyUsedError
from oplog.capture.sending import is_autocommitting
from oplog.entry import check_aggregate_name
from oplog.errors import ConfigurationError
from oplog.receipt import Receipt
from oplog.store.commit_lookup import OutcomeStore


def claim_key(
    connection: Connection,
    recorder: Recorder,
    *,
    store: OutcomeStore,
    key: str,
    fingerprint: str | None,
    wait_seconds: float | None = None,
) -> list[Receipt]:
    """Take an idempotency key; returns the receipts of the transaction that used it before.

    Waits for a transaction that holds the key, `wait_seconds` at most if given. Raises
    `IdempotencyConflictError` if it was used for another request.
    """
    check_key(key)
    _require_transaction(connection, f"idempotency key {key!r}")
    held = recorder.find_claim(key)
    if held is None:
        if recorder.wrote:
            raise ConfigurationError(
                f"idempotency key {key!r} comes after the transaction's first write",
                hint="annotate with the key first: a repeated request must be recognised before "
                "anything is written",
            )
        before = None if wait_seconds is None else store.limit_wait(connection, wait_seconds)
        store.lock_key(connection, key)
        if before is not None:
            store.restore_wait(connection, before)
        found = store.find_request(connection, key)
        held = Claim(key, fingerprint, () if found is None else found.receipts)
        if found is not None:
            check_same(held, stored=found.fingerprint)
        recorder.add_claim(held)
    elif fingerprint is not None and fingerprint != held.fingerprint:
        recorder.add_claim(Claim(key, fingerprint, held.receipts))
    return list(held.receipts)


def lock_aggregates(
    connection: Connection,
    recorder: Recorder,
    *,
    store: OutcomeStore,
    aggregates: str | Iterable[str],
) -> None:
    """Lock aggregates until the transaction ends, in the order that every transaction uses."""
    names = [aggregates] if isinstance(aggregates, str) else list(aggregates)
    for name in names:
        check_aggregate_name(name)
        _require_transaction(connection, f"the lock of aggregate {name!r}")
    if recorder.wrote:
        raise ConfigurationError(
            f"the lock of aggregate {names[0]!r} comes after the transaction's first write"
            if names
            else "locks come after the transaction's first write",
            hint="lock first, then read, then write: a writer that waits for a lock with rows of "
            "its own locked is one half of a deadlock",
        )
    ordered = sorted(set(names), key=lambda name: name.encode())
    store.lock_aggregates(connection, ordered)


def _require_transaction(connection: Connection, what: str) -> None:
    if is_autocommitting(connection):
        raise ConfigurationError(
            f"{what} is held until a transaction ends, and the connection is in AUTOCOMMIT",
            hint="leave out isolation_level='AUTOCOMMIT' for this work",
        )


def watch_beginning(session: Session, begin: Callable[[Connection], None]) -> Callable[[], bool]:
    """Call `begin` with the connection on which the session's next transaction begins, once.

    Returns a function that stops watching and says whether `begin` was called.
    """
    begun: list[Connection] = []

    def listen(*given: Any) -> None:
        if not begun:
            begun.append(given[2])
            begin(given[2])

    event.listen(session, "after_begin", listen)

    def stop() -> bool:
        if event.contains(session, "after_begin", listen):
            event.remove(session, "after_begin", listen)
        return bool(begun)

    return stop


def begin_run(
    attachments: Attachments, store: OutcomeStore, *, key: str | None, fingerprint: str | None
) -> Beginning:
    """How a run's transactions begin: with its key, and with locks on contended aggregates."""
    watched: WeakKeyDictionary[Session, Callable[[], bool]] = WeakKeyDictionary()

    def claim_on(one: Enlisted, wait_seconds: float | None = None) -> list[Receipt]:
        if key is None:
            return []
        return claim_key(
            one.connection,
            one.recorder,
            store=store,
            key=key,
            fingerprint=fingerprint,
            wait_seconds=wait_seconds,
        )

    def prepare(session: Session, aggregates: tuple[str, ...]) -> None:
        attachments.mark_repeated(session)
        if key is None and not aggregates:
            return

        def begin(connection: Connection) -> None:
            one = attachments.find_enlisted(session, connection)
            first = claim_on(one)
            if first:
                raise KeyUsedError(first)
            lock_aggregates(connection, one.recorder, store=store, aggregates=aggregates)

        watched[session] = watch_beginning(session, begin)

    def finish(session: Session) -> None:
        stop = watched.pop(session, None)
        if stop is not None and not stop() and key is not None:
            # The work has not used the database; its key is used up nevertheless.
            first = claim_on(attachments.enlist(session))
            if first:
                raise KeyUsedError(first)

    return Beginning(
        claim=lambda session, wait_seconds: claim_on(attachments.enlist(session), wait_seconds),
        prepare=prepare,
        finish=finish,
        list_receipts=attachments.list_receipts,
    )
