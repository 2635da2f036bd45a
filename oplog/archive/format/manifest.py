"""The manifest of a snapshot: which chunks make which tables, and what else belongs to them.

A manifest that contradicts itself is neither written nor read: a restore has nothing else to
compare it with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct, field

from oplog.archive.format.canonical_json import (
    MAX_DOCUMENT_BYTES,
    Document,
    Format,
    Integer,
    LongName,
    Name,
    Natural,
    PathText,
    Positive,
    Sha256Text,
    Text,
    encode_document,
    invalid,
    list_members,
    read_document,
)
from oplog.archive.format.container import MAX_OBJECT_BYTES
from oplog.archive.format.path import BLOB, parse_content
from oplog.archive.format.snapshot_chunk import (
    MAX_COLUMNS,
    KeyNames,
    check_names,
)

MAX_MANIFEST_BYTES = MAX_DOCUMENT_BYTES
MAX_CHUNKS = 1_000_000
"""Of one base or layer: four terabytes of rows."""
MAX_LAYERS = 64
_MAX_TABLES = 100_000
_MAX_NAMES = 1000


class ChunkRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A chunk by its object name. `rows` and `tombstones` are counts; sizes are in bytes."""

    path: PathText
    rows: Natural
    tombstones: Natural
    stored_bytes: Annotated[int, Meta(ge=1, le=MAX_OBJECT_BYTES)] = field(name="bytes")
    raw_bytes: Positive


class ColumnType(NamedTuple):
    """A column, and how Postgres called its type."""

    name: str
    pg_type: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """One table: a base, and layers that change it in their order.

    `rows` is how many the table has when all layers are on. `types` are the log's types of
    its rows, `revisions` those that they had when the base was made; `columns` the logged ones
    in the table's order, `key` the primary key.
    """

    schema: str
    table: str
    types: tuple[str, ...]
    revisions: tuple[int, ...]
    columns: tuple[ColumnType, ...]
    key: tuple[str, ...]
    rows: int
    base: tuple[ChunkRef, ...] = ()
    layers: tuple[tuple[ChunkRef, ...], ...] = ()

    @property
    def name(self) -> str:
        """The table as errors show it."""
        return f"{self.schema}.{self.table}"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @property
    def base_bytes(self) -> int:
        """Stored bytes of the base."""
        return sum(ref.stored_bytes for ref in self.base)

    @property
    def layer_bytes(self) -> int:
        """Stored bytes of all layers."""
        return sum(ref.stored_bytes for layer in self.layers for ref in layer)

    def iterate_chunks(self) -> Iterator[ChunkRef]:
        """All chunks, in the order in which they are loaded."""
        yield from self.base
        for layer in self.layers:
            yield from layer


class NumberedColumn(Struct, frozen=True, forbid_unknown_fields=True):
    """A column that takes its values from a sequence."""

    schema: Name
    table: Name
    column: Name


class SequenceState(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a sequence stood; `owner` is None for one that no column belongs to."""

    schema: Name
    name: Name
    owner: NumberedColumn | None
    last_value: Integer
    is_called: bool


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """The tables at one place of the log.

    `sequence`, `chain` and `position` are the place; `recorded_at`, in microseconds since
    1970, is when the newest record before it was written. `mint` is this manifest's own number.
    `revisions` are those that Alembic had recorded in the database. `heads` has every
    aggregate's version and the hash of its newest record.
    """

    log_id: UUID
    generation: int
    sequence: int
    chain: bytes
    position: int
    recorded_at: int
    mint: int
    revisions: tuple[str, ...]
    sequences: tuple[SequenceState, ...]
    tables: tuple[Dataset, ...]
    heads: Dataset

    def iterate_chunks(self) -> Iterator[ChunkRef]:
        """All chunks that the snapshot needs."""
        for dataset in (*self.tables, self.heads):
            yield from dataset.iterate_chunks()

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of all chunks."""
        return sum(ref.stored_bytes for ref in self.iterate_chunks())

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(dataset.rows for dataset in self.tables)


def encode_manifest(manifest: SnapshotManifest) -> bytes:
    """The object's bytes; `ManifestInvalidError` for a manifest that could not be read back."""
    what = f"the snapshot at sequence {manifest.sequence}"
    data = encode_document(_write_manifest(manifest))
    if decode_manifest(data, what=what) != manifest:
        raise invalid(what, "it does not read back as it was written")
    return data


def decode_manifest(data: bytes, *, what: str) -> SnapshotManifest:
    """The inverse of `encode_manifest`.

    Raises `ManifestInvalidError` for anything that it would not have written, for chunks
    under other names than blobs have, or twice, and for counts that do not add up.
    """
    return read_document(data, MANIFEST_FORMATS, most=MAX_MANIFEST_BYTES, what=what)


# -- format 1 ---------------------------------------------------------------------------------

_Texts: TypeAlias = Annotated[tuple[LongName, ...], Meta(max_length=_MAX_NAMES)]
_Chunks: TypeAlias = Annotated[tuple[ChunkRef, ...], Meta(max_length=MAX_CHUNKS)]
_Layer: TypeAlias = Annotated[tuple[ChunkRef, ...], Meta(min_length=1, max_length=MAX_CHUNKS)]


class ColumnJson(Document, frozen=True):
    """A column as it stands in a manifest."""

    name: Name
    pg_type: Text


class DatasetJson(Document, frozen=True):
    """A dataset as it stands in a manifest."""

    schema: Name
    table: Name
    types: _Texts
    revisions: Annotated[tuple[Positive, ...], Meta(max_length=_MAX_NAMES)]
    columns: Annotated[tuple[ColumnJson, ...], Meta(min_length=1, max_length=MAX_COLUMNS)]
    key: KeyNames
    rows: Natural
    base: _Chunks
    layers: Annotated[tuple[_Layer, ...], Meta(max_length=MAX_LAYERS)]


class ManifestJson(Document, frozen=True, tag=1, tag_field="format"):
    """A manifest, in format 1."""

    log_id: UUID
    generation: Natural
    sequence: Natural
    chain: Sha256Text
    position: Natural
    recorded_at: Natural
    mint: Natural
    revisions: _Texts
    sequences: Annotated[tuple[SequenceState, ...], Meta(max_length=_MAX_TABLES)]
    tables: Annotated[tuple[DatasetJson, ...], Meta(max_length=_MAX_TABLES)]
    heads: DatasetJson


def _write_manifest(manifest: SnapshotManifest) -> ManifestJson:
    changed: dict[str, Any] = {
        "chain": manifest.chain.hex(),
        "tables": tuple(_write_dataset(dataset) for dataset in manifest.tables),
        "heads": _write_dataset(manifest.heads),
    }
    return ManifestJson(**list_members(manifest, ManifestJson) | changed)


def _read_manifest(document: ManifestJson, what: str) -> SnapshotManifest:
    changed = {
        "chain": bytes.fromhex(document.chain),
        "tables": tuple(_read_dataset(one, what) for one in document.tables),
        "heads": _read_dataset(document.heads, what),
    }
    manifest = SnapshotManifest(**list_members(document, ManifestJson) | changed)
    check_names(manifest.revisions, name="revisions", what=what)
    _check_distinct(manifest, what)
    return manifest


def _write_dataset(dataset: Dataset) -> DatasetJson:
    columns = tuple(ColumnJson(name=name, pg_type=pg_type) for name, pg_type in dataset.columns)
    return DatasetJson(**list_members(dataset, DatasetJson) | {"columns": columns})


def _read_dataset(document: DatasetJson, what: str) -> Dataset:
    columns = tuple(ColumnType(one.name, one.pg_type) for one in document.columns)
    dataset = Dataset(**list_members(document, DatasetJson) | {"columns": columns})
    for ref in dataset.iterate_chunks():
        _check_ref(ref, what)
    _check_dataset(dataset, what)
    return dataset


MANIFEST_FORMATS: Mapping[int, Format[Any, SnapshotManifest]] = MappingProxyType(
    {1: Format(ManifestJson, _read_manifest)}
)
"""How manifests of each format are read."""


# -- what must hold together ------------------------------------------------------------------


def _check_ref(ref: ChunkRef, what: str) -> None:
    parse_content(ref.path, BLOB, what=what)
    # Every line has at least its end.
    if not 0 < ref.rows + ref.tombstones <= ref.raw_bytes:
        raise invalid(what, f"{ref.path} claims {ref.rows} rows in {ref.raw_bytes} bytes")


def _check_dataset(dataset: Dataset, what: str) -> None:
    for name in ("columns", "key", "types"):
        found = dataset.names if name == "columns" else getattr(dataset, name)
        check_names(found, name=name, what=what)
    if not set(dataset.key) <= set(dataset.names):
        raise invalid(what, f"the key of {dataset.name} is not among its columns")
    if len(dataset.types) != len(dataset.revisions):
        raise invalid(what, f"{dataset.name} does not have one revision for each of its types")
    if any(ref.tombstones for ref in dataset.base):
        raise invalid(what, f"the base of {dataset.name} has tombstones")
    most = sum(ref.rows for ref in dataset.iterate_chunks())
    # A layer takes away at most one row for each line that it has, of either kind.
    least = sum(ref.rows for ref in dataset.base)
    for layer in dataset.layers:
        least = max(least - sum(r.tombstones for r in layer), sum(r.rows for r in layer))
    if not least <= dataset.rows <= most:
        raise invalid(
            what,
            f"{dataset.name} claims {dataset.rows} rows, its chunks make {least} to {most}",
        )


def _check_distinct(manifest: SnapshotManifest, what: str) -> None:
    paths = [ref.path for ref in manifest.iterate_chunks()]
    if len(set(paths)) != len(paths):
        raise invalid(what, "it names a chunk twice")
    tables = [(dataset.schema, dataset.table) for dataset in manifest.tables]
    if len(set(tables)) != len(tables):
        raise invalid(what, "it holds a table twice")
    types = [name for dataset in manifest.tables for name in dataset.types]
    if len(set(types)) != len(types):
        raise invalid(what, "it gives the rows of one type to two tables")
    sequences = [(one.schema, one.name) for one in manifest.sequences]
    if len(set(sequences)) != len(sequences):
        raise invalid(what, "it holds a sequence twice")
