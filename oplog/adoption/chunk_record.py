"""Appends a chunk of rows as one record, and what has to hold of its table before it is read.

Both ways of logging rows that are in a table use it: an adoption, and a refill after DDL.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.adoption.table_rows import AIMED_BYTES, Chunk, name_rows
from oplog.crypto.blind_index import BlindIndex, IndexedColumn, tag_pairs
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.errors import ConfigurationError, KeyRetiredError, SchemaDriftError
from oplog.events import EntriesAppended, EntriesDrafted, EventSink
from oplog.metadata_context import Describer
from oplog.ordered_id import draw_ordered_id
from oplog.payload.block import MAX_BLOCK_ROWS
from oplog.payload.codec import PayloadCodec
from oplog.postgres.exchange import execute
from oplog.postgres.live_table import LiveTable, read_live_tables
from oplog.postgres.sqlstate import read_sqlstate
from oplog.schema.append_checks import KEY_RETIRED
from oplog.schema.mark_names import ADOPTED, RETIRED
from oplog.store import NewRecord, Store
from oplog.store.adopted import (
    ADOPTED_REVISION,
    ADOPTED_ROWS,
    REFILLED,
    REFILLED_REVISION,
    Reached,
    name_adoption,
)
from oplog.store.rows import Part
from oplog.type_binding import BoundType

CHUNK_ROWS: Final = 25_000
"""Most rows logged under one lock, by default."""


_OWN_KEYS = frozenset(
    {ADOPTED, ADOPTED_ROWS, ADOPTED_REVISION, REFILLED, REFILLED_REVISION, RETIRED}
)
_COUNTED_BYTES = 32 * 1024 * 1024
"""Size of the largest table that is counted."""
_SIZE = """SELECT coalesce(sum(pg_catalog.pg_relation_size(c.oid)), 0)::bigint,
  coalesce(bool_or(c.reltuples < 0
    OR c.relpages = 0 AND pg_catalog.pg_relation_size(c.oid) > 0), true)
FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.oid IN (
  SELECT %s::bigint::oid UNION
  SELECT p.relid FROM pg_catalog.pg_partition_tree(%s::bigint::oid) p)"""


@dataclass(frozen=True, slots=True)
class AdoptionTarget:
    """The log to adopt into, and what is needed to make its entries."""

    store: Store
    keyring: Keyring | None
    sealer: Sealer
    codec: PayloadCodec
    on_event: EventSink
    describer: Describer = field(default_factory=Describer)
    """Who and why, beside what says that a record is an adoption's."""


@dataclass(frozen=True, slots=True)
class ChunkWriter:
    """Appends chunks, in whatever transaction is open."""

    connection: Connection
    target: AdoptionTarget
    log_id: UUID
    key_id: str
    remedy: str = "adopt again"
    """What to do when a chunk is refused; everything before it stays."""

    def append(
        self,
        bound: BoundType,
        chunk: Chunk,
        metadata: Sequence[tuple[str, str]],
        *,
        columns: Collection[str] | None = None,
    ) -> None:
        """Append the rows to the aggregate of the type's adoptions; with `columns` as a patch."""
        target, key_id = self.target, self.key_id
        payload = target.codec.encode_block(
            bound.shape, chunk.rows, row_count=chunk.count, columns=columns
        )
        record_id = draw_ordered_id()
        context = name_part(self.log_id, record_id, 0)
        packing = Packing.PADDED if bound.declared.secret else Packing.SMALLEST
        data = target.sealer.seal(payload, context, key_id=key_id, packing=packing)
        record = NewRecord(
            record_id=record_id,
            aggregates=[name_adoption(bound.shape.type_name)],
            expected=[None],
            parts=(Part(0, data),),
            format=target.sealer.format,
            key_id=key_id,
            metadata=[*metadata, *_list_reasons(target.describer), *self._make_tags(bound)],
        )
        target.on_event(EntriesDrafted(1, chunk.count, len(data)))
        try:
            execute(self.connection, target.store.bind_append(record))
        except DBAPIError as cause:
            if read_sqlstate(cause) != KEY_RETIRED:
                raise
            raise KeyRetiredError(
                f"the key {key_id!r} was retired while rows were logged",
                hint=f"{self.remedy}, which continues where this ended; "
                + target.sealer.renew_key(key_id),
            ) from cause
        target.on_event(EntriesAppended(record_id, committed=False))

    def _make_tags(self, bound: BoundType) -> list[tuple[str, str]]:
        """What says that the chunk may have any value in the searchable columns."""
        keyring = self.target.keyring
        if keyring is None or not self.key_id:
            return []
        blind = BlindIndex(keyring, self.log_id)
        tokens: list[str] = []
        for name in bound.declared.searchable:
            column = IndexedColumn(bound.shape.type_name, bound.shape.by_name[name].number)
            tokens.append(blind.name_column(self.key_id, column))
            tokens.append(blind.name_many(self.key_id, column))
        return tag_pairs(tokens)


def _list_reasons(describer: Describer) -> list[tuple[str, str]]:
    """Who and why; nothing that would be read as what the log says of an adoption."""
    return [pair for pair in describer.complete(()) if pair[0] not in _OWN_KEYS]


def describe_adoption(type_name: str, reached: Reached) -> list[tuple[str, str]]:
    """The metadata of an adopted chunk; those of the last one say how many rows there were."""
    metadata = [(ADOPTED, type_name)]
    if reached.done:
        metadata.append((ADOPTED_ROWS, str(reached.rows)))
        if reached.revision:
            metadata.append((ADOPTED_REVISION, str(reached.revision)))
    return metadata


def advance(reached: Reached, chunk: Chunk) -> Reached:
    """How far it is after this chunk."""
    return Reached(
        after=chunk.key or reached.after,
        rows=reached.rows + chunk.count,
        entries=reached.entries + 1,
        done=chunk.last,
        revision=reached.revision,
    )


def fit_rows(chunk: Chunk, *, most: int) -> int:
    """How many rows the next chunk may have: wide rows make smaller chunks.

    So no lock is held for too many bytes.
    """
    return max(1, min(most, AIMED_BYTES * chunk.count // len(chunk.rows))) if chunk.rows else most


def check_chunk_rows(chunk_rows: int) -> None:
    """Raise `ConfigurationError` for more rows than a block may have, or none."""
    if not 1 <= chunk_rows <= MAX_BLOCK_ROWS:
        raise ConfigurationError(
            f"a chunk cannot have {chunk_rows} rows", hint=f"give chunk_rows=1 to {MAX_BLOCK_ROWS}"
        )


def estimate_rows(connection: Connection, live: LiveTable) -> int | None:
    """How many rows the table has, about; None for a large one that nobody has analysed yet.

    By the planner's statistics, because counting a large table would read all of it. Without
    statistics the planner guesses from the size alone, so a small table is counted.
    """
    size, unknown = connection.exec_driver_sql(_SIZE, (live.oid, live.oid)).one()
    if unknown and size > _COUNTED_BYTES:
        return None
    if unknown:
        counted = connection.exec_driver_sql(
            f"SELECT count(*) FROM {name_rows(live)}", execution_options={"no_parameters": True}
        )
        return int(counted.scalar_one())
    plan = connection.exec_driver_sql(
        f"EXPLAIN (FORMAT JSON) SELECT FROM {name_rows(live)}",
        execution_options={"no_parameters": True},
    ).scalar_one()
    return int(plan[0]["Plan"]["Plan Rows"])


def check_table(connection: Connection, bound: BoundType) -> None:
    """Raise `SchemaDriftError` if a migration changed the table before it was locked."""
    # By the name that the database has: the model's may be an earlier one.
    table = sa.Table(bound.live.name, sa.MetaData(), schema=bound.live.schema)
    live = read_live_tables(connection, [table]).get(table)
    if live is None or (live.oid, live.columns) != (bound.live.oid, bound.live.columns):
        raise SchemaDriftError(
            f"table {bound.live.schema}.{bound.live.name} was changed while its rows were logged",
            hint="run it again, with the new columns: what was logged of the old ones is not lost",
        )
