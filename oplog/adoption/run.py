"""Adopts tables chunk by chunk, each chunk as one entry.

Other sessions go on writing between chunks. The position of a chunk's entry is drawn while the
table is locked: every earlier change of its rows has a lower position, every later one a higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy.engine import Connection

from oplog.adoption.choice import choose_types, sort_types
from oplog.adoption.chunk_record import (
    CHUNK_ROWS,
    AdoptionTarget,
    ChunkWriter,
    advance,
    check_chunk_rows,
    check_table,
    describe_adoption,
    estimate_rows,
    fit_rows,
)
from oplog.adoption.locking import LockWait, check_isolation, lock_tables, open_inside, open_own
from oplog.adoption.report import AdoptedType, AdoptionReport
from oplog.adoption.table_rows import Chunk, read_chunk, read_key_order
from oplog.binding import Binding, bind_catalog, bind_for_writing
from oplog.catalog import TypeCatalog
from oplog.errors import SchemaDriftError
from oplog.payload.lineage import find_fills, group_shapes, map_columns
from oplog.postgres.work import Driver
from oplog.store.adopted import AdoptionStore, Reached, Turns
from oplog.type_binding import BoundType

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each chunk with the number of adopted rows and the estimated total."""


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
    check_chunk_rows(chunk_rows)
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
    name = bound.shape.type_name
    reached = AdoptionStore(target.store.schema).read_progress(connection, name) or Reached()
    return AdoptedType(
        name,
        f"{bound.live.schema}.{bound.live.name}",
        rows=0,
        entries=0,
        earlier_rows=reached.rows,
        estimated_rows=estimate_rows(connection, bound.live),
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
        # By the names in the log: that of a table which was renamed differs from the model's.
        self._bound = {bound.shape.type_name: bound for bound in binding.types.values()}
        self._target = target
        self._writer = ChunkWriter(connection, target, binding.log_id, binding.key_id)
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
        expected = sum(max(one.estimated_rows or 0, one.earlier_rows) for one in types)
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
                    limit = fit_rows(chunk, most=self._most_rows)
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
            bound = self._bound[name]
            check_table(self._connection, bound)
            reached = self._check_columns(bound, reached)
            order = read_key_order(self._connection, bound)
            # After a change of the primary key, rows cannot be continued after the saved key.
            if reached.after is not None and set(reached.after) != set(order):
                raise _other_key(bound, reached.after)
            chunk = read_chunk(
                self._connection, bound, order=order, after=reached.after, limit=limit
            )
            reached = advance(reached, chunk)
            self._writer.append(bound, chunk, describe_adoption(name, reached))
            self._store.write_progress(self._connection, name, reached=reached)
            return chunk, reached

    def _is_logged(self, type_name: str) -> bool:
        """Whether the log holds a finished adoption; saved progress may have been deleted."""
        snapshot = self._target.store.read_snapshot(self._connection)
        found = self._store.find_adoptions(self._connection, [type_name], snapshot=snapshot)
        return found.get(type_name, Turns()).ended is not None

    def _lock(self, types: list[AdoptedType]) -> None:
        tables = [self._bound[one.type_name].live for one in types]
        if tables:
            lock_tables(self._connection, tables, wait=self._lock_wait)

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


def _other_key(bound: BoundType, after: Iterable[str]) -> SchemaDriftError:
    return SchemaDriftError(
        f"table {bound.live.schema}.{bound.live.name} had primary key ({', '.join(after)}) when "
        f"its adoption began, and has ({', '.join(bound.shape.key_names)}) now",
        hint="log the table under a new type name, and adopt it under that name",
    )
