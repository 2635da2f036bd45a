"""The body of a segment: records as bytes, and back.

What follows from the rest (hashes, mostly, which do not compress) is left out and computed again
when the segment is read; so reading is checking. A row that was altered in the database is
carried as it is, never mended.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

from google.protobuf import message

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format.container import corrupt
from oplog.crypto.hashing import ZERO_HASH
from oplog.errors import DecodeError
from oplog.payload.varint import LAST_IN_NUMBER, read_varint
from oplog.store.rows import (
    Part,
    StoredRecord,
    compute_hash,
    read_microseconds,
    write_microseconds,
)

MAX_RECORDS = 1_000_000
MAX_ITEMS = 4_000_000
"""Aggregates in all records of a segment; and so many pairs, hashes or parts."""
MAX_PARTS = 65_536
"""Parts of one record, many times what the log takes."""
MAX_PAIRS = 100_000
"""Pairs of metadata of one record, many times what the log takes."""

_LENGTH = struct.Struct(">I")
_PAIRS, _AGGREGATES, _VERSIONS, _PREV_HASHES, _PARTS = 0x3A, 0x4A, 0x52, 0x5A, 0x62
_REPEATED = frozenset((_PAIRS, _AGGREGATES, _PREV_HASHES, _PARTS))
_WITH_LENGTH = _REPEATED | {_VERSIONS, 0x12, 0x2A, 0x42, 0x6A}
_FIELDS = _WITH_LENGTH | {0x08, 0x18, 0x20, 0x30}
"""First bytes of the fields of `ArchivedRecord`: number and kind of each."""
_GOES_ON = bytes(range(LAST_IN_NUMBER, 256))


# -- encoding -----------------------------------------------------------------------------


def encode_body(records: Sequence[StoredRecord]) -> list[bytes]:
    """The pieces of a body, to be joined, of records in the order of their sequence.

    Raises `DecodeError` for a record that no log has, `SegmentCorruptError` for more than a
    segment holds.
    """
    pieces: list[bytes] = []
    hashes: dict[str, bytes] = {}
    room = _make_room()
    position = recorded = 0
    for record in records:
        moment = write_microseconds(record.recorded_at)
        try:
            archived = _write_record(record, hashes)
            archived.position_step = record.position - position
            archived.recorded_step = moment - recorded
        except ValueError as cause:
            raise _refuse_row(record, str(cause)) from cause
        data = archived.SerializeToString(deterministic=True)
        _check_fields(memoryview(data), room, "a segment to be written")
        pieces += (_LENGTH.pack(len(data)), data)
        position, recorded = record.position, moment
        hashes.update(dict.fromkeys(record.aggregates, record.record_hash))
    return pieces


def _write_record(record: StoredRecord, hashes: Mapping[str, bytes]) -> archive_pb2.ArchivedRecord:
    """All but its steps; `hashes` are those of the records before, by aggregate."""
    counts = {len(record.aggregates), len(record.versions), len(record.prev_hashes)}
    if len(counts) != 1:
        raise _refuse_row(
            record, "it does not have a version and a previous hash for each aggregate"
        )
    archived = archive_pb2.ArchivedRecord(
        record_id=record.record_id.bytes,
        transaction_id=record.transaction_id,
        format=record.format,
        key_id=record.key_id,
        idempotency_key=record.idempotency_key,
        aggregates=record.aggregates,
    )
    for key, value in record.metadata:
        archived.metadata.add(key=key, value=value)
    for part in record.parts:
        archived.parts.add(first=part.first, data=part.data)
    if any(version != 1 for version in record.versions):
        archived.versions.extend(record.versions)
    expected = _expect_prev(record.aggregates, record.versions, hashes)
    for number, prev_hash in enumerate(record.prev_hashes):
        if prev_hash != expected[number]:
            archived.prev_hashes.add(aggregate=number, hash=prev_hash)
    if record.record_hash != compute_hash(record):
        archived.record_hash = record.record_hash
    return archived


def _expect_prev(
    aggregates: Sequence[str], versions: Sequence[int], hashes: Mapping[str, bytes]
) -> list[bytes | None]:
    """The hash before each aggregate's version, as far as it follows from what came before."""
    return [
        ZERO_HASH if version == 1 else hashes.get(aggregate)
        for aggregate, version in zip(aggregates, versions, strict=True)
    ]


def _refuse_row(record: StoredRecord, why: str) -> DecodeError:
    return DecodeError(
        f"the record at position {record.position} cannot be archived: {why}",
        hint="its row in oplog_record was altered: restore it from a backup",
    )


# -- decoding -----------------------------------------------------------------------------


def decode_body(body: bytes, what: str, *, most: int) -> list[StoredRecord]:
    """At most `most` records, in order.

    Raises `SegmentCorruptError`, or what the values of a record raise.
    """
    records: list[StoredRecord] = []
    hashes: dict[str, bytes] = {}
    room = _make_room()
    view = memoryview(body)
    place = 0
    while place < len(view):
        if len(records) == most:
            raise corrupt(what, f"its body holds more than the {most} records that it claims")
        if place + _LENGTH.size > len(view):
            raise corrupt(what, "its body is cut short")
        (length,) = _LENGTH.unpack_from(view, place)
        place += _LENGTH.size
        if length > len(view) - place:
            raise corrupt(what, "its body is cut short")
        data = view[place : place + length]
        _check_fields(data, room, what)
        archived = archive_pb2.ArchivedRecord()
        try:
            archived.ParseFromString(bytes(data))
        except message.DecodeError as cause:
            raise corrupt(what, f"a record cannot be parsed: {cause}") from cause
        record = _read_record(archived, records[-1] if records else None, hashes=hashes)
        records.append(record)
        hashes.update(dict.fromkeys(record.aggregates, record.record_hash))
        place += length
    return records


def _make_room() -> dict[int, int]:
    """How many items of each kind a body may hold."""
    return dict.fromkeys((*_REPEATED, _VERSIONS), MAX_ITEMS)


def _check_fields(data: memoryview, room: dict[int, int], what: str) -> None:
    """Look at the outermost fields of a record before they are parsed; `room` becomes less.

    Two bytes are an aggregate, or a part, to the parser, and cost it many times that: without a
    limit a few kilobytes, well compressed, would take gigabytes.
    """
    left = dict(room)
    left[_PAIRS] = min(left[_PAIRS], MAX_PAIRS)
    left[_PARTS] = min(left[_PARTS], MAX_PARTS)
    allowed = dict(left)
    single = set(_FIELDS - _REPEATED)
    refuse = partial(corrupt, what)
    place, end = 0, len(data)
    while place < end:
        tag = data[place]
        value, start = read_varint(data, place + 1, refuse=refuse)
        place = start + value if tag in _WITH_LENGTH else start
        if place > end:
            raise corrupt(what, "a record is cut short")
        if tag in single:
            single.remove(tag)
        elif tag not in _REPEATED:
            raise corrupt(what, f"a record has an unknown field, or one twice ({tag:#04x})")
        if tag in left:
            left[tag] -= _count_numbers(data[start:place]) if tag == _VERSIONS else 1
            if left[tag] < 0:
                raise corrupt(what, f"it holds more than a segment may ({tag:#04x})")
    for tag, before in allowed.items():
        room[tag] -= before - left[tag]


def _count_numbers(data: memoryview) -> int:
    """As many as bytes that end one."""
    return len(bytes(data).translate(None, _GOES_ON))


def _read_record(
    archived: archive_pb2.ArchivedRecord,
    before: StoredRecord | None,
    *,
    hashes: Mapping[str, bytes],
) -> StoredRecord:
    position = (before.position if before else 0) + archived.position_step
    recorded = write_microseconds(before.recorded_at) if before else 0
    aggregates = tuple(archived.aggregates)
    versions = tuple(archived.versions) or (1,) * len(aggregates)
    if len(versions) != len(aggregates):
        raise _refuse_record(position, f"{len(versions)} versions of {len(aggregates)} aggregates")
    record = StoredRecord(
        position=position,
        record_id=UUID(bytes=archived.record_id),
        transaction_id=archived.transaction_id,
        format=archived.format,
        key_id=archived.key_id,
        parts=tuple([Part(part.first, part.data) for part in archived.parts]),
        aggregates=aggregates,
        versions=versions,
        prev_hashes=_read_prev(archived, _expect_prev(aggregates, versions, hashes), position),
        metadata=tuple([(pair.key, pair.value) for pair in archived.metadata]),
        record_hash=archived.record_hash,
        recorded_at=read_microseconds(recorded + archived.recorded_step),
        idempotency_key=archived.idempotency_key if archived.HasField("idempotency_key") else None,
    )
    if archived.HasField("record_hash"):
        return record
    computed = compute_hash(record)
    if computed is None:
        raise _refuse_record(position, "no hash, and it can have none")
    return record._replace(record_hash=computed)


def _read_prev(
    archived: archive_pb2.ArchivedRecord, expected: list[bytes | None], position: int
) -> tuple[bytes, ...]:
    least = 0
    for one in archived.prev_hashes:
        if not least <= one.aggregate < len(expected):
            raise _refuse_record(position, f"a hash before aggregate {one.aggregate}, out of place")
        expected[one.aggregate] = one.hash
        least = one.aggregate + 1
    found = tuple([prev_hash for prev_hash in expected if prev_hash is not None])
    if len(found) != len(expected):
        number = expected.index(None)
        raise _refuse_record(
            position, f"no hash before aggregate {number}, which follows from none"
        )
    return found


def _refuse_record(position: int, what: str) -> DecodeError:
    return DecodeError(
        f"the record at position {position} has {what}",
        hint="the segment was altered: run oplog check",
    )
