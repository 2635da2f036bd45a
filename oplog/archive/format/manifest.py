"""The manifest of a snapshot: which chunks make which tables, and what else belongs to them.

Pure: a `SnapshotManifest` to canonical JSON and back. Must not know keys or what rows mean.
The hard thing is to be strict at both ends: a manifest that contradicts itself is neither
written nor read, since whoever restores from it has nothing else to compare it with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from oplog.archive.format.canonical_json import (
    MAX_INTEGER,
    Fields,
    decode_document,
    encode_document,
    invalid,
)
from oplog.archive.format.container import MAX_OBJECT_BYTES
from oplog.archive.format.path import BLOB, parse_content
from oplog.archive.format.snapshot_chunk import (
    MAX_COLUMNS,
    MAX_KEY_COLUMNS,
    check_names,
    take_name,
    take_names,
    take_uuid,
)

FORMAT = 1
MAX_MANIFEST_BYTES = MAX_OBJECT_BYTES
MAX_CHUNKS = 1_000_000
"""Of one base or layer: four terabytes of rows."""
MAX_LAYERS = 64
_MAX_TABLES = 100_000
_MAX_NAMES = 1000
_MAX_TYPE_NAME = 1024


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk by its object name. `rows` and `tombstones` are counts; sizes are in bytes."""

    path: str
    rows: int
    tombstones: int
    stored_bytes: int
    raw_bytes: int


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


class NumberedColumn(NamedTuple):
    """A column that takes its values from a sequence."""

    schema: str
    table: str
    column: str


@dataclass(frozen=True, slots=True)
class SequenceState:
    """Where a sequence stood; `owner` is None for one that no column belongs to."""

    schema: str
    name: str
    owner: NumberedColumn | None
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """The tables at one place of the log.

    `sequence`, `chain` and `position` are the place; `recorded_at`, in microseconds since
    1970, is when the newest entry before it was written. `mint` is this manifest's own number.
    `revisions` are those that Alembic had recorded in the database. `tickets` has every
    aggregate's version and head hash.
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
    tickets: Dataset

    def iterate_chunks(self) -> Iterator[ChunkRef]:
        """All chunks that the snapshot needs."""
        for dataset in (*self.tables, self.tickets):
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
    data = encode_document(
        {
            "chain": manifest.chain.hex(),
            "format": FORMAT,
            "generation": manifest.generation,
            "log_id": str(manifest.log_id),
            "mint": manifest.mint,
            "position": manifest.position,
            "recorded_at": manifest.recorded_at,
            "revisions": list(manifest.revisions),
            "sequence": manifest.sequence,
            "sequences": [_write_sequence(sequence) for sequence in manifest.sequences],
            "tables": [_write_dataset(dataset) for dataset in manifest.tables],
            "tickets": _write_dataset(manifest.tickets),
        }
    )
    if decode_manifest(data, what=what) != manifest:
        raise invalid(what, "it does not read back as it was written")
    return data


def decode_manifest(data: bytes, *, what: str) -> SnapshotManifest:
    """The inverse of `encode_manifest`.

    Raises `ManifestInvalidError` for anything that it would not have written, for chunks
    under other names than blobs have, or twice, and for counts that do not add up.
    """
    fields = Fields(decode_document(data, most=MAX_MANIFEST_BYTES, what=what), what)
    fields.take_format(FORMAT)
    manifest = SnapshotManifest(
        log_id=take_uuid(fields, "log_id", what),
        generation=fields.take_integer("generation"),
        sequence=fields.take_integer("sequence"),
        chain=fields.take_hash("chain"),
        position=fields.take_integer("position"),
        recorded_at=fields.take_integer("recorded_at"),
        mint=fields.take_integer("mint"),
        revisions=_take_texts(fields, "revisions", what),
        sequences=tuple(
            _read_sequence(Fields(one, what), what)
            for one in fields.take_list("sequences", most=_MAX_TABLES)
        ),
        tables=tuple(
            _read_dataset(Fields(one, what), what)
            for one in fields.take_list("tables", most=_MAX_TABLES)
        ),
        tickets=_read_dataset(Fields(fields.take("tickets"), what), what),
    )
    fields.finish()
    _check_distinct(manifest, what)
    return manifest


# -- parts ------------------------------------------------------------------------------------


def _write_sequence(sequence: SequenceState) -> dict[str, Any]:
    return {
        "is_called": sequence.is_called,
        "last_value": sequence.last_value,
        "name": sequence.name,
        "owner": None if sequence.owner is None else sequence.owner._asdict(),
        "schema": sequence.schema,
    }


def _read_sequence(fields: Fields, what: str) -> SequenceState:
    owner = fields.take("owner")
    is_called = fields.take("is_called")
    if type(is_called) is not bool:
        raise invalid(what, f"its 'is_called' is {is_called!r:.60}")
    found = SequenceState(
        take_name(fields, "schema", what),
        take_name(fields, "name", what),
        None if owner is None else _read_owner(Fields(owner, what), what),
        fields.take_integer("last_value", least=-MAX_INTEGER),
        is_called,
    )
    fields.finish()
    return found


def _read_owner(fields: Fields, what: str) -> NumberedColumn:
    found = NumberedColumn(
        take_name(fields, "schema", what),
        take_name(fields, "table", what),
        take_name(fields, "column", what),
    )
    fields.finish()
    return found


def _write_dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        "base": [_write_ref(ref) for ref in dataset.base],
        "columns": [{"name": c.name, "pg_type": c.pg_type} for c in dataset.columns],
        "key": list(dataset.key),
        "layers": [[_write_ref(ref) for ref in layer] for layer in dataset.layers],
        "revisions": list(dataset.revisions),
        "rows": dataset.rows,
        "schema": dataset.schema,
        "table": dataset.table,
        "types": list(dataset.types),
    }


def _read_dataset(fields: Fields, what: str) -> Dataset:
    columns = []
    for one in fields.take_list("columns", most=MAX_COLUMNS):
        column = Fields(one, what)
        columns.append(ColumnType(take_name(column, "name", what), column.take_text("pg_type")))
        column.finish()
    dataset = Dataset(
        schema=take_name(fields, "schema", what),
        table=take_name(fields, "table", what),
        types=_take_texts(fields, "types", what),
        revisions=_take_revisions(fields, what),
        columns=tuple(columns),
        key=take_names(fields, "key", most=MAX_KEY_COLUMNS, what=what),
        rows=fields.take_integer("rows"),
        base=_read_refs(fields.take_list("base", most=MAX_CHUNKS), what),
        layers=tuple(
            _read_layer(layer, what) for layer in fields.take_list("layers", most=MAX_LAYERS)
        ),
    )
    fields.finish()
    _check_dataset(dataset, what)
    return dataset


def _take_revisions(fields: Fields, what: str) -> tuple[int, ...]:
    found = fields.take_list("revisions", most=_MAX_NAMES)
    if any(type(one) is not int or not 1 <= one <= MAX_INTEGER for one in found):
        raise invalid(what, "a type's revision is not a number from 1")
    return tuple(found)


def _read_layer(layer: Any, what: str) -> tuple[ChunkRef, ...]:
    if not isinstance(layer, list) or not 0 < len(layer) <= MAX_CHUNKS:
        raise invalid(what, "a layer is not a list of chunks")
    return _read_refs(layer, what)


def _write_ref(ref: ChunkRef) -> dict[str, Any]:
    return {
        "bytes": ref.stored_bytes,
        "path": ref.path,
        "raw_bytes": ref.raw_bytes,
        "rows": ref.rows,
        "tombstones": ref.tombstones,
    }


def _read_refs(refs: Sequence[Any], what: str) -> tuple[ChunkRef, ...]:
    found = []
    for one in refs:
        fields = Fields(one, what)
        path = fields.take_text("path", most=120)
        parse_content(path, BLOB)
        ref = ChunkRef(
            path,
            fields.take_integer("rows"),
            fields.take_integer("tombstones"),
            fields.take_integer("bytes", least=1, most=MAX_OBJECT_BYTES),
            fields.take_integer("raw_bytes", least=1),
        )
        fields.finish()
        # Every line has at least its end.
        if not 0 < ref.rows + ref.tombstones <= ref.raw_bytes:
            raise invalid(what, f"{path} claims {ref.rows} rows in {ref.raw_bytes} bytes")
        found.append(ref)
    return tuple(found)


def _take_texts(fields: Fields, name: str, what: str) -> tuple[str, ...]:
    found = fields.take_list(name, most=_MAX_NAMES)
    for one in found:
        if not isinstance(one, str) or not 0 < len(one) <= _MAX_TYPE_NAME or "\x00" in one:
            raise invalid(what, f"its {name!r} holds {one!r:.60}")
    if len(set(found)) != len(found):
        raise invalid(what, f"its {name!r} holds a name twice")
    return tuple(found)


# -- what must hold together ------------------------------------------------------------------


def _check_dataset(dataset: Dataset, what: str) -> None:
    names = check_names(dataset.names, name="columns", what=what)
    if not set(dataset.key) <= set(names):
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
