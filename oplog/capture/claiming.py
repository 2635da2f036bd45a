"""What a transaction holds before it reads or writes: an idempotency key, and locked aggregates.

Asks the database on the transaction's own connection. Must not know how sessions end. The hard
thing is the order of locks, which must be one for everybody: keys, then aggregates, then the
application's rows, then tickets. Whoever comes for an aggregate with rows already locked is
sent away, or two of them would wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.engine import Connection

from oplog.capture.recorder import Recorder
from oplog.capture.request import Claim, check_key, check_same
from oplog.entry import Receipt, check_aggregate_name
from oplog.errors import ConfigurationError
from oplog.store.outcomes import OutcomeStore


def claim_key(
    connection: Connection,
    recorder: Recorder,
    *,
    store: OutcomeStore,
    key: str,
    fingerprint: str | None,
    wait_seconds: float | None = None,
) -> list[Receipt]:
    """Take an idempotency key; the receipts of the transaction that used it, if there is one.

    Waits for whoever holds the key, `wait_seconds` at most if given. Raises
    `IdempotencyConflictError` if it was used for another request.
    """
    check_key(key)
    held = recorder.find_claim(key)
    if held is None:
        if recorder.wrote:
            raise ConfigurationError(
                f"idempotency key {key!r} comes after the transaction's first write",
                hint="annotate with the key first: whoever repeats it must find that out before "
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
    """Hold aggregates until the transaction ends, in the one order that all keep to."""
    names = [aggregates] if isinstance(aggregates, str) else list(aggregates)
    for name in names:
        check_aggregate_name(name)
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
