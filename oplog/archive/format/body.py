"""The body of a segment: entries and their transactions' metadata, as bytes and back.

What follows from the rest (hashes, mostly, which do not compress) is left out and computed again
when the segment is read; so reading is checking. A row that was altered in the database is
carried as it is, never mended.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from uuid import UUID

from google.protobuf import message

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format.container import corrupt
from oplog.crypto.hashing import HASH_BYTES, ZERO_HASH, hash_body, hash_entry, hash_metadata
from oplog.errors import DecodeError, EntryError
from oplog.store.rows import StoredEntry, read_microseconds, write_microseconds

MAX_ENTRIES = 1_000_000
MAX_PAIRS = 100_000
"""Pairs of metadata of one transaction, many times what the log takes."""

Pairs: TypeAlias = list[tuple[str, str]]

_LENGTH = struct.Struct(">I")
_METADATA_TAG, _ENTRIES_TAG = 0x22, 0x2A
_WITH_LENGTH = frozenset((_METADATA_TAG, _ENTRIES_TAG, 0x32))
_FIELDS = _WITH_LENGTH | {0x08, 0x10, 0x18}
"""First bytes of the fields of `ArchivedTransaction`: number and kind of each."""


def encode_body(entries: Sequence[StoredEntry], metadata: Mapping[int, Pairs]) -> list[bytes]:
    """The parts of a body, to be joined; entries are sorted by (transaction position, position)."""
    parts: list[bytes] = []
    hashes: dict[str, bytes] = {}
    position = recorded = 0
    group: archive_pb2.ArchivedTransaction | None = None
    group_hash = b""
    for entry in entries:
        if group is None or not _belongs(entry, group):
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


def _belongs(entry: StoredEntry, group: archive_pb2.ArchivedTransaction) -> bool:
    # All three: of an altered row each may be another than its neighbours', and is to stay so.
    return (entry.transaction_position, entry.transaction_id, entry.transaction_size) == (
        group.transaction_position,
        group.transaction_id,
        group.transaction_size,
    )


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


def decode_body(body: bytes, what: str, *, most: int) -> tuple[list[StoredEntry], dict[int, Pairs]]:
    """At most `most` entries in order, and metadata by transaction position.

    Raises `SegmentCorruptError`, or what the values of an entry raise.
    """
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
        _count_parts(view[place : place + length], what, most=most - len(entries))
        group = archive_pb2.ArchivedTransaction()
        try:
            group.ParseFromString(bytes(view[place : place + length]))
        except message.DecodeError as cause:
            raise corrupt(what, f"a transaction cannot be parsed: {cause}") from cause
        place += length
        if group.HasField("metadata_hash") and group.metadata:
            raise corrupt(what, "a transaction has metadata and was begun in an earlier segment")
        _read_transaction(group, entries, metadata, hashes)
    return entries, metadata


def _count_parts(data: memoryview, what: str, *, most: int) -> None:
    """Look at the outermost fields of a transaction before they are parsed.

    Two bytes are an entry, or a pair of metadata, to the parser, and cost it a hundred times
    that: without a limit a few kilobytes, well compressed, would take gigabytes.
    """
    place = entries = pairs = 0
    while place < len(data):
        tag = data[place]
        if tag not in _FIELDS:
            raise corrupt(what, f"a transaction has an unknown field ({tag:#04x})")
        value, place = _read_varint(data, place + 1, what)
        if tag in _WITH_LENGTH:
            place += value
            entries += tag == _ENTRIES_TAG
            pairs += tag == _METADATA_TAG
        if entries > most or pairs > MAX_PAIRS or place > len(data):
            raise corrupt(what, "a transaction is cut short, or holds more than its segment claims")
    if not entries:
        # A body of nothing but these would take a minute.
        raise corrupt(what, "a transaction holds no entry")


def _read_varint(data: memoryview, place: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a number has no bit 7
            return value, place
    raise corrupt(what, "a number in a transaction has no end")


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
