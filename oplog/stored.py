"""Rows of the log's tables as plain values, and what to ask them by.

No SQL and no connection. The hard thing is not here: these are what `store` gives and takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class StoredEntry(NamedTuple):
    """A row of the entry table: clear header and sealed bytes."""

    position: int
    entry_id: UUID
    transaction_id: int
    transaction_position: int
    transaction_size: int
    aggregate: str
    version: int
    format: int
    data: bytes
    key_id: str
    metadata_hash: bytes
    prev_hash: bytes
    entry_hash: bytes
    recorded_at: datetime
    idempotency_key: str | None


class NewEntry(NamedTuple):
    """An entry about to be appended; `expected` is the ticket's version or None for any."""

    aggregate: str
    expected: int | None
    entry_id: UUID
    body_hash: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries to read: all conditions hold together; bounds are positions."""

    aggregate: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    through: int | None = None


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """An entry that does not continue its aggregate's chain."""

    aggregate: str
    version: int
    position: int | None
    reason: str
