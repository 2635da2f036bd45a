"""Reads a stored snapshot: tables' rows, layers and heads, downloaded ahead.

Implements the interface in `oplog.snapshot.base`. Objects come, verified, through a callable. A
few threads fetch, open and decompress chunks, no further ahead than a few of them: COPY must be
kept busy in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from oplog.archive.format.manifest import ChunkRef, Dataset, SnapshotManifest
from oplog.archive.format.snapshot_chunk import StoredChunk, decode_chunk
from oplog.archive.read_ahead import read_ahead
from oplog.crypto.seal import SealContext, Sealer
from oplog.errors import (
    ManifestInvalidError,
    SegmentCorruptError,
)
from oplog.payload.shape import Shape
from oplog.postgres.quoting import (
    quote,
)
from oplog.snapshot.base import HeadRow
from oplog.store.heads import HEAD_COLUMNS
from oplog.value import read_copy_field

GetObject: TypeAlias = Callable[[str], bytes]
"""Returns the object under a path, verified by the hash in its name. Called by several threads."""

THREADS: Final = 4
_AHEAD_BYTES: Final = 48 * 1024 * 1024
"""Most bytes of rows that are read ahead."""


@dataclass(frozen=True, slots=True)
class OpenedChunk:
    """A chunk's text, whole lines."""

    ref: ChunkRef
    tombstones: bytes
    rows: bytes


class ChunkSource:
    """Fetches and opens the chunks of one snapshot."""

    def __init__(
        self,
        manifest: SnapshotManifest,
        *,
        get: GetObject,
        sealer: Sealer,
        key_checks: Mapping[str, bytes],
        threads: int = THREADS,
    ) -> None:
        """`key_checks` are the check values of the log's keys, by key id."""
        self._log_id = manifest.log_id
        self._get = get
        self._sealer = sealer
        self._key_checks = key_checks
        self._threads = threads

    def iterate(self, dataset: Dataset, refs: Sequence[ChunkRef]) -> Iterator[OpenedChunk]:
        """The chunks in their order.

        Raises what getting and opening raise, `SegmentCorruptError` and
        `ManifestInvalidError` for a chunk that is not what the manifest says.
        """
        if len(refs) <= 1:
            yield from (self.fetch(dataset, ref) for ref in refs)
            return
        chunks = read_ahead(
            refs,
            lambda ref: self.fetch(dataset, ref),
            threads=self._threads,
            ahead=2 * self._threads - 1,
            most_bytes=_AHEAD_BYTES,
            measure=lambda ref: ref.raw_bytes,
        )
        yield from (chunk for _, chunk in chunks)

    def fetch(self, dataset: Dataset, ref: ChunkRef) -> OpenedChunk:
        """One chunk, opened; `SegmentCorruptError` if it is not the one that the manifest means."""
        data = self._get(ref.path)
        chunk = decode_chunk(data, what=ref.path)
        self._check(chunk, dataset, ref, size=len(data))
        return OpenedChunk(
            ref,
            b"".join(chunk.iterate_tombstones(self._open)),
            b"".join(chunk.iterate_rows(self._open)),
        )

    def _open(self, data: bytes, context: SealContext, *, format: int, key_id: str) -> bytes:
        check_value = self._key_checks.get(key_id)
        return self._sealer.open(
            data, context, format=format, key_id=key_id, check_value=check_value
        )

    def _check(self, chunk: StoredChunk, dataset: Dataset, ref: ChunkRef, *, size: int) -> None:
        header = chunk.header
        found = (
            header.log_id,
            header.schema,
            header.table,
            header.columns,
            header.key,
            ChunkRef(
                path=ref.path,
                rows=header.rows,
                tombstones=header.tombstones,
                stored_bytes=size,
                raw_bytes=header.raw_bytes,
            ),
        )
        wanted = (
            self._log_id,
            dataset.schema,
            dataset.table,
            dataset.names,
            dataset.key,
            ref,
        )
        if found != wanted:
            raise SegmentCorruptError(
                f"{ref.path} is not the chunk of {dataset.name} that the snapshot's manifest means",
                hint="one of the two was altered: run oplog check, or restore from an earlier "
                "snapshot",
            )


class StoredLayer:
    """One chunk of a layer, as a layer: chunks of one layer have no key in common."""

    def __init__(self, table: StoredTable, chunk: OpenedChunk) -> None:
        self._table = table
        self._chunk = chunk

    def gone(self) -> Iterator[bytes]:
        """COPY text of the keys of all rows to delete, also of those that `rows` replaces."""
        if self._chunk.tombstones:
            yield self._chunk.tombstones
        if self._chunk.rows:
            yield _pick(self._chunk.rows, self._table.key_places)

    def rows(self) -> Iterator[bytes]:
        """COPY text of the rows to insert."""
        if self._chunk.rows:
            yield self._chunk.rows


class StoredTable:
    """One table of a stored snapshot."""

    def __init__(self, dataset: Dataset, source: ChunkSource, *, shapes: Sequence[Shape]) -> None:
        """`shapes` are the type revisions of the rows, as far as they are known."""
        self.dataset = dataset
        self.shapes = shapes
        self.name = (dataset.schema, dataset.table)
        self.columns = dataset.names
        self.key_names = dataset.key
        self.key_places = [dataset.names.index(column) for column in dataset.key]
        self._source = source

    def rows(self) -> Iterator[bytes]:
        """COPY text of the base rows: whole lines, UTF-8, under the text settings."""
        for chunk in self._source.iterate(self.dataset, self.dataset.base):
            yield chunk.rows

    def layers(self) -> Iterator[StoredLayer]:
        """The layers, each to be used before the next is taken."""
        refs = [ref for layer in self.dataset.layers for ref in layer]
        for chunk in self._source.iterate(self.dataset, refs):
            yield StoredLayer(self, chunk)


class StoredSnapshot:
    """A snapshot in an archive, as a `SnapshotReader`."""

    def __init__(
        self,
        manifest: SnapshotManifest,
        *,
        get: GetObject,
        sealer: Sealer,
        key_checks: Mapping[str, bytes],
        types: Iterable[Shape] = (),
        threads: int = THREADS,
    ) -> None:
        """`key_checks` are the check values of the log's keys, by key id.

        `types` are those that the log has stored: they say which columns the rows have.
        """
        self.manifest = manifest
        self._source = ChunkSource(
            manifest, get=get, sealer=sealer, key_checks=key_checks, threads=threads
        )
        self._shapes = {(shape.type_name, shape.revision): shape for shape in types}

    @property
    def sequence(self) -> int:
        """The sequence of the last record whose effects are in the rows."""
        return self.manifest.sequence

    @property
    def position(self) -> int:
        """The highest position of the records up to there."""
        return self.manifest.position

    @property
    def sequences(self) -> Mapping[str, int]:
        """Last values of sequences, by qualified and quoted name."""
        return {
            f"{quote(one.schema)}.{quote(one.name)}": one.last_value
            for one in self.manifest.sequences
        }

    def tables(self) -> Iterator[StoredTable]:
        """One item for each table."""
        for dataset in self.manifest.tables:
            shapes = [
                self._shapes[one]
                for one in zip(dataset.types, dataset.revisions, strict=True)
                if one in self._shapes
            ]
            yield StoredTable(dataset, self._source, shapes=shapes)

    def heads(self) -> Iterator[HeadRow]:
        """The head of each aggregate that was written, once."""
        dataset = self.manifest.heads
        if dataset.names != tuple(name for name, _ in HEAD_COLUMNS):
            raise ManifestInvalidError(
                "the snapshot's heads have other columns than this library knows",
                hint="it was written by a newer version: upgrade the library",
            )
        refs = [ref for layer in dataset.layers for ref in layer]
        newer: dict[str, HeadRow] = {}
        for chunk in self._source.iterate(dataset, refs):
            newer.update((head.aggregate, head) for head in _read_heads(chunk))
        for chunk in self._source.iterate(dataset, dataset.base):
            for head in _read_heads(chunk):
                yield newer.pop(head.aggregate, head)
        yield from newer.values()


def _pick(lines: bytes, places: Sequence[int]) -> bytes:
    picked = []
    for line in lines[:-1].split(b"\n"):
        fields = line.split(b"\t")
        picked.append(b"\t".join([fields[place] for place in places]))
    return b"\n".join(picked) + b"\n"


def _read_heads(chunk: OpenedChunk) -> Iterator[HeadRow]:
    if not chunk.rows:
        return
    for line in chunk.rows[:-1].decode().split("\n"):
        texts = [read_copy_field(field) or "" for field in line.split("\t")]
        aggregate, version, head_hash = texts
        yield HeadRow(aggregate, int(version), bytes.fromhex(head_hash[2:]))
