"""Rows of the log's tables as plain values, and what to ask them by.

A row reads the same under any session settings: times travel as numbers of microseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from oplog.crypto.hashing import HASH_BYTES, ZERO_HASH, hash_body, hash_record
from oplog.errors import ChainBrokenError, DecodeError, EntryError


class Part(NamedTuple):
    """Sealed bytes of a record: the effects on its aggregates from number `first` on."""

    first: int
    data: bytes


class Link(NamedTuple):
    """A record as a link in the chain of one of its aggregates."""

    position: int
    aggregate: str
    version: int
    prev_hash: bytes
    record_hash: bytes


class StoredRecord(NamedTuple):
    """What one transaction wrote: clear header and sealed parts.

    `aggregates` are in the order of collation C. `versions` and `prev_hashes` have one item for
    each; the hash before version 1 is `ZERO_HASH`. `metadata` are pairs in the order given.
    """

    position: int
    record_id: UUID
    transaction_id: int
    format: int
    key_id: str
    parts: tuple[Part, ...]
    aggregates: tuple[str, ...]
    versions: tuple[int, ...]
    prev_hashes: tuple[bytes, ...]
    metadata: tuple[tuple[str, str], ...]
    record_hash: bytes
    recorded_at: datetime
    idempotency_key: str | None

    @property
    def sealed_bytes(self) -> int:
        """The size of all parts."""
        return sum(len(part.data) for part in self.parts)

    def list_links(self, among: Collection[str] | None = None) -> Iterator[Link]:
        """The record's links, by aggregate; those of some aggregates, None for all."""
        for aggregate, version, prev_hash in zip(
            self.aggregates, self.versions, self.prev_hashes, strict=True
        ):
            if among is None or aggregate in among:
                yield Link(
                    position=self.position,
                    aggregate=aggregate,
                    version=version,
                    prev_hash=prev_hash,
                    record_hash=self.record_hash,
                )


def compute_hash(record: StoredRecord) -> bytes | None:
    """The hash that a record's bytes and header give; None where they cannot have one.

    That is one with another number of versions or hashes than of aggregates, with a hash before
    version 1, or with a value that no hash is defined over.
    """
    if not len(record.versions) == len(record.prev_hashes) == len(record.aggregates):
        return None
    for version, prev_hash in zip(record.versions, record.prev_hashes, strict=True):
        # It is not in the hash, so an altered one would not be noticed.
        if version == 1 and prev_hash != ZERO_HASH:
            return None
    try:
        body_hash = hash_body(
            format=record.format,
            record_id=record.record_id,
            key_id=record.key_id,
            metadata=record.metadata,
            idempotency_key=record.idempotency_key,
            aggregates=record.aggregates,
            parts=record.parts,
        )
        return hash_record(
            body_hash=body_hash,
            position=record.position,
            recorded_at=record.recorded_at,
            versions=record.versions,
            prev_hashes=record.prev_hashes,
        )
    except (DecodeError, EntryError):
        return None


CREATED = -1
"""In `NewRecord.expected`: the transaction believes that it creates the aggregate."""


class KnownTables(NamedTuple):
    """What a writer took the tables for; by default it says nothing.

    `epoch` is the number of schema changes that were noted. `relations` are oids of the written
    tables and of composite types in them, `labels` of labels of enum types, and `form` is the hash
    of what these were.
    """

    epoch: int | None = None
    relations: Sequence[int] = ()
    labels: Sequence[int] = ()
    form: int | None = None


NOTHING_KNOWN = KnownTables()


class NewRecord(NamedTuple):
    """A record about to be appended.

    `aggregates` are in the order of collation C. `expected` has, for each, the ticket's version,
    None for any, or `CREATED`. `parts` begin at rising aggregates, the first at 0. `known` is
    compared with the tables of then.
    """

    record_id: UUID
    aggregates: Sequence[str]
    expected: Sequence[int | None]
    parts: Sequence[Part]
    format: int
    key_id: str
    metadata: Sequence[tuple[str, str]] = ()
    idempotency_key: str | None = None
    known: KnownTables = NOTHING_KNOWN


class Seen(NamedTuple):
    """What a consumer has seen, as far as it tells records apart.

    All of `snapshot`; and of what is new at `target`, the records up to position `after`.
    """

    snapshot: str
    target: str | None
    after: int


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries to read: all conditions hold together; bounds are positions.

    Sources give whole records that have such an entry.
    """

    aggregate: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    through: int | None = None
    aggregates: tuple[str, ...] = ()
    """Entries of any of these aggregates; empty for no such condition."""
    tagged: tuple[str, tuple[str, ...]] | None = None
    """Only records with one of these values of a metadata key."""
    unseen: Seen | None = None
    """Only entries that were not seen; works on the tables only."""

    def narrow(self, after: int | None, through: int | None) -> EntryFilter:
        """The same filter within these bounds as well."""
        lowest = [bound for bound in (self.after, after) if bound is not None]
        highest = [bound for bound in (self.through, through) if bound is not None]
        return replace(self, after=max(lowest, default=None), through=min(highest, default=None))

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return replace(self, after=self.after or None) == EntryFilter()


def list_aggregates(filter: EntryFilter) -> frozenset[str] | None:
    """The aggregates whose entries a filter takes; None for all."""
    if filter.aggregate is None and not filter.aggregates:
        return None
    if filter.aggregate is None:
        return frozenset(filter.aggregates)
    one = {filter.aggregate}
    return frozenset(one & set(filter.aggregates) if filter.aggregates else one)


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """A record that does not continue the chain of an aggregate."""

    aggregate: str
    version: int
    position: int | None
    reason: str


RECORD_COLUMNS = (
    "r.position, r.record_id, r.transaction_id::text::bigint AS transaction_id, r.format, "
    "r.key_id, r.data, r.parts, r.aggregates, r.versions, r.prev_hashes, r.metadata, "
    "r.record_hash, "
    # A number: as text it would be in the session's DateStyle and time zone.
    "(extract(epoch FROM r.created_at) * 1000000)::bigint AS created, r.idempotency_key"
)
"""What to select from the record table, called `r`, for `make_stored`."""


def measure_record(s: str) -> str:
    """Bytes of record `r`: those of all parts, and of metadata; `s` is the quoted schema.

    Parts may be of very different sizes: a part that one row fills follows a small one.
    """
    return (
        "(pg_catalog.octet_length(r.data) + CASE WHEN r.parts > 1 THEN coalesce(("
        "SELECT sum(pg_catalog.octet_length(p.data)) "
        f"FROM {s}.oplog_part p WHERE p.position = r.position), 0) ELSE 0 END + coalesce("
        "pg_catalog.octet_length(pg_catalog.array_to_string(r.metadata, '')), 0))::bigint"
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read_microseconds(number: int) -> datetime:
    """A time that travels as microseconds since 1970, exactly."""
    return _EPOCH + timedelta(microseconds=number)


def write_microseconds(moment: datetime) -> int:
    """The inverse of `read_microseconds`."""
    return (moment - _EPOCH) // _MICROSECOND


def read_uuid(value: UUID | str) -> UUID:
    """A UUID that was read: a loader of the application's own may have made a text of it."""
    return value if isinstance(value, UUID) else UUID(value)


def make_stored(row: Sequence[Any], more: Mapping[int, Sequence[Part]]) -> StoredRecord:
    """A row as selected; `more` has the other parts of records with several, by position.

    Raises `ChainBrokenError` for a row that no record can be.
    """
    try:
        return _make_stored(row, more)
    except (TypeError, ValueError, OverflowError) as cause:
        raise ChainBrokenError(
            f"position {row[0]} (record {row[1]}) has a row that no record can be: {cause}",
            hint="the row of oplog_record was altered: put it back from a backup or the archive",
        ) from cause


def _make_stored(row: Sequence[Any], more: Mapping[int, Sequence[Part]]) -> StoredRecord:
    position, record_id, transaction_id, form, key_id, data, count, *rest = row
    aggregates, versions, prev_hashes, metadata, record_hash, created, idempotency_key = rest
    for texts in (aggregates, metadata or ()):
        # An array in an array has lists.
        if None in texts or (texts and not isinstance(texts[0], str)):
            raise ValueError("its aggregates or metadata are not texts")
    if versions is not None and None in versions:
        raise ValueError("a version is missing")
    parts = (Part(0, bytes(data)), *(more.get(position, ()) if count > 1 else ()))
    if len(parts) != count:
        # Altered: with a part that no record has, its hash will not fit.
        parts = (*parts, Part(0, b""))
    return StoredRecord(
        position=position,
        record_id=read_uuid(record_id),
        transaction_id=transaction_id,
        format=form,
        key_id=key_id,
        parts=parts,
        aggregates=tuple(aggregates),
        versions=(1,) * len(aggregates) if versions is None else tuple(versions),
        prev_hashes=_spread_hashes(versions, prev_hashes, count=len(aggregates)),
        metadata=() if metadata is None else tuple(zip(metadata[::2], metadata[1::2], strict=True)),
        record_hash=bytes(record_hash),
        recorded_at=read_microseconds(created),
        idempotency_key=idempotency_key,
    )


def _spread_hashes(
    versions: Sequence[int] | None, stored: bytes | None, *, count: int
) -> tuple[bytes, ...]:
    """One hash for each aggregate; stored are those of versions over 1, joined."""
    if versions is None and stored is None:
        return (ZERO_HASH,) * count
    joined = bytes(stored or b"")
    found = iter([joined[n : n + HASH_BYTES] for n in range(0, len(joined), HASH_BYTES)])
    # A row that lacks some was altered; its hash will not fit.
    known = (1,) * count if versions is None else versions
    spread = [ZERO_HASH if version == 1 else next(found, b"") for version in known]
    surplus = b"".join(found)
    if surplus and spread:
        # Altered as well: left out, it would go unnoticed.
        spread[-1] += surplus
    return tuple(spread)


def join_hashes(record: StoredRecord) -> bytes | None:
    """The inverse: what the row holds; None if all versions are 1."""
    if all(version == 1 for version in record.versions):
        return None
    pairs = zip(record.versions, record.prev_hashes, strict=True)
    return b"".join([prev_hash for version, prev_hash in pairs if version != 1])


def flatten_metadata(pairs: Sequence[tuple[str, str]]) -> list[str] | None:
    """Pairs as a row holds them; None if there are none."""
    return [text for pair in pairs for text in pair] or None
