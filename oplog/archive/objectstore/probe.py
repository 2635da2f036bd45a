"""What a store does with a conditional write, found out by trying.

A store's own word proves nothing: some answer 501, others overwrite what is there and report
success. The probe also makes several requests at once, because a store that checks first and
writes afterwards passes every test of one request at a time.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from threading import Barrier, BrokenBarrierError

from oplog.archive.objectstore.protocol import CreateUnsupportedError, ObjectStore
from oplog.errors import ArchiveError, ObjectTooLargeError, StoreUnavailableError

FOLDER = "PROBE/"
RACERS = 8
# How long a racer waits for the others to be ready; then it starts without them.
GATHER_SECONDS = 10.0
MOST = 4096


class Verdict(StrEnum):
    """How a store treats `create`."""

    ATOMIC = "atomic"
    """As it should: one of many wins, and what is there stays."""
    REFUSES = "refuses"
    """It says that it cannot."""
    LIES = "lies"
    """It says that it can, and overwrites, or lets two win."""


def probe_store(store: ObjectStore, *, nonce: str = "") -> Verdict:
    """Try `create` on the real place; some ten requests.

    `nonce` names the objects, below `PROBE/`; they are deleted where that is allowed. Raises
    `StoreUnavailableError` and `StorageConfigError` as the store does: without a verdict.
    """
    nonce = nonce or secrets.token_hex(16)
    paths = [f"{FOLDER}{nonce}-once", f"{FOLDER}{nonce}-race"]
    try:
        if not _keeps_first(store, paths[0]):
            return Verdict.LIES
        return Verdict.ATOMIC if _has_one_winner(store, paths[1]) else Verdict.LIES
    except CreateUnsupportedError:
        return Verdict.REFUSES
    finally:
        for path in paths:
            # Writers need no permission to delete, and what stays behind means nothing.
            with suppress(ArchiveError):
                store.delete(path)


def _keeps_first(store: ObjectStore, path: str) -> bool:
    first, second = (secrets.token_bytes(32) for _ in range(2))
    if not store.create(path, first) and _look(store, path) is None:
        # No conclusion: it refused to write where nothing is, as a store does that is busy.
        raise StoreUnavailableError(
            f"{store.url}: a new object at {path} was refused, and nothing is there",
            hint="see whether another client works on the same path, then try again",
        )
    # The order matters: what is there is looked at after the second write had its chance.
    return not store.create(path, second) and _look(store, path) == first


def _has_one_winner(store: ObjectStore, path: str) -> bool:
    bodies = [secrets.token_bytes(32) for _ in range(RACERS)]
    gate = Barrier(RACERS)

    def race(body: bytes) -> bool:
        with suppress(BrokenBarrierError):
            gate.wait(GATHER_SECONDS)
        return store.create(path, body)

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(race, bodies))
    winners = [body for body, win in zip(bodies, won, strict=True) if win]
    # None may know that it won: its answer was lost, and it was refused when it asked again.
    return len(winners) <= 1 and _look(store, path) in (winners or bodies)


def _look(store: ObjectStore, path: str) -> bytes | None:
    with suppress(ObjectTooLargeError):
        return store.get(path, most=MOST)
    return b""
