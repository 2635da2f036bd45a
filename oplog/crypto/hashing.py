r"""Hashes of entries, by which an altered, moved or missing entry is found.

Hashes are computed over stored bytes only, so a log can be checked without its keys. The append
function computes `hash_entry` in SQL, where the ticket is locked; both must give the same bytes:

    sha256('oplog/v1/entry\0' || prev_hash || int8send(version)
           || timestamptz_send(recorded_at) || body_hash)

Every hash starts with a label of its own, so the input of one is never the input of another. A
part without a fixed length is preceded by its length: 4 bytes, big endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NoReturn
from uuid import UUID

from oplog.entry import check_text
from oplog.errors import DecodeError, EntryError

HASH_BYTES = 32
"""Length of every hash here, in bytes."""
ZERO_HASH = bytes(HASH_BYTES)
"""`prev_hash` of the first entry of an aggregate."""

_BODY_LABEL = b"oplog/v1/body\0"
_ENTRY_LABEL = b"oplog/v1/entry\0"
_METADATA_LABEL = b"oplog/v1/metadata\0"
_LENGTH = struct.Struct(">I")
_BODY_START = struct.Struct(">I16s")
_ENTRY_NUMBERS = struct.Struct(">qq")

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Epoch of Postgres' timestamps."""
_MICROSECOND = timedelta(microseconds=1)


def hash_metadata(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Return the hash of a transaction's metadata, as (key, value) pairs in stored order.

    Another order gives another hash. Raises `EntryError` for text that Postgres could not have
    stored.
    """
    parts = [_METADATA_LABEL, _LENGTH.pack(len(pairs))]
    for pair in pairs:
        for text in pair:
            data = check_text(text, "metadata", EntryError)
            parts += (_LENGTH.pack(len(data)), data)
    return sha256(b"".join(parts)).digest()


def hash_body(
    *,
    format: int,
    entry_id: UUID,
    aggregate: str,
    key_id: str,
    metadata_hash: bytes,
    transaction_size: int,
    idempotency_key: str | None,
    data: bytes,
) -> bytes:
    """Return the hash of everything in an entry that is known before its ticket is locked.

    `data` are the bytes as stored; `transaction_size` is the number of entries of the
    transaction. No idempotency key and an empty one give different hashes. Raises `EntryError`
    for text that Postgres could not have stored, `DecodeError` for a number or hash of a wrong
    size.
    """
    if len(metadata_hash) != HASH_BYTES:
        _refuse_length("metadata_hash", metadata_hash)
    name = check_text(aggregate, "aggregate name", EntryError)
    key_name = check_text(key_id, "key id", EntryError)
    try:
        head = [
            _BODY_LABEL,
            _BODY_START.pack(format, entry_id.bytes),
            _LENGTH.pack(len(name)),
            name,
            _LENGTH.pack(len(key_name)),
            key_name,
            metadata_hash,
            _LENGTH.pack(transaction_size),
        ]
    except struct.error as cause:
        raise _out_of_range(f"format {format}, transaction size {transaction_size}") from cause
    if idempotency_key is None:
        head.append(b"\0")
    else:
        request = check_text(idempotency_key, "idempotency key", EntryError)
        head += (b"\1", _LENGTH.pack(len(request)), request)
    head.append(_LENGTH.pack(len(data)))
    digest = sha256(b"".join(head))
    digest.update(data)  # separately: joining would copy up to 16 MiB
    return digest.digest()


def hash_entry(*, prev_hash: bytes, version: int, recorded_at: datetime, body_hash: bytes) -> bytes:
    """Return the hash of an entry in its aggregate's chain: the next entry's `prev_hash`.

    `recorded_at` has a time zone and microseconds, as Postgres stores it. Raises `EntryError`
    for a naive datetime, `DecodeError` for a number or hash of a wrong size.
    """
    if len(prev_hash) != HASH_BYTES:
        _refuse_length("prev_hash", prev_hash)
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
        numbers = _ENTRY_NUMBERS.pack(version, microseconds)
    except struct.error as cause:
        raise _out_of_range(f"version {version}") from cause
    return sha256(b"".join((_ENTRY_LABEL, prev_hash, numbers, body_hash))).digest()


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
