r"""Segments: a run of sealed entries in the order of their sequence.

Pure: entries and metadata to bytes and back. Must not know keys or payloads: sealed bytes pass
as they are. What can be computed from the rest (hashes, mostly, which do not compress) is left
out, and computed again by whoever reads; so reading is checking. The hard thing is what does
not fit: a row that was altered in the database is carried as it is, never mended.

    chain of nothing  = sha256('oplog/v1/archive\0' || log id)
    chain of an entry = sha256('oplog/v1/sequence\0' || chain before || sequence || position
                               || transaction position || entry hash)       numbers in 8 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID

from google.protobuf import message

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.container import (
    compress,
    corrupt,
    decode_container,
    decompress,
    encode_container,
)
from oplog.archive.document import Fields
from oplog.chain import HASH_BYTES, ZERO_HASH, hash_body, hash_entry, hash_metadata
from oplog.errors import DecodeError, EntryError
from oplog.store.rows import StoredEntry, read_microseconds, write_microseconds

MAGIC = b"oplogseg"
FORMAT = 1
MAX_BODY_BYTES = 48 * 1024 * 1024
"""Largest body before compression: a full segment, and one entry of the largest size."""
MAX_ENTRIES = 1_000_000

Pairs: TypeAlias = list[tuple[str, str]]

_LENGTH = struct.Struct(">I")
_NUMBERS = struct.Struct(">qqq")
_START_LABEL = b"oplog/v1/archive\0"
_CHAIN_LABEL = b"oplog/v1/sequence\0"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself without its body being read.

    `first` to `last` are sequences. `missing` counts the entries of its last transaction that
    are in the segments after it: 0 but for transactions larger than a segment. `cursor` is the
    consumer's place in the database after it; None inside such a transaction.
    """

    log_id: UUID
    generation: int
    first: int
    last: int
    transactions: int
    missing: int
    chain_before: bytes
    chain: bytes
    first_position: int
    last_position: int
    first_recorded: int
    last_recorded: int
    body_bytes: int
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A decoded segment: entries in the order of their sequence, which begins at its first.

    `metadata` is by transaction position; the one of a transaction that began in an earlier
    segment is there.
    """

    header: SegmentHeader
    entries: Sequence[StoredEntry]
    metadata: Mapping[int, Pairs]


def start_chain(log_id: UUID) -> bytes:
    """The chain of an archive that holds no entry yet."""
    return sha256(_START_LABEL + log_id.bytes).digest()


def extend_chain(chain: bytes, entries: Iterable[StoredEntry], *, first: int) -> bytes:
    """The chain after `entries`, the first of which has sequence `first`."""
    for sequence, entry in enumerate(entries, first):
        numbers = _NUMBERS.pack(sequence, entry.position, entry.transaction_position)
        chain = sha256(b"".join((_CHAIN_LABEL, chain, numbers, entry.entry_hash))).digest()
    return chain


# -- encoding -----------------------------------------------------------------------------


def encode_segment(
    entries: Sequence[StoredEntry],
    metadata: Mapping[int, Pairs],
    *,
    log_id: UUID,
    generation: int,
    first: int,
    chain_before: bytes,
    cursor: str | None,
    missing: int = 0,
) -> tuple[bytes, SegmentHeader]:
    """The object's bytes and its header; the same entries always give the same bytes.

    `entries` are sorted by (transaction position, position), and only the first and the last
    transaction may be in other segments as well; `missing` entries of the last one are.
    """
    body = b"".join(_encode_body(entries, metadata))
    recorded = [write_microseconds(entry.recorded_at) for entry in entries]
    positions = [entry.position for entry in entries]
    header = SegmentHeader(
        log_id=log_id,
        generation=generation,
        first=first,
        last=first + len(entries) - 1,
        transactions=len({entry.transaction_position for entry in entries}),
        missing=missing,
        chain_before=chain_before,
        chain=extend_chain(chain_before, entries, first=first),
        first_position=min(positions),
        last_position=max(positions),
        first_recorded=min(recorded),
        last_recorded=max(recorded),
        body_bytes=len(body),
        cursor=cursor,
    )
    return encode_container(MAGIC, _write_header(header), body=compress(body)), header


def _write_header(header: SegmentHeader) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "log": str(header.log_id),
        "generation": header.generation,
        "first": header.first,
        "last": header.last,
        "transactions": header.transactions,
        "missing": header.missing,
        "chain_before": header.chain_before.hex(),
        "chain": header.chain.hex(),
        "first_position": header.first_position,
        "last_position": header.last_position,
        "first_recorded": header.first_recorded,
        "last_recorded": header.last_recorded,
        "body_bytes": header.body_bytes,
        "cursor": header.cursor,
    }


def _encode_body(entries: Sequence[StoredEntry], metadata: Mapping[int, Pairs]) -> list[bytes]:
    parts: list[bytes] = []
    hashes: dict[str, bytes] = {}
    position = recorded = 0
    group: archive_pb2.ArchivedTransaction | None = None
    group_hash = b""
    for entry in entries:
        if group is None or group.transaction_position != entry.transaction_position:
            if group is not None:
                parts += _frame(group)
            group, group_hash = _begin_transaction(entry, metadata)
        archived = group.entries.add()
        _write_entry(archived, entry, group_hash, hashes.get(entry.aggregate))
        moment = write_microseconds(entry.recorded_at)
        archived.position_step = entry.position - position
        archived.recorded_step = moment - recorded
        position, recorded = entry.position, moment
        hashes[entry.aggregate] = entry.entry_hash
    if group is not None:
        parts += _frame(group)
    return parts


def _frame(group: archive_pb2.ArchivedTransaction) -> tuple[bytes, bytes]:
    data = group.SerializeToString(deterministic=True)
    return _LENGTH.pack(len(data)), data


def _begin_transaction(
    entry: StoredEntry, metadata: Mapping[int, Pairs]
) -> tuple[archive_pb2.ArchivedTransaction, bytes]:
    group = archive_pb2.ArchivedTransaction(
        transaction_id=entry.transaction_id,
        transaction_position=entry.transaction_position,
        transaction_size=entry.transaction_size,
    )
    if entry.position != entry.transaction_position:
        group.metadata_hash = entry.metadata_hash
        return group, entry.metadata_hash
    pairs = metadata.get(entry.transaction_position, [])
    for key, value in pairs:
        group.metadata.add(key=key, value=value)
    return group, hash_metadata(pairs)


def _write_entry(
    archived: archive_pb2.ArchivedEntry,
    entry: StoredEntry,
    metadata_hash: bytes,
    hash_before: bytes | None,
) -> None:
    archived.entry_id = entry.entry_id.bytes
    archived.aggregate = entry.aggregate
    archived.version = entry.version
    archived.format = entry.format
    archived.key_id = entry.key_id
    archived.data = entry.data
    if entry.idempotency_key is not None:
        archived.idempotency_key = entry.idempotency_key
    if entry.prev_hash != _expect_prev(entry.version, hash_before):
        archived.prev_hash = entry.prev_hash
    if entry.metadata_hash != metadata_hash:
        archived.metadata_hash = entry.metadata_hash
    if entry.entry_hash != compute_hash(entry):
        archived.entry_hash = entry.entry_hash


def _expect_prev(version: int, hash_before: bytes | None) -> bytes | None:
    return ZERO_HASH if version == 1 else hash_before


def compute_hash(entry: StoredEntry) -> bytes | None:
    """The hash that the entry's bytes and header give; None where they cannot have one."""
    try:
        body = hash_body(
            format=entry.format,
            entry_id=entry.entry_id,
            aggregate=entry.aggregate,
            key_id=entry.key_id,
            metadata_hash=entry.metadata_hash,
            transaction_size=entry.transaction_size,
            idempotency_key=entry.idempotency_key,
            data=entry.data,
        )
        return hash_entry(
            prev_hash=entry.prev_hash,
            version=entry.version,
            recorded_at=entry.recorded_at,
            body_hash=body,
        )
    except (DecodeError, EntryError):
        return None


# -- decoding -----------------------------------------------------------------------------


def decode_header(data: bytes, *, what: str = "a segment") -> SegmentHeader:
    """What a segment says of itself; needs the beginning of the object only.

    Raises `SegmentCorruptError` or `ManifestInvalidError`.
    """
    return _read_header(decode_container(data, MAGIC, what=what).header, what)


def _read_header(document: dict[str, Any], what: str) -> SegmentHeader:
    fields = Fields(document, what)
    fields.take_format(FORMAT)
    log_id = fields.take_text("log", most=36)
    try:
        identity = UUID(log_id)
    except ValueError as cause:
        raise corrupt(what, f"its log is {log_id!r}") from cause
    header = SegmentHeader(
        log_id=identity,
        generation=fields.take_integer("generation"),
        first=fields.take_integer("first", least=1),
        last=fields.take_integer("last", least=1),
        transactions=fields.take_integer("transactions", least=1, most=MAX_ENTRIES),
        missing=fields.take_integer("missing"),
        chain_before=fields.take_hash("chain_before"),
        chain=fields.take_hash("chain"),
        first_position=fields.take_integer("first_position", least=1),
        last_position=fields.take_integer("last_position", least=1),
        first_recorded=fields.take_integer("first_recorded", least=-(1 << 62)),
        last_recorded=fields.take_integer("last_recorded", least=-(1 << 62)),
        body_bytes=fields.take_integer("body_bytes", most=MAX_BODY_BYTES),
        cursor=fields.take_optional_text("cursor", most=32 * 1024),
    )
    fields.finish()
    if not header.transactions <= header.last - header.first + 1 <= MAX_ENTRIES:
        raise corrupt(what, f"it claims sequences {header.first} to {header.last}")
    return header


def decode_segment(data: bytes, *, what: str = "a segment") -> Segment:
    """The inverse of `encode_segment`.

    Hashes that were left out are computed, and the chain is computed again and compared: what
    is returned is what was encoded. Raises `SegmentCorruptError`, `ManifestInvalidError`.
    """
    container = decode_container(data, MAGIC, what=what)
    header = _read_header(container.header, what)
    body = decompress(container.body, size=header.body_bytes, most=MAX_BODY_BYTES, what=what)
    try:
        entries, metadata = _decode_body(body, what)
    except (DecodeError, EntryError, OverflowError, ValueError, struct.error) as cause:
        raise corrupt(what, f"its entries cannot be read: {cause}") from cause
    _check_claims(header, entries, what)
    return Segment(header, entries, metadata)


def _decode_body(body: bytes, what: str) -> tuple[list[StoredEntry], dict[int, Pairs]]:
    entries: list[StoredEntry] = []
    metadata: dict[int, Pairs] = {}
    hashes: dict[str, bytes] = {}
    view = memoryview(body)
    place = 0
    while place < len(view):
        if place + _LENGTH.size > len(view):
            raise corrupt(what, "its body is cut short")
        (length,) = _LENGTH.unpack_from(view, place)
        place += _LENGTH.size
        if length > len(view) - place:
            raise corrupt(what, "its body is cut short")
        group = archive_pb2.ArchivedTransaction()
        try:
            group.ParseFromString(bytes(view[place : place + length]))
        except message.DecodeError as cause:
            raise corrupt(what, f"a transaction cannot be parsed: {cause}") from cause
        place += length
        _read_transaction(group, entries, metadata, hashes)
        if len(entries) > MAX_ENTRIES:
            raise corrupt(what, f"it holds over {MAX_ENTRIES} entries")
    return entries, metadata


def _read_transaction(
    group: archive_pb2.ArchivedTransaction,
    entries: list[StoredEntry],
    metadata: dict[int, Pairs],
    hashes: dict[str, bytes],
) -> None:
    continued = group.HasField("metadata_hash")
    pairs = [(pair.key, pair.value) for pair in group.metadata]
    group_hash = group.metadata_hash if continued else hash_metadata(pairs)
    if pairs and not continued:
        metadata[group.transaction_position] = pairs
    before = entries[-1] if entries else None
    position = before.position if before else 0
    recorded = write_microseconds(before.recorded_at) if before else 0
    for archived in group.entries:
        position += archived.position_step
        recorded += archived.recorded_step
        entry = StoredEntry(
            position=position,
            entry_id=UUID(bytes=archived.entry_id),
            transaction_id=group.transaction_id,
            transaction_position=group.transaction_position,
            transaction_size=group.transaction_size,
            aggregate=archived.aggregate,
            version=archived.version,
            format=archived.format,
            data=archived.data,
            key_id=archived.key_id,
            metadata_hash=_take_hash(archived, "metadata_hash", group_hash),
            prev_hash=_take_hash(
                archived,
                "prev_hash",
                _expect_prev(archived.version, hashes.get(archived.aggregate)),
            ),
            entry_hash=b"",
            recorded_at=read_microseconds(recorded),
            idempotency_key=archived.idempotency_key
            if archived.HasField("idempotency_key")
            else None,
        )
        entry = entry._replace(entry_hash=_take_hash(archived, "entry_hash", compute_hash(entry)))
        hashes[entry.aggregate] = entry.entry_hash
        entries.append(entry)


def _take_hash(archived: archive_pb2.ArchivedEntry, name: str, expected: bytes | None) -> bytes:
    found: bytes | None = getattr(archived, name) if archived.HasField(name) else expected
    if found is None or len(found) != HASH_BYTES:
        raise DecodeError(
            f"the {name} of {archived.aggregate!r:.80} version {archived.version} is missing",
            hint="the segment was altered: run oplog check",
        )
    return found


def _check_claims(header: SegmentHeader, entries: Sequence[StoredEntry], what: str) -> None:
    """Hold the header to what the body has."""
    claimed = header.last - header.first + 1
    if len(entries) != claimed:
        raise corrupt(what, f"it claims {claimed} entries and holds {len(entries)}")
    positions = [entry.position for entry in entries]
    recorded = [write_microseconds(entry.recorded_at) for entry in entries]
    found = (
        len({entry.transaction_position for entry in entries}),
        min(positions),
        max(positions),
        min(recorded),
        max(recorded),
        extend_chain(header.chain_before, entries, first=header.first),
    )
    said = (
        header.transactions,
        header.first_position,
        header.last_position,
        header.first_recorded,
        header.last_recorded,
        header.chain,
    )
    if found != said:
        raise corrupt(what, "its header does not say what its entries say")
