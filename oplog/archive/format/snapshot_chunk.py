r"""Chunks of a snapshot: rows of one table, and keys of rows that it no longer has.

Pure. Must not know keys, types or a database: rows and keys are lines of COPY's text format,
sealed by whoever is handed in. A chunk of a base has rows only; one of a layer replaces rows,
by key, and has the keys of deleted ones (tombstones). The hard thing is that the header is
clear and yet must not be believed: all that it says is part of what each part is sealed for.

    container (see `container`) with the magic number `oplogsnp`
    body = sealed parts of the tombstones, then those of the rows, each of at most 15 MiB before

A part is sealed for the aggregate `oplog/snapshot/<schema>.<table>` and the entry id that is
the first 16 bytes of sha256('oplog/v1/snapshot\0' || length of the description in 4 bytes ||
description || place in 4 bytes). The description is the header without what sealing adds to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from oplog.archive.format.canonical_json import Fields, encode_document, invalid
from oplog.archive.format.container import (
    MAX_OBJECT_BYTES,
    corrupt,
    decode_container,
    encode_container,
)
from oplog.crypto.seal import SealContext
from oplog.errors import DecodeError, EntryError, EntryTooLargeError

MAGIC = b"oplogsnp"
FORMAT = 1
PART_BYTES = 15 * 1024 * 1024
"""Most bytes that are sealed at once, below the limit of a sealed entry."""
MAX_PARTS = 128
"""Of tombstones and rows together: over a gigabyte, which is the longest row there can be."""
MAX_COLUMNS = 1600
"""Of a table in Postgres."""
MAX_KEY_COLUMNS = 32
_MAX_NAME = 255
_LABEL = b"oplog/v1/snapshot\0"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class PartSeal:
    """How parts are sealed: what is stored beside them, and the deed."""

    format: int
    key_id: str
    seal: Callable[[bytes, SealContext], bytes]


class OpenPart(Protocol):
    """What `Sealer.open` does, with the log's check values of keys already filled in."""

    def __call__(self, data: bytes, context: SealContext, *, format: int, key_id: str) -> bytes:
        """The bytes that were sealed; `DecodeError` for what was never sealed."""
        ...


class ChunkPart(NamedTuple):
    """Sizes of one part in bytes, before and after sealing."""

    raw_bytes: int
    stored_bytes: int


Parts: TypeAlias = tuple[ChunkPart, ...]


@dataclass(frozen=True, slots=True)
class ChunkContent:
    """What a chunk holds: whole lines of COPY's text format in UTF-8.

    `rows` have the fields of `columns`, `tombstones` those of `key`, which are columns too.
    """

    schema: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: bytes = b""
    tombstones: bytes = b""


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What a chunk says of itself without being opened; `rows` and `tombstones` are counts."""

    log_id: UUID
    chunk_id: UUID
    schema: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: int
    tombstones: int
    seal_format: int
    key_id: str
    tombstone_parts: Parts
    row_parts: Parts

    @property
    def raw_bytes(self) -> int:
        """Bytes of all lines before sealing."""
        return sum(part.raw_bytes for part in (*self.tombstone_parts, *self.row_parts))


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk whose header was read; its lines are opened part by part, in bounded memory."""

    header: ChunkHeader
    what: str
    body: bytes

    def iterate_tombstones(self, open_part: OpenPart) -> Iterator[bytes]:
        """The keys' text in pieces, which need not end with a line; see `iterate_rows`."""
        header = self.header
        lines = _Lines(header.tombstones, len(header.key), "tombstones")
        return self._iterate(header.tombstone_parts, lines, open_part, first=0)

    def iterate_rows(self, open_part: OpenPart) -> Iterator[bytes]:
        """The rows' text in pieces, which need not end with a line.

        Raises `SegmentCorruptError` for what does not fit the header, with the last piece at
        the latest: whoever uses earlier ones must be able to undo that. What `open_part`
        raises for bytes that were altered or for a missing key passes through.
        """
        header = self.header
        lines = _Lines(header.rows, len(header.columns), "rows")
        return self._iterate(header.row_parts, lines, open_part, first=len(header.tombstone_parts))

    def _iterate(
        self, parts: Parts, lines: _Lines, open_part: OpenPart, *, first: int
    ) -> Iterator[bytes]:
        header = self.header
        every = (*header.tombstone_parts, *header.row_parts)
        start = sum(part.stored_bytes for part in every[:first])
        description = _describe(header)
        for place, part in enumerate(parts, first):
            stored = self.body[start : start + part.stored_bytes]
            start += part.stored_bytes
            context = _find_context(header, description, place)
            try:
                piece = open_part(stored, context, format=header.seal_format, key_id=header.key_id)
            except DecodeError as cause:
                raise corrupt(self.what, f"its part {place} cannot be opened: {cause}") from cause
            except EntryError as error:
                error.add_note(f"in {self.what}, rows of {header.schema}.{header.table}")
                raise
            if len(piece) != part.raw_bytes:
                raise corrupt(
                    self.what,
                    f"its part {place} has {len(piece)} bytes, its header says {part.raw_bytes}",
                )
            lines.count(piece)
            yield piece
        lines.check(self.what)


def encode_chunk(content: ChunkContent, *, log_id: UUID, chunk_id: UUID, seal: PartSeal) -> bytes:
    """The object's bytes. `chunk_id` is drawn at random for each chunk.

    Raises `EntryTooLargeError` for a chunk that no object can hold: a single row too wide.
    """
    tombstones, rows = _cut(content.tombstones), _cut(content.rows)
    header = ChunkHeader(
        log_id,
        chunk_id,
        content.schema,
        content.table,
        content.columns,
        content.key,
        content.rows.count(b"\n"),
        content.tombstones.count(b"\n"),
        seal.format,
        seal.key_id,
        tuple(ChunkPart(len(piece), 0) for piece in tombstones),
        tuple(ChunkPart(len(piece), 0) for piece in rows),
    )
    description = _describe(header)
    sealed = [
        seal.seal(piece, _find_context(header, description, place))
        for place, piece in enumerate((*tombstones, *rows))
    ]
    size = sum(map(len, sealed))
    if len(sealed) > MAX_PARTS or size > MAX_OBJECT_BYTES - len(description) - 64 * 1024:
        raise EntryTooLargeError(
            f"a row of {content.schema}.{content.table} does not fit into an object: "
            f"sealed it has {size} bytes",
            hint="exclude its widest column with the reason, or keep such values outside of the "
            "table",
        )
    document = _list_described(header)
    document["seal_format"] = seal.format
    document["stored"] = [len(piece) for piece in sealed]
    data = encode_container(MAGIC, document, body=b"".join(sealed))
    # A header of unusual names could be larger than a reader takes: better found out now.
    decode_chunk(data, what=f"a chunk of {content.schema}.{content.table}")
    return data


def decode_chunk(data: bytes, *, what: str) -> StoredChunk:
    """The chunk with its header read and nothing opened.

    Raises `SegmentCorruptError` or `ManifestInvalidError` for bytes that are no chunk.
    """
    document, body = decode_container(data, MAGIC, what=what)
    fields = Fields(document, what)
    fields.take_format(FORMAT)
    columns = take_names(fields, "columns", most=MAX_COLUMNS, what=what)
    key = take_names(fields, "key", most=MAX_KEY_COLUMNS, what=what)
    if not set(key) <= set(columns):
        raise invalid(what, "its key is not among its columns")
    cut, raw = take_sizes(fields, "raw_tombstones", what), take_sizes(fields, "raw_rows", what)
    stored = fields.take_list("stored", most=MAX_PARTS)
    if len(stored) != len(cut) + len(raw) or not all(type(n) is int and n > 0 for n in stored):
        raise invalid(what, "its lists of parts contradict each other")
    if sum(stored) != len(body):
        raise corrupt(what, f"its parts claim {sum(stored)} bytes, and it has {len(body)}")
    parts = tuple(ChunkPart(*sizes) for sizes in zip((*cut, *raw), stored, strict=True))
    header = ChunkHeader(
        take_uuid(fields, "log_id", what),
        take_uuid(fields, "chunk_id", what),
        take_name(fields, "schema", what),
        take_name(fields, "table", what),
        columns,
        key,
        fields.take_integer("rows"),
        fields.take_integer("tombstones"),
        fields.take_integer("seal_format", most=255),
        fields.take_text("key_id", most=_MAX_NAME),
        parts[: len(cut)],
        parts[len(cut) :],
    )
    fields.finish()
    _check_storable(header.key_id, what)
    for count, sizes in ((header.rows, raw), (header.tombstones, cut)):
        # An empty line has its end.
        if (count == 0) != (not sizes) or count > sum(sizes):
            raise corrupt(what, f"it claims {count} lines in {sum(sizes)} bytes")
    return StoredChunk(header, what, body)


# -- what parts are sealed for ----------------------------------------------------------------


def _list_described(header: ChunkHeader) -> dict[str, Any]:
    return {
        "chunk_id": str(header.chunk_id),
        "columns": list(header.columns),
        "format": FORMAT,
        "key": list(header.key),
        "key_id": header.key_id,
        "log_id": str(header.log_id),
        "raw_rows": [part.raw_bytes for part in header.row_parts],
        "raw_tombstones": [part.raw_bytes for part in header.tombstone_parts],
        "rows": header.rows,
        "schema": header.schema,
        "table": header.table,
        "tombstones": header.tombstones,
    }


def _describe(header: ChunkHeader) -> bytes:
    return encode_document(_list_described(header))


def _find_context(header: ChunkHeader, description: bytes, place: int) -> SealContext:
    whole = sha256(
        b"".join((_LABEL, _LENGTH.pack(len(description)), description, _LENGTH.pack(place)))
    )
    aggregate = f"oplog/snapshot/{header.schema}.{header.table}"
    return SealContext(header.log_id, aggregate, UUID(bytes=whole.digest()[:16]))


# -- lines ------------------------------------------------------------------------------------


def _cut(lines: bytes) -> list[bytes]:
    return [lines[start : start + PART_BYTES] for start in range(0, len(lines), PART_BYTES)]


class _Lines:
    """Counts lines and fields of pieces, and compares them with what was claimed.

    COPY escapes both of their ends wherever they are part of a value.
    """

    def __init__(self, lines: int, fields: int, name: str) -> None:
        self._lines = lines
        self._fields = fields
        self._name = name
        self._ends = 0
        self._tabs = 0
        self._whole = True

    def count(self, piece: bytes) -> None:
        """The next piece, never empty."""
        self._ends += piece.count(b"\n")
        self._tabs += piece.count(b"\t")
        self._whole = piece.endswith(b"\n")

    def check(self, what: str) -> None:
        """Raise `SegmentCorruptError` unless all were there."""
        if self._ends != self._lines or not self._whole:
            raise corrupt(what, f"it has {self._ends} {self._name} and claims {self._lines}")
        if self._tabs != self._lines * (self._fields - 1):
            raise corrupt(what, f"its {self._name} do not have {self._fields} fields each")


# -- members of documents, shared with the manifest -------------------------------------------


def take_name(fields: Fields, name: str, what: str) -> str:
    """A name of something in Postgres."""
    found = fields.take_text(name, most=_MAX_NAME)
    if not found:
        raise invalid(what, f"its {name!r} is empty")
    return _check_storable(found, what)


def take_names(fields: Fields, name: str, *, most: int, what: str) -> tuple[str, ...]:
    """Names of different columns, at least one."""
    return check_names(fields.take_list(name, most=most), name=name, what=what)


def check_names(found: Sequence[Any], *, name: str, what: str) -> tuple[str, ...]:
    """`found`, if they are names of different columns."""
    for one in found:
        if not isinstance(one, str) or not 0 < len(one) <= _MAX_NAME:
            raise invalid(what, f"its {name!r} holds {one!r:.60}")
        _check_storable(one, what)
    if not found or len(set(found)) != len(found):
        raise invalid(what, f"its {name!r} holds a name twice, or none")
    return tuple(found)


def take_uuid(fields: Fields, name: str, what: str) -> UUID:
    """A UUID in its usual spelling."""
    found = fields.take_text(name, most=36)
    try:
        read = UUID(found)
    except ValueError as cause:
        raise invalid(what, f"its {name!r} is no UUID") from cause
    if str(read) != found:
        raise invalid(what, f"its {name!r} is not spelled as a UUID is")
    return read


def take_sizes(fields: Fields, name: str, what: str) -> list[int]:
    """Sizes of parts before sealing."""
    found = fields.take_list(name, most=MAX_PARTS)
    for size in found:
        if type(size) is not int or not 0 < size <= PART_BYTES:
            raise invalid(what, f"its {name!r} holds {size!r:.60}")
    return found


def _check_storable(text: str, what: str) -> str:
    if "\x00" in text:
        raise invalid(what, "it holds a NUL in a name")
    return text
