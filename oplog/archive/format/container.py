"""Objects with a clear header: a magic number, the header's length, the header, the body.

    8 bytes magic | 4 bytes length of the header, big endian | header, canonical JSON | body

Sizes that an object claims are compared with what is there before memory is taken for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from oplog.archive.format.canonical_json import encode_document
from oplog.crypto.compression import Zstd
from oplog.errors import SegmentCorruptError

MAX_HEADER_BYTES = 1024 * 1024
"""Room for the names of as many columns as a table can have."""
MAX_OBJECT_BYTES = 260 * 1024 * 1024
"""Largest object: a segment of the largest body, which may not compress. No store needs it sent in
parts."""

_PREFIX = struct.Struct(">8sI")


class Container(NamedTuple):
    """The bytes of a header, which is a document, and of the body as stored."""

    header: bytes
    body: bytes


def encode_container(magic: bytes, header: Struct | Mapping[str, Any], *, body: bytes) -> bytes:
    """The object's bytes; `SegmentCorruptError` for what could not be read back."""
    text = encode_document(header)
    size = _PREFIX.size + len(text) + len(body)
    if len(text) > MAX_HEADER_BYTES or size > MAX_OBJECT_BYTES:
        raise corrupt("an object to be written", f"it has {len(text)} of {size} bytes of header")
    return b"".join((_PREFIX.pack(magic, len(text)), text, body))


def decode_container(data: bytes, magic: bytes, *, what: str) -> Container:
    """The inverse of `encode_container`, but that the header is not decoded.

    Raises `SegmentCorruptError` for bytes that are no such object.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise corrupt(what, f"it has {len(data)} bytes, over the limit of {MAX_OBJECT_BYTES}")
    if len(data) < _PREFIX.size:
        raise corrupt(what, f"it has {len(data)} bytes only")
    found, length = _PREFIX.unpack_from(data)
    if found != magic:
        raise corrupt(what, f"it begins with {found!r}, not {magic!r}")
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(data):
        raise corrupt(what, f"its header claims {length} bytes")
    end = _PREFIX.size + length
    return Container(data[_PREFIX.size : end], data[end:])


def compress(body: bytes) -> bytes:
    """One zstd frame that declares its size; the same bytes each time."""
    return Zstd(most=MAX_OBJECT_BYTES).compress(body)


def decompress(body: bytes, *, size: int, most: int, what: str) -> bytes:
    """The inverse of `compress`; `SegmentCorruptError` unless it gives exactly `size` bytes."""
    if size > most:
        raise corrupt(what, f"its body claims {size} bytes, over the limit of {most}")
    try:
        return Zstd(most=most).decompress(body, size=size)
    except ValueError as cause:
        raise corrupt(what, str(cause)) from cause


def corrupt(what: str, why: str) -> SegmentCorruptError:
    """The error for an object whose bytes are not what this library writes."""
    return SegmentCorruptError(
        f"{what} is not what this library writes: {why}",
        hint="run oplog check to see what else is wrong, then oplog resync to write it again "
        "from the database",
    )
