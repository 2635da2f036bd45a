"""Objects with a clear header: a magic number, the header's length, the header, the body.

    8 bytes magic | 4 bytes length of the header, big endian | header, canonical JSON | body

Pure. Must not know what header or body say. The hard thing is memory: nothing is believed
about sizes before it was compared with what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import zstandard

from oplog.archive.format.canonical_json import decode_document, encode_document
from oplog.errors import SegmentCorruptError

MAX_HEADER_BYTES = 1024 * 1024
"""Room for the names of as many columns as a table can have."""
MAX_OBJECT_BYTES = 64 * 1024 * 1024
"""Largest object: no store needs it sent in parts."""

_PREFIX = struct.Struct(">8sI")
_ZSTD_LEVEL = 3


class Container(NamedTuple):
    """A header as decoded, and the body's bytes as stored."""

    header: dict[str, Any]
    body: bytes


def encode_container(magic: bytes, header: Mapping[str, Any], *, body: bytes) -> bytes:
    """The object's bytes; `SegmentCorruptError` for what could not be read back."""
    text = encode_document(header)
    size = _PREFIX.size + len(text) + len(body)
    if len(text) > MAX_HEADER_BYTES or size > MAX_OBJECT_BYTES:
        raise corrupt("an object to be written", f"it has {len(text)} of {size} bytes of header")
    return b"".join((_PREFIX.pack(magic, len(text)), text, body))


def decode_container(data: bytes, magic: bytes, *, what: str) -> Container:
    """The inverse of `encode_container`.

    Raises `SegmentCorruptError` for bytes that are no such object, `ManifestInvalidError` for
    a header that is not canonical.
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
    header = decode_document(data[_PREFIX.size : end], most=MAX_HEADER_BYTES, what=what)
    return Container(header, data[end:])


def compress(body: bytes) -> bytes:
    """One zstd frame that declares its size; the same bytes each time."""
    # Threads would cut the input at other places, and so give other bytes.
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True, threads=0)
    return compressor.compress(body)


def decompress(body: bytes, *, size: int, most: int, what: str) -> bytes:
    """The inverse of `compress`; `SegmentCorruptError` unless it gives exactly `size` bytes."""
    if size > most:
        raise corrupt(what, f"its body claims {size} bytes, over the limit of {most}")
    try:
        # Asked before decompressing: a frame that declares its size is given that much memory,
        # whatever limit is passed, and 6 kB can declare gigabytes.
        declared = zstandard.frame_content_size(body)
        if declared != size:
            raise corrupt(what, f"its body claims {size} bytes, its zstd frame {declared}")
        found = zstandard.ZstdDecompressor(max_window_size=most).decompress(
            body, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as cause:
        raise corrupt(what, f"its body is not one zstd frame: {cause}") from cause
    if len(found) != size:
        raise corrupt(what, f"its body claims {size} bytes and has {len(found)}")
    return found


def corrupt(what: str, why: str) -> SegmentCorruptError:
    """The error for an object whose bytes are not what this library writes."""
    return SegmentCorruptError(
        f"{what} is not what this library writes: {why}",
        hint="run oplog check to see what else is wrong, then oplog resync to write it again "
        "from the database",
    )
