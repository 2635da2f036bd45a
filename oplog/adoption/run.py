"""Adopts tables chunk by chunk, each chunk as one entry.

Other sessions go on writing between chunks. The position of a chunk's entry is drawn while the
table is locked: every earlier change of its rows has a lower position, every later one a higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.adoption.choice import choose_types, sort_types
from oplog.adoption.locking import LockWait, check_isolation, lock_tables, open_inside, open_own
from oplog.adoption.report import AdoptedType, AdoptionReport
from oplog.adoption.table_rows import AIMED_BYTES, Chunk, name_rows, read_chunk, read_key_order
from oplog.binding import Binding, bind_catalog, bind_for_writing
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.errors import ConfigurationError, KeyRetiredError, SchemaDriftError
from oplog.events import EntriesAppended, EntriesDrafted, EventSink
from oplog.ordered_id import draw_ordered_id
from oplog.payload.block import MAX_BLOCK_ROWS
from oplog.payload.codec import PayloadCodec
from oplog.payload.lineage import find_fills, group_shapes, map_columns
from oplog.postgres.exchange import execute
from oplog.postgres.live_table import read_live_tables
from oplog.postgres.sqlstate import read_sqlstate
from oplog.postgres.work import Driver
from oplog.schema.append_checks import KEY_RETIRED
from oplog.schema.guard import ADOPTED
from oplog.store import NewRecord, Store
from oplog.store.adopted import (
    ADOPTED_REVISION,
    ADOPTED_ROWS,
    AdoptionStore,
    Reached,
    Turns,
    name_adoption,
)
from oplog.store.rows import Part
from oplog.type_binding import BoundType

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each chunk with the number of adopted rows and the estimated total."""

CHUNK_ROWS: Final = 25_000
"""Most rows adopted under one lock, by default."""


@dataclass(frozen=True, slots=True)
class AdoptionTarget:
    """The log to adopt into, and what is needed to make its entries."""

    store: Store
    keyring: Keyring | None
    sealer: Sealer
    codec: PayloadCodec
    on_event: EventSink


def adopt_tables(
    connection: Connection,
    catalog: TypeCatalog,
    *,
    tables: Iterable[Any] | None,
    target: AdoptionTarget,
    chunk_rows: int = CHUNK_ROWS,
    lock_wait: LockWait = LockWait(),  # noqa: B008 - frozen
    dry_run: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> AdoptionReport:
    """Adopt the tables, as `Oplog.adopt` documents; with `dry_run` only report on them."""
    if not 1 <= chunk_rows <= MAX_BLOCK_ROWS:
        raise ConfigurationError(
            f"a chunk cannot have {chunk_rows} rows", hint=f"give chunk_rows=1 to {MAX_BLOCK_ROWS}"
        )
    chosen = choose_types(catalog, tables)
    Driver(connection, doing="an adoption")
    own = not connection.in_transaction()
    if not own:
        check_isolation(connection)
    with connection.begin() if own else nullcontext():
        binding = _bind(connection, chosen, target, dry_run=dry_run)
        bound = [binding.types[declared.table] for declared in sort_types(chosen)]
        types = [_survey(connection, one, target) for one in bound]
    if not dry_run:
        work = _Work(
            connection, binding, target, own=own, lock_wait=lock_wait, most_rows=chunk_rows
        )
        types = list(work.run(work.restart(types) if again else types, progress))
    return AdoptionReport(tuple(types))


def _bind(
    connection: Connection, catalog: TypeCatalog, target: AdoptionTarget, *, dry_run: bool
) -> Binding:
    store, keyring = target.store, target.keyring
    if dry_run:
        return bind_catalog(connection, catalog, store=store, keyring=keyring, write=False)
    return bind_for_writing(connection, catalog, store=store, keyring=keyring)


def _survey(connection: Connection, bound: BoundType, target: AdoptionTarget) -> AdoptedType:
    name = bound.declared.type_name
    reached = AdoptionStore(target.store.schema).read_progress(connection, name) or Reached()
    # The planner's estimate, because counting a large table would read all of it.
    plan = connection.exec_driver_sql(
        f"EXPLAIN (FORMAT JSON) SELECT FROM {name_rows(bound.live)}",
        execution_options={"no_parameters": True},
    ).scalar_one()
    return AdoptedType(
        name,
        f"{bound.live.schema}.{bound.live.name}",
        rows=0,
        entries=0,
        earlier_rows=reached.rows,
        estimated_rows=int(plan[0]["Plan"]["Plan Rows"]),
        finished=reached.done,
    )


class _Work:
    """One adoption on one connection."""

    def __init__(
        self,
        connection: Connection,
        binding: Binding,
        target: AdoptionTarget,
        *,
        own: bool,
        lock_wait: LockWait,
        most_rows: int,
    ) -> None:
        """`own`: one transaction per chunk; otherwise all chunks in the caller's transaction."""
        self._connection = connection
        self._binding = binding
        self._target = target
        self._own = own
        self._lock_wait = lock_wait
        self._most_rows = most_rows
        self._store = AdoptionStore(target.store.schema)

    def restart(self, types: list[AdoptedType]) -> list[AdoptedType]:
        """Reset the types that were finished; those that were interrupted continue."""
        with open_own(self._connection) if self._own else open_inside(self._connection):
            for one in types:
                if one.finished:
                    self._store.lock_progress(self._connection, one.type_name)
                    self._store.write_progress(self._connection, one.type_name, reached=Reached())
        return [
            replace(one, earlier_rows=0, finished=False) if one.finished else one for one in types
        ]

    def run(self, types: list[AdoptedType], progress: Progress | None) -> Iterator[AdoptedType]:
        """Adopt the types that are not finished, and yield each when it is."""
        if not self._own:
            # All at once: otherwise earlier tables would stay locked during the wait for later
            # ones.
            self._lock([one for one in types if not one.finished])
        rows = sum(one.earlier_rows for one in types)
        expected = sum(max(one.estimated_rows, one.earlier_rows) for one in types)
        for one in types:
            current, limit = one, self._most_rows
            while not current.finished:
                chunk, reached = self._adopt_next(current, limit)
                adopted = 0 if chunk is None else chunk.count
                current = replace(
                    current,
                    rows=current.rows + adopted,
                    entries=current.entries + (chunk is not None),
                    earlier_rows=reached.rows - current.rows - adopted,
                    finished=reached.done,
                )
                if chunk is not None and chunk.rows:
                    # Wide rows make smaller chunks, so that no lock is held for too many bytes.
                    fitting = AIMED_BYTES * chunk.count // len(chunk.rows)
                    limit = max(1, min(self._most_rows, fitting))
                rows += adopted
                if progress is not None:
                    progress(rows, max(rows, expected))
            yield current

    def _adopt_next(self, current: AdoptedType, limit: int) -> tuple[Chunk | None, Reached]:
        """Append the next chunk and return it with the new progress; None if none was left."""
        name = current.type_name
        scope: AbstractContextManager[None] = (
            open_own(self._connection) if self._own else open_inside(self._connection)
        )
        with scope:
            saved = self._store.lock_progress(self._connection, name)
            reached = saved or Reached()
            # Saved progress may be deleted; without this check the table would be logged twice.
            if saved is None and self._is_logged(name):
                reached = replace(reached, done=True)
                self._store.write_progress(self._connection, name, reached=reached)
            if reached.done:
                return None, reached
            if self._own:
                self._lock([current])
            # Only now: before the lock a migration could still change the table.
            bound = self._check_table(name)
            reached = self._check_columns(bound, reached)
            order = read_key_order(self._connection, bound)
            # After a change of the primary key, rows cannot be continued after the saved key.
            if reached.after is not None and set(reached.after) != set(order):
                raise _other_key(bound, reached.after)
            chunk = read_chunk(
                self._connection, bound, order=order, after=reached.after, limit=limit
            )
            reached = Reached(
                after=chunk.key or reached.after,
                rows=reached.rows + chunk.count,
                entries=reached.entries + 1,
                done=chunk.last,
                revision=reached.revision,
            )
            self._append(bound, chunk, reached)
            self._store.write_progress(self._connection, name, reached=reached)
            return chunk, reached

    def _is_logged(self, type_name: str) -> bool:
        """Whether the log holds a finished adoption; saved progress may have been deleted."""
        snapshot = self._target.store.read_snapshot(self._connection)
        found = self._store.find_adoptions(self._connection, [type_name], snapshot=snapshot)
        return found.get(type_name, Turns()).ended is not None

    def _lock(self, types: list[AdoptedType]) -> None:
        tables = [self._binding.by_name[one.type_name].live for one in types]
        if tables:
            lock_tables(self._connection, tables, wait=self._lock_wait)

    def _check_table(self, type_name: str) -> BoundType:
        """Return the type; raise if a migration changed its table before it was locked."""
        bound = self._binding.by_name[type_name]
        table = bound.declared.table
        live = read_live_tables(self._connection, [table]).get(table)
        if live is None or (live.oid, live.columns) != (bound.live.oid, bound.live.columns):
            raise SchemaDriftError(
                f"table {bound.live.schema}.{bound.live.name} was changed while it was adopted",
                hint="adopt again: adoption continues where it stopped, with the new columns",
            )
        return bound

    def _check_columns(self, bound: BoundType, reached: Reached) -> Reached:
        """Return where to continue; the beginning if a column was renamed or replaced."""
        if reached.after is None:
            return replace(reached, revision=bound.shape.revision)
        if reached.revision in (0, bound.shape.revision):
            return reached
        shapes = group_shapes(self._target.store.list_types(self._connection))
        revisions = shapes[bound.shape.type_name]
        old = next(one for one in revisions if one.revision == reached.revision)
        routes = map_columns(revisions, old, bound.shape)
        # Rows that were adopted before would lack what was rewritten, or added with other values.
        fills = find_fills(revisions, bound.shape)
        if {route.target for route in routes} | fills.keys() != set(bound.shape.names):
            return Reached(revision=bound.shape.revision)
        return reached

    def _append(self, bound: BoundType, chunk: Chunk, reached: Reached) -> None:
        target, key_id = self._target, self._binding.key_id
        type_name = bound.declared.type_name
        aggregate = name_adoption(type_name)
        metadata = [(ADOPTED, type_name)]
        if chunk.last:
            metadata.append((ADOPTED_ROWS, str(reached.rows)))
            if reached.revision:
                metadata.append((ADOPTED_REVISION, str(reached.revision)))
        payload = target.codec.encode_block(bound.shape, chunk.rows, row_count=chunk.count)
        record_id = draw_ordered_id()
        context = name_part(self._binding.log_id, record_id, 0)
        packing = Packing.PADDED if bound.declared.secret else Packing.SMALLEST
        data = target.sealer.seal(payload, context, key_id=key_id, packing=packing)
        parts = (Part(0, data),)
        record = NewRecord(
            record_id=record_id,
            aggregates=[aggregate],
            expected=[None],
            parts=parts,
            format=target.sealer.format,
            key_id=key_id,
            metadata=metadata,
        )
        target.on_event(EntriesDrafted(1, chunk.count, len(data)))
        try:
            execute(self._connection, target.store.bind_append(record))
        except DBAPIError as cause:
            if read_sqlstate(cause) != KEY_RETIRED:
                raise
            raise KeyRetiredError(
                f"the key {key_id!r} was retired while rows were adopted",
                hint="adopt again, which continues where this ended; "
                + target.sealer.renew_key(key_id),
            ) from cause
        target.on_event(EntriesAppended(record_id, committed=False))


def _other_key(bound: BoundType, after: Iterable[str]) -> SchemaDriftError:
    return SchemaDriftError(
        f"table {bound.live.schema}.{bound.live.name} had primary key ({', '.join(after)}) when "
        f"its adoption began, and has ({', '.join(bound.shape.key_names)}) now",
        hint="log the table under a new type name, and adopt it under that name",
    )
