"""Rows of the log's tables as plain values, and what to ask them by.

A row reads the same under any session settings: times travel as numbers of microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
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


class Seen(NamedTuple):
    """What a consumer has seen, as far as it tells entries apart.

    All of `snapshot`; and of what is new at `target`, the transactions that begin up to `after`.
    """

    snapshot: str
    target: str | None
    after: int


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries to read: all conditions hold together; bounds are positions."""

    aggregate: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    through: int | None = None
    aggregates: tuple[str, ...] = ()
    """Entries of any of these aggregates; empty for no such condition."""
    unseen: Seen | None = None
    """Only entries that were not seen; works on the tables only."""

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return replace(self, after=self.after or None) == EntryFilter()


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """An entry that does not continue its aggregate's chain."""

    aggregate: str
    version: int
    position: int | None
    reason: str


ENTRY_COLUMNS = (
    "e.id, e.entry_id, e.transaction_id::text::bigint AS transaction_id, "
    "e.transaction_position, e.transaction_size, e.aggregate_name, e.version, e.format, e.data, "
    "e.key_id, e.metadata_hash, e.prev_hash, e.entry_hash, "
    # A number: as text it would be in the session's DateStyle and time zone.
    "(extract(epoch FROM e.created_at) * 1000000)::bigint AS created, e.idempotency_key"
)
"""What to select from the entry table, called `e`, for `make_stored`."""

FORMAT_PRUNED = 4
"""Format number of a pruned row: the header stays, the payload is in an archive only."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RECORDED_AT = StoredEntry._fields.index("recorded_at")


def read_microseconds(number: int) -> datetime:
    """A time that travels as microseconds since 1970, exactly."""
    return _EPOCH + timedelta(microseconds=number)


def write_microseconds(moment: datetime) -> int:
    """The inverse of `read_microseconds`."""
    return (moment - _EPOCH) // _MICROSECOND


def make_stored(row: Sequence[Any]) -> StoredEntry:
    """A row as selected, its time a number of microseconds."""
    values = list(row)
    values[_RECORDED_AT] = read_microseconds(values[_RECORDED_AT])
    return StoredEntry._make(values)
