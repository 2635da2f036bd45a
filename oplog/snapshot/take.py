"""Takes a snapshot of all logged tables, whole or as layers over an earlier one.

Runs inside one transaction, whose state it records, and writes chunks through a callable. A layer
is right only if the log has every change since the snapshot below it. So records are counted
against sequences, and rows against what the records say; a table that does not add up gets a new
base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy.engine import Connection

from oplog.archive.format.manifest import ChunkRef, Dataset, SequenceState, SnapshotManifest
from oplog.archive.format.snapshot_chunk import ChunkContent, PartSeal, encode_chunk
from oplog.crypto.seal import Packing, Sealer
from oplog.errors import ChainBrokenError, ConfigurationError, ManifestInvalidError
from oplog.payload.shape import Shape
from oplog.postgres.work import Driver, pin_settings
from oplog.reading.reader import OpenedRecord
from oplog.replay.table_plan import TablePlan
from oplog.snapshot.policy import is_merge_due
from oplog.snapshot.schema_state import read_revisions, read_sequences
from oplog.snapshot.table_data import (
    LiveData,
    Stage,
    describe_heads,
    describe_table,
    plan_present,
)
from oplog.snapshot.touched_rows import TouchedRows, collect_touched

PutChunk: TypeAlias = Callable[[bytes], str]
"""Stores a chunk and returns its path. Must not use the connection."""

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Chunks are UTF-8, whatever the database or the client's environment says.
        "client_encoding": "UTF8",
        # Row security would hide rows silently; off, it is an error.
        "row_security": "off",
        # Statements wait for uploads.
        "statement_timeout": "0",
    }
)
"""Settings, besides the text settings, while rows are copied."""


@dataclass(frozen=True, slots=True)
class SnapshotPoint:
    """The place of the log whose state the transaction sees.

    `recorded_at` in microseconds since 1970.
    """

    log_id: UUID
    generation: int
    sequence: int
    chain: bytes
    position: int
    recorded_at: int


@dataclass(slots=True)
class _Table:
    """A table being written; `previous` is None if it gets a new base in any case."""

    live: LiveData
    plan: TablePlan | None
    previous: Dataset | None
    touched: TouchedRows | None = None
    stage: Stage | None = None
    added: int | None = None
    """Rows that came since `previous`, where they need not be counted; none went then."""


def take_snapshot(
    connection: Connection,
    *,
    point: SnapshotPoint,
    mint: int,
    schema: str,
    types: Sequence[Shape],
    sealer: Sealer,
    put: PutChunk,
    previous: SnapshotManifest | None = None,
    changes: Iterable[OpenedRecord] = (),
    secret: Collection[str] = (),
    version_table: str = "alembic_version",
) -> SnapshotManifest | None:
    """Store the rows of all logged tables as this transaction sees them.

    The transaction must be REPEATABLE READ or SERIALIZABLE on a primary, and its state the
    one at `point`: it sees exactly the records up to that sequence. `schema` is the log's,
    `types` its stored types. With `previous`, a snapshot of the same branch of the log, only
    rows that `changes` touch are stored: the records after it up to `point`, in causal order.
    Returns None if nothing is different from `previous`. Rows of the `secret` types are not
    compressed. What `put` raises passes through; chunks stored by then are garbage. Raises
    `SchemaDriftError` where log and tables disagree about columns, `ChainBrokenError` if
    `changes` are not all records in between, `ManifestInvalidError` for a `previous` that is
    not before `point`, and `EntryTooLargeError` for a row that fits into no object.
    """
    types = list(types)
    _check_isolation(connection)
    _check_order(previous, point)
    with pin_settings(connection, more=SETTINGS):
        chunks = ChunkWriter(point.log_id, sealer, put, secret=secret)
        work = _Work(connection, chunks)
        plans = plan_present(connection, types, schema=schema)
        schemas = sorted({plan.live.schema for plan in plans})
        datasets = work.run(plans, schema=schema, previous=previous, changes=changes, point=point)
        manifest = SnapshotManifest(
            log_id=point.log_id,
            generation=point.generation,
            sequence=point.sequence,
            chain=point.chain,
            position=point.position,
            recorded_at=point.recorded_at,
            mint=mint,
            revisions=read_revisions(connection, version_table=version_table, schemas=schemas),
            sequences=_read_sequences(connection, plans, schemas),
            tables=tuple(datasets[:-1]),
            heads=datasets[-1],
        )
        return None if previous is not None and _is_same(previous, manifest) else manifest


def _read_sequences(
    connection: Connection, plans: Sequence[TablePlan], schemas: Sequence[str]
) -> tuple[SequenceState, ...]:
    oids = [plan.live.oid for plan in plans]
    return read_sequences(connection, oids=oids, schemas=schemas)


class ChunkWriter:
    """Seals chunks of one log and stores them."""

    def __init__(
        self, log_id: UUID, sealer: Sealer, put: PutChunk, *, secret: Collection[str] = ()
    ) -> None:
        self._log_id = log_id
        self._put = put
        self._secret = frozenset(secret)
        self._sealer = sealer
        # The keyring may be rotated meanwhile: the stored key id must be the one sealed with.
        self._key_id = sealer.key_id

    def write(self, live: LiveData, *, rows: bytes, tombstones: bytes = b"") -> ChunkRef:
        """Store one chunk."""
        names = tuple(column.name for column in live.columns)
        content = ChunkContent(
            schema=live.schema,
            table=live.table,
            columns=names,
            key=live.key,
            rows=rows,
            tombstones=tombstones,
        )
        # Not padded: the header has sizes and counts in clear text.
        packing = Packing.SMALLEST if self._secret.isdisjoint(live.types) else Packing.STORED
        seal = PartSeal(
            self._sealer.format,
            self._key_id,
            lambda payload, context: self._sealer.seal(
                payload, context, key_id=self._key_id or None, packing=packing
            ),
        )
        data = encode_chunk(content, log_id=self._log_id, chunk_id=uuid4(), seal=seal)
        return ChunkRef(
            path=self._put(data),
            rows=rows.count(b"\n"),
            tombstones=tombstones.count(b"\n"),
            stored_bytes=len(data),
            raw_bytes=len(rows) + len(tombstones),
        )


@dataclass(slots=True)
class _Work:
    """One snapshot being taken."""

    connection: Connection
    writer: ChunkWriter
    driver: Driver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = Driver(self.connection, doing="a snapshot")

    def run(
        self,
        plans: Sequence[TablePlan],
        *,
        schema: str,
        previous: SnapshotManifest | None,
        changes: Iterable[OpenedRecord],
        point: SnapshotPoint,
    ) -> list[Dataset]:
        """All tables' datasets, that of the heads last."""
        before = {} if previous is None else {(t.schema, t.table): t for t in previous.tables}
        tables = [
            _Table(live, plan, _find_base(before.get((live.schema, live.table)), live))
            for plan in plans
            for live in [describe_table(self.connection, plan)]
        ]
        live = describe_heads(schema)
        heads = _Table(live, None, _find_same(None if previous is None else previous.heads, live))
        if previous is not None:
            self._collect(tables, heads, changes, wanted=point.sequence - previous.sequence)
        return [self._write(table) for table in (*tables, heads)]

    def _collect(
        self,
        tables: Sequence[_Table],
        heads: _Table,
        changes: Iterable[OpenedRecord],
        *,
        wanted: int,
    ) -> None:
        types = {}
        for number, table in enumerate(tables, 1):
            if table.previous is None or table.plan is None:
                continue
            table.stage = Stage(self.driver, table.live, number)
            table.touched = TouchedRows(table.plan, table.stage)
            types.update(dict.fromkeys(table.live.types, table.touched))
        heads.stage = Stage(self.driver, heads.live, 0)
        touched = [table.touched for table in tables if table.touched is not None]
        found = collect_touched(changes, touched, types=types, heads=heads.stage)
        # Counting them would read all entries of the log. An aggregate's head stays for ever.
        heads.added = found.begun
        if found.records != wanted:
            raise ChainBrokenError(
                f"{found.records} records were found since the last snapshot, and sequences count "
                f"{wanted}",
                hint="records are missing in the database or in the archive: run oplog check; "
                "until then take a whole snapshot",
            )

    def _write(self, table: _Table) -> Dataset:
        live, previous, stage = table.live, table.previous, table.stage
        made = (
            self._write_base(live)
            if previous is None or stage is None
            else self._extend(table, previous, stage)
        )
        if stage is not None:
            stage.drop()
        return made

    def _extend(self, table: _Table, previous: Dataset, stage: Stage) -> Dataset:
        live, touched = table.live, table.touched
        if touched is not None and touched.renewed:
            return self._write_base(live)
        if not stage.count:
            return previous
        live.lock_against_migrations(self.driver)
        rows = live.count_rows(self.driver) if table.added is None else previous.rows + table.added
        if touched is not None and previous.rows + touched.net != rows:
            # Rows came or went without the log: a layer would bring them back, or lose them.
            return self._write_base(live)
        if is_merge_due(previous, changed=stage.count):
            return self._write_base(live)
        pieces = _pair(
            live.stream_missing(self.driver, stage.name),
            live.stream_rows(self.driver, stage=stage.name),
        )
        layer = tuple(self.writer.write(live, rows=part, tombstones=gone) for gone, part in pieces)
        return replace(previous, rows=rows, layers=(*previous.layers, layer))

    def _write_base(self, live: LiveData) -> Dataset:
        live.lock_against_migrations(self.driver)
        base = tuple(self.writer.write(live, rows=piece) for piece in live.stream_rows(self.driver))
        rows = sum(ref.rows for ref in base)
        return Dataset(
            schema=live.schema,
            table=live.table,
            types=live.types,
            revisions=live.revisions,
            columns=live.columns,
            key=live.key,
            rows=rows,
            base=base,
        )


def _pair(gone: Iterator[bytes], rows: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Pair tombstones and rows into chunks; `rows` is not read before `gone` has ended."""
    last = b""
    for piece in gone:
        if last:
            yield last, b""
        last = piece
    for piece in rows:
        yield last, piece
        last = b""
    if last:
        yield last, b""


def _find_same(before: Dataset | None, live: LiveData) -> Dataset | None:
    """`before`, if its columns and key are the same, in the same order."""
    if before is None or (before.columns, before.key) != (live.columns, live.key):
        return None
    return before


def _find_base(before: Dataset | None, live: LiveData) -> Dataset | None:
    """`before`, if a layer may go over it: rows of the same columns, in the same revisions."""
    found = _find_same(before, live)
    # Rows of another revision may read otherwise: those that a change rewrote, for one.
    if found is None or (found.types, found.revisions) != (live.types, live.revisions):
        return None
    return found


def _is_same(previous: SnapshotManifest, manifest: SnapshotManifest) -> bool:
    # Sequences also advance without a record; that alone is no reason for a snapshot.
    return (
        manifest.sequence == previous.sequence
        and manifest.tables == previous.tables
        and manifest.heads == previous.heads
        and manifest.revisions == previous.revisions
    )


def _check_isolation(connection: Connection) -> None:
    isolation = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation')"
    ).scalar()
    if isolation not in ("repeatable read", "serializable"):
        raise ConfigurationError(
            f"a snapshot cannot be taken in a transaction that is {str(isolation).upper()}",
            hint="give a connection with isolation_level='REPEATABLE READ'",
        )


def _check_order(previous: SnapshotManifest | None, point: SnapshotPoint) -> None:
    if previous is None:
        return
    if previous.log_id != point.log_id:
        why = f"it is of the log {previous.log_id}, not of {point.log_id}"
    elif previous.sequence > point.sequence:
        why = f"it is at sequence {previous.sequence}, after {point.sequence}"
    elif previous.sequence == point.sequence and previous.chain != point.chain:
        why = f"another branch of the log has the sequence {point.sequence}"
    else:
        return
    raise ManifestInvalidError(
        f"no snapshot can be built on that of mint {previous.mint}: {why}",
        hint="take a whole snapshot",
    )
