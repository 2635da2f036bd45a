r"""Hashes of records, by which an altered, moved or missing record is found.

Hashes are computed over stored bytes only, so a log can be checked without its keys. The append
function computes `hash_record` in SQL, where tickets are locked; both must give the same bytes:

    sha256('oplog/v1/record\0' || body_hash || int8send(position) || timestamptz_send(recorded_at)
           || [unless all versions are 1: int8send of each version, then the hash of the record
               before for each version over 1])

Every hash starts with a label of its own, so the input of one is never the input of another. A
part without a fixed length is preceded by its length: 4 bytes, big endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import chain
from typing import NoReturn
from uuid import UUID

from oplog.entry import check_text
from oplog.errors import DecodeError, EntryError

HASH_BYTES = 32
"""Length of every hash here, in bytes."""
ZERO_HASH = bytes(HASH_BYTES)
"""The hash before the first record of an aggregate."""

_BODY_LABEL = b"oplog/v1/record-body\0"
_RECORD_LABEL = b"oplog/v1/record\0"
_LENGTH = struct.Struct(">I")
_BODY_START = struct.Struct(">I16s")
_RECORD_NUMBERS = struct.Struct(">qq")
_AT_ONCE = 1024

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Epoch of Postgres' timestamps."""
_MICROSECOND = timedelta(microseconds=1)


def hash_body(
    *,
    format: int,
    record_id: UUID,
    key_id: str,
    metadata: Sequence[tuple[str, str]],
    idempotency_key: str | None,
    aggregates: Sequence[str],
    parts: Sequence[tuple[int, bytes]],
) -> bytes:
    """Return the hash of everything in a record that is known before its tickets are locked.

    `metadata` are pairs in stored order; another order gives another hash. `parts` are pairs of
    the first aggregate's number and the bytes as stored. No idempotency key and an empty one give
    different hashes. Raises `EntryError` for text that Postgres could not have stored,
    `DecodeError` for a number out of its range.
    """
    try:
        head = [_BODY_LABEL, _BODY_START.pack(format, record_id.bytes)]
        _add_texts(head, (key_id,), "key id")
        head.append(_LENGTH.pack(len(metadata)))
        _add_texts(head, chain.from_iterable(metadata), "metadata")
        if idempotency_key is None:
            head.append(b"\0")
        else:
            head.append(b"\1")
            _add_texts(head, (idempotency_key,), "idempotency key")
        head.append(_LENGTH.pack(len(aggregates)))
        digest = sha256(b"".join(head))
        # A few at a time: a record may have millions.
        for start in range(0, len(aggregates), _AT_ONCE):
            names: list[bytes] = []
            _add_texts(names, aggregates[start : start + _AT_ONCE], "aggregate name")
            digest.update(b"".join(names))
        digest.update(_LENGTH.pack(len(parts)))
        for first, data in parts:
            digest.update(_LENGTH.pack(first) + sha256(data).digest())
    except struct.error as cause:
        raise _out_of_range(f"format {format}, or where a part begins") from cause
    return digest.digest()


def _add_texts(head: list[bytes], texts: Iterable[str], what: str) -> None:
    for text in texts:
        data = check_text(text, what, EntryError)
        head += (_LENGTH.pack(len(data)), data)


def hash_record(
    *,
    body_hash: bytes,
    position: int,
    recorded_at: datetime,
    versions: Sequence[int],
    prev_hashes: Sequence[bytes],
) -> bytes:
    """Return the hash of a record: the `prev_hash` of the next record of each of its aggregates.

    `versions` and `prev_hashes` have one item for each aggregate; hashes before version 1 do not
    count. `recorded_at` has a time zone and microseconds, as Postgres stores it. Raises
    `EntryError` for a naive datetime, `DecodeError` for a number or hash of a wrong size.
    """
    if len(body_hash) != HASH_BYTES:
        _refuse_length("body_hash", body_hash)
    if recorded_at.utcoffset() is None:
        raise EntryError(
            f"recorded_at {recorded_at.isoformat()} has no time zone",
            hint="read it as timestamptz; a guessed time zone would change the hash",
        )
    # Integers only: a float of seconds rounds the last microsecond differently from Postgres.
    microseconds = (recorded_at - _EPOCH) // _MICROSECOND
    try:
        hashed = [_RECORD_LABEL, body_hash, _RECORD_NUMBERS.pack(position, microseconds)]
        if any(version != 1 for version in versions):
            hashed.append(struct.pack(f">{len(versions)}q", *versions))
            for version, prev_hash in zip(versions, prev_hashes, strict=True):
                if version != 1:
                    if len(prev_hash) != HASH_BYTES:
                        _refuse_length("prev_hash", prev_hash)
                    hashed.append(prev_hash)
    except struct.error as cause:
        raise _out_of_range(f"position {position}, or a version") from cause
    return sha256(b"".join(hashed)).digest()


def _refuse_length(name: str, value: bytes) -> NoReturn:
    # Parts of fixed length are hashed without their length, so another length is ambiguous.
    raise DecodeError(
        f"{name} has {len(value)} bytes; a hash has {HASH_BYTES}",
        hint="the stored row is damaged; restore it from the archive or a backup",
    )


def _out_of_range(what: str) -> DecodeError:
    return DecodeError(
        f"{what}: out of the range of its column",
        hint="the stored row is damaged; restore it from the archive or a backup",
    )
