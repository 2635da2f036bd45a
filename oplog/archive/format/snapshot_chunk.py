r"""Chunks of a snapshot: rows of one table, and keys of rows that it no longer has.

Rows and keys are lines of COPY's text format; the caller passes the function that seals them. A
chunk of a base has rows only. One of a layer replaces rows, by key, and has the keys of deleted
ones (tombstones). The header is plaintext; every field is bound into each part's key derivation.

    container (see `container`) with the magic number `oplogsnp`
    body = sealed parts of the tombstones, then those of the rows, each of at most 15 MiB before

A part is sealed for the name `chunk of <schema>.<table>` and the object id that is
the first 16 bytes of sha256('oplog/v1/snapshot\0' || length of the description in 4 bytes ||
description || place in 4 bytes). The description is the header without what sealing adds to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

from oplog.archive.format.canonical_json import (
    Document,
    Format,
    KeyId,
    Name,
    Natural,
    Positive,
    encode_document,
    invalid,
    read_document,
)
from oplog.archive.format.container import (
    MAX_HEADER_BYTES,
    MAX_OBJECT_BYTES,
    corrupt,
    decode_container,
    encode_container,
)
from oplog.crypto.seal import SealContext
from oplog.errors import DecodeError, EntryError, EntryTooLargeError

MAGIC = b"oplogsnp"
PART_BYTES = 15 * 1024 * 1024
"""Most bytes that are sealed at once, below the limit of a sealed part."""
MAX_PARTS = 128
"""Of tombstones and rows together: over a gigabyte, which is the longest row there can be."""
MAX_COLUMNS = 1600
"""Of a table in Postgres."""
MAX_KEY_COLUMNS = 32
ColumnNames: TypeAlias = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_COLUMNS)]
KeyNames: TypeAlias = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_KEY_COLUMNS)]
_LABEL = b"oplog/v1/snapshot\0"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class PartSeal:
    """Seal format, key id and the sealing function."""

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
        the latest, so the use of earlier ones must be undone then. What `open_part`
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
        log_id=log_id,
        chunk_id=chunk_id,
        schema=content.schema,
        table=content.table,
        columns=content.columns,
        key=content.key,
        rows=content.rows.count(b"\n"),
        tombstones=content.tombstones.count(b"\n"),
        seal_format=seal.format,
        key_id=seal.key_id,
        # The sealed sizes are not known yet, and not described.
        tombstone_parts=tuple(ChunkPart(len(piece), 0) for piece in tombstones),
        row_parts=tuple(ChunkPart(len(piece), 0) for piece in rows),
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
    sizes = tuple(len(piece) for piece in sealed)
    data = encode_container(MAGIC, _write_header(header, sizes), body=b"".join(sealed))
    # A header of unusual names could be larger than a reader takes: better found out now.
    decode_chunk(data, what=f"a chunk of {content.schema}.{content.table}")
    return data


def decode_chunk(data: bytes, *, what: str) -> StoredChunk:
    """The chunk with its header read and nothing opened.

    Raises `SegmentCorruptError` or `ManifestInvalidError` for bytes that are no chunk.
    """
    document, body = decode_container(data, MAGIC, what=what)
    header = read_document(document, CHUNK_FORMATS, most=MAX_HEADER_BYTES, what=what)
    claimed = sum(part.stored_bytes for part in (*header.tombstone_parts, *header.row_parts))
    if claimed != len(body):
        raise corrupt(what, f"its parts claim {claimed} bytes, and it has {len(body)}")
    return StoredChunk(header, what, body)


# -- format 1 ---------------------------------------------------------------------------------

_Sizes: TypeAlias = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=PART_BYTES)], ...], Meta(max_length=MAX_PARTS)
]


class ChunkJson(Document, frozen=True, tag=1, tag_field="format"):
    """A chunk's header, in format 1: sizes before sealing by kind of line, after it in `stored`."""

    log_id: UUID
    chunk_id: UUID
    schema: Name
    table: Name
    columns: ColumnNames
    key: KeyNames
    rows: Natural
    tombstones: Natural
    seal_format: Annotated[int, Meta(ge=0, le=255)]
    key_id: KeyId
    raw_tombstones: _Sizes
    raw_rows: _Sizes
    stored: Annotated[tuple[Positive, ...], Meta(max_length=MAX_PARTS)]


def _write_header(header: ChunkHeader, stored: tuple[int, ...]) -> ChunkJson:
    return ChunkJson(
        log_id=header.log_id,
        chunk_id=header.chunk_id,
        schema=header.schema,
        table=header.table,
        columns=header.columns,
        key=header.key,
        rows=header.rows,
        tombstones=header.tombstones,
        seal_format=header.seal_format,
        key_id=header.key_id,
        raw_tombstones=tuple(part.raw_bytes for part in header.tombstone_parts),
        raw_rows=tuple(part.raw_bytes for part in header.row_parts),
        stored=stored,
    )


def _read_header(document: ChunkJson, what: str) -> ChunkHeader:
    check_names(document.columns, name="columns", what=what)
    check_names(document.key, name="key", what=what)
    if not set(document.key) <= set(document.columns):
        raise invalid(what, "its key is not among its columns")
    cut, raw, stored = document.raw_tombstones, document.raw_rows, document.stored
    if len(stored) != len(cut) + len(raw):
        raise invalid(what, "its lists of parts contradict each other")
    for count, sizes in ((document.rows, raw), (document.tombstones, cut)):
        # An empty line has its end.
        if (count == 0) != (not sizes) or count > sum(sizes):
            raise corrupt(what, f"it claims {count} lines in {sum(sizes)} bytes")
    parts = tuple(ChunkPart(*sizes) for sizes in zip((*cut, *raw), stored, strict=True))
    return ChunkHeader(
        log_id=document.log_id,
        chunk_id=document.chunk_id,
        schema=document.schema,
        table=document.table,
        columns=document.columns,
        key=document.key,
        rows=document.rows,
        tombstones=document.tombstones,
        seal_format=document.seal_format,
        key_id=document.key_id,
        tombstone_parts=parts[: len(cut)],
        row_parts=parts[len(cut) :],
    )


CHUNK_FORMATS: Mapping[int, Format[Any, ChunkHeader]] = MappingProxyType(
    {1: Format(ChunkJson, _read_header)}
)
"""How headers of each format are read."""


def check_names(found: Sequence[str], *, name: str, what: str) -> None:
    """Raise `ManifestInvalidError` unless all names are different."""
    if len(set(found)) != len(found):
        raise invalid(what, f"its {name!r} holds a name twice")


# -- what parts are sealed for ----------------------------------------------------------------


def _describe(header: ChunkHeader) -> bytes:
    described = msgspec.to_builtins(_write_header(header, ()))
    # Known only once the parts are sealed; the format of the seal is bound by the seal itself.
    del described["stored"], described["seal_format"]
    return encode_document(described)


def _find_context(header: ChunkHeader, description: bytes, place: int) -> SealContext:
    whole = sha256(
        b"".join((_LABEL, _LENGTH.pack(len(description)), description, _LENGTH.pack(place)))
    )
    name = f"chunk of {header.schema}.{header.table}"
    return SealContext(header.log_id, name, UUID(bytes=whole.digest()[:16]))


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
