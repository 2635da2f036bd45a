"""Waiting until a record is published, for writes that must be off-site before they count.

Only the archive is read, so no permission in the database is needed. Segments recorded long ago
are left out: otherwise a record that is not there yet would cost the whole archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from uuid import UUID

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.format.head import Head
from oplog.archive.history import read_chain_at
from oplog.backoff import Backoff
from oplog.errors import ArchiveLagError, ChainBrokenError, ConfigurationError
from oplog.receipt import Receipt

_RECENT_MICROSECONDS = 24 * 3600 * 1_000_000


def wait_for_records(
    archive: Archive,
    receipts: Iterable[Receipt],
    *,
    timeout_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Expectation:
    """Return the place of the last of the receipts' records, once all are published.

    Looks at records written within a day before the newest. Raises `ArchiveLagError` when they
    are not there in time, `ChainBrokenError` when a record is there with another hash.
    """
    wanted = _collect_hashes(receipts)
    backoff = Backoff(
        first_seconds=0.05,
        longest_seconds=1.0,
        # One client that looks at one object: nothing to spread.
        jitter=0,
        deadline_seconds=timeout_seconds,
        cut_last=True,
        clock=clock,
        sleep=sleep,
    )
    pauses = backoff.begin()
    seen = 0
    highest = 0
    while True:
        head = archive.find_head()
        if head is not None and head.sequence > seen:
            highest = max(highest, _look(archive, head, wanted, after=seen))
            seen = head.sequence
        if head is not None and not wanted:
            return Expectation(highest, read_chain_at(archive, head, highest))
        pause = next(pauses, None)
        if pause is None:
            raise ArchiveLagError(
                f"{len(wanted)} records are not in {archive.url} after {timeout_seconds:g} s: "
                f"{', '.join(str(one) for one in list(wanted)[:3])}",
                hint="they are committed; see that a worker runs (oplog sync --follow) and how "
                "far it is behind (oplog status)",
            )
        backoff.sleep(pause)


def _collect_hashes(receipts: Iterable[Receipt]) -> dict[UUID, set[bytes]]:
    """The hashes that the receipts give each record; `ConfigurationError` without a receipt."""
    wanted: dict[UUID, set[bytes]] = {}
    for receipt in receipts:
        hashes = wanted.setdefault(receipt.record_id, set())
        # A receipt whose answer was lost may not know its hash.
        if receipt.entry_hash:
            hashes.add(receipt.entry_hash)
    if not wanted:
        raise ConfigurationError(
            "no receipt was given", hint="give log.receipts(session) after the commit"
        )
    return wanted


def _look(archive: Archive, head: Head, wanted: dict[UUID, set[bytes]], *, after: int) -> int:
    """Take what is found out of `wanted`, hashes by record id; the highest sequence of it."""
    highest = 0
    for item in archive.iterate_newest(head.levels, after=after):
        if item.last_recorded < head.recorded_at - _RECENT_MICROSECONDS:
            break
        for sequence, record in enumerate(archive.read_segment(item).records, item.first):
            hashes = wanted.pop(record.record_id, None)
            if hashes is None:
                continue
            if hashes - {record.record_hash}:
                raise ChainBrokenError(
                    f"record {record.record_id} is archived as sequence {sequence} with another "
                    "hash than its receipt has",
                    hint="it was altered in the database before it was archived: run verify",
                )
            highest = max(highest, sequence)
        if not wanted:
            break
    return highest
