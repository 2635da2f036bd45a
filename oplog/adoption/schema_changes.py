"""Notes in the log what a migration made of logged tables, and logs again what it rewrote.

Goes by what the database shows, not by the models: at each revision of a migration the tables are
what they are, and the models are those of the last one. What the catalog does not prove is left to
`op.replace_type`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.adoption.chunk_record import CHUNK_ROWS, AdoptionTarget
from oplog.adoption.locking import LockWait
from oplog.adoption.refill import log_rewritten
from oplog.adoption.run import Progress
from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import ConfigurationError, SchemaDriftError, UnknownTypeError
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.live_table import (
    LiveTable,
    check_settings,
    read_live_tables,
    read_tables_by_oid,
)
from oplog.postgres.standby import require_primary
from oplog.postgres.type_evolution import (
    Revisions,
    derive_first,
    evolve_shape,
    find_declared,
    find_numbers,
    locate_tables,
    raise_revision,
)
from oplog.store import Store
from oplog.store.guard_state import read_guards
from oplog.store.partition_guards import NONE_MADE_LATER, GuardedPartitions
from oplog.type_binding import BoundType, make_bound


@dataclass(frozen=True, slots=True)
class ChangesReport:
    """What was noted: revisions that were `stored`, types that were `retired`.

    `rows` says how many rows of a type were logged again. `waiting` are types whose message the
    application compiled itself: it has to store the next revision.
    """

    stored: Sequence[Shape] = ()
    retired: Sequence[str] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    waiting: Sequence[str] = ()
    guards: GuardedPartitions = NONE_MADE_LATER
    """Partitions of tracked tables that were made later; only `store_types` guards them."""

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "stored": [
                {"name": shape.type_name, "revision": shape.revision, **shape.to_json()}
                for shape in self.stored
            ],
            "retired": list(self.retired),
            "rows": dict(self.rows),
            "waiting": list(self.waiting),
            **self.guards.to_json(),
        }


@dataclass(frozen=True, slots=True)
class NotedBy:
    """How changes are noted: by which log, and how rows are logged again."""

    catalog: TypeCatalog
    target: AdoptionTarget
    lock_wait: LockWait = field(default_factory=LockWait)
    chunk_rows: int = CHUNK_ROWS
    progress: Progress | None = None
    guarded: bool = False
    """Types of guarded tables that nobody declares are stored as well."""


def note_changes(connection: Connection, by: NotedBy) -> ChangesReport:
    """Store what the database shows of logged tables, and log again what was rewritten.

    In the caller's transaction if there is one; else in transactions of its own, so that what was
    interrupted goes on where it ended. Does nothing where nothing changed. Raises
    `SchemaDriftError`, with the line to add, where the catalog does not prove what became of rows.
    """
    scope = _open_scope(connection)
    with scope():
        # Inside: the question begins a transaction, which would be taken for the caller's.
        require_primary(connection, "noting schema changes")
        noted = _Noting(connection, by.catalog, by.target.store, guarded=by.guarded)
        noted.run()
        unfinished = noted.mark()
    return replace(noted.report, rows=_finish(connection, unfinished, by, scope=scope))


def replace_type(
    connection: Connection, type_name: str, *, reason: str, by: NotedBy
) -> ChangesReport:
    """Log all rows of a type anew: its table, or the columns of its key, were replaced.

    Earlier rows of the type end here, whatever became of them. Raises `UnknownTypeError` for a type
    that the log does not have, `SchemaDriftError` where its table is not in the database, and
    `ConfigurationError` without a reason.
    """
    if not reason.strip():
        raise ConfigurationError(
            "replace_type needs a reason", hint="say what became of the table or of its key"
        )
    scope = _open_scope(connection)
    with scope():
        # Inside: the question begins a transaction, which would be taken for the caller's.
        require_primary(connection, "noting schema changes")
        bound = _replace(connection, type_name, by)
    rows = _finish(connection, [bound], by, scope=scope, reason=reason)
    return ChangesReport(stored=[bound.shape], rows=rows)


def finish_types(connection: Connection, unfinished: Sequence[BoundType], by: NotedBy) -> None:
    """Log again the rows of stored changes, and mark these, in the caller's transaction.

    For a role that may write the tables and the log, and keeps no progress.
    """
    _finish(connection, unfinished, by, scope=nullcontext, keep_progress=False)


_Scope = Callable[[], AbstractContextManager[Any]]


def _open_scope(connection: Connection) -> _Scope:
    if connection.in_transaction():
        return nullcontext
    return connection.begin


def _finish(
    connection: Connection,
    unfinished: Sequence[BoundType],
    by: NotedBy,
    *,
    scope: _Scope,
    reason: str = "",
    keep_progress: bool = True,
) -> dict[str, int]:
    """Log rows again, and say then from where on the tables are what they are."""
    rows = {}
    for bound in unfinished:
        report = log_rewritten(
            connection,
            bound,
            change=bound.shape.change,
            target=by.target,
            own=scope is not nullcontext,
            keep_progress=keep_progress,
            lock_wait=by.lock_wait,
            chunk_rows=by.chunk_rows,
            progress=by.progress,
        )
        rows[bound.type_name] = report.rows
        with scope():
            by.target.store.changes.mark(connection, bound.shape, reason=reason)
    return rows


class _Noting:
    """One look at all types of a log and at their tables."""

    def __init__(
        self, connection: Connection, catalog: TypeCatalog, store: Store, *, guarded: bool
    ) -> None:
        self._connection = connection
        self._catalog = catalog
        self._store = store
        self._guarded = guarded
        self._tables: Mapping[sa.Table, LiveTable] = {}
        self._located: dict[str, LiveTable] = {}
        self._declared: dict[str, DeclaredType] = {}
        self._stored: Revisions = {}
        self.report = ChangesReport()

    def run(self) -> None:
        """Store new revisions, and retire types of tables that are gone."""
        connection, store = self._connection, self._store
        check_settings(connection)
        store.require_current(connection)
        retired = store.changes.retire_missing(connection)
        before = {(s.type_name, s.revision) for s in store.list_types(connection)}
        self._read()
        waiting: list[str] = []
        while missing := self._list_missing(waiting):
            self._register(missing)
            waiting.clear()
            self._read()
        stored = [
            shape
            for revisions in self._stored.values()
            for shape in revisions
            if (shape.type_name, shape.revision) not in before
        ]
        for name in self._located:
            store.changes.renew_state(connection, name)
        self.report = ChangesReport(stored=stored, retired=retired, waiting=waiting)

    def _register(self, missing: Iterable[Shape]) -> None:
        """Store revisions; `SchemaDriftError` names all types of which the user has to say more."""
        refused: list[SchemaDriftError] = []
        for shape in missing:
            try:
                with self._connection.begin_nested():
                    self._store.register_type(self._connection, shape)
            except SchemaDriftError as error:
                refused.append(error)
        if len(refused) == 1:
            raise refused[0]
        if refused:
            raise SchemaDriftError(
                "; ".join(str(error.args[0]) for error in refused),
                hint="; ".join(error.hint for error in refused),
            ) from refused[0]

    def _read(self) -> None:
        connection = self._connection
        self._stored = group_shapes(self._store.list_types(connection))
        self._located = locate_tables(connection, self._stored)
        declared = [one.table for one in self._catalog.types.values()]
        self._tables = read_live_tables(connection, declared)
        self._declared = find_declared(self._catalog, self._stored, self._located, self._tables)

    def _list_missing(self, waiting: list[str]) -> list[Shape]:
        """Revisions that the log lacks, or lacks the numbers of."""
        missing, unchanged = [], []
        for name, live in self._located.items():
            revisions = self._stored[name]
            shape = evolve_shape(live, revisions, self._declared.get(name))
            if shape is None:
                waiting.append(name)
            elif shape is revisions[-1] and find_numbers(revisions, live.database):
                unchanged.append((shape, live))
            elif shape.revision > revisions[-1].revision or shape is revisions[-1]:
                missing.append(shape)
        asked = [(shape, live.oid) for shape, live in unchanged]
        changes = self._store.changes.describe(self._connection, asked)
        missing += [
            raise_revision(shape, live)
            for (shape, live), change in zip(unchanged, changes, strict=True)
            if change.logs_rows or change.labels
        ]
        return missing + list(self._list_new())

    def _list_new(self) -> Iterator[Shape]:
        """First revisions of tables that are declared or guarded, and that the log does not have.

        As the table is now: the models may be those of a later revision of a migration.
        """
        known = {live.oid for live in self._located.values()}
        declared = list(self._catalog.types.values())
        new: dict[int, tuple[LiveTable, DeclaredType | None]] = {
            live.oid: (live, one)
            for one in declared
            for live in [self._tables.get(one.table)]
            if live is not None and live.oid not in known and _fits(live, one)
        }
        guarded: Iterable[int] = ()
        if self._guarded:
            guarded = read_guards(self._connection, self._store.schema).tables
        unknown = set(guarded) - known - new.keys()
        for oid, live in read_tables_by_oid(self._connection, sorted(unknown)).items():
            new[oid] = (live, None)
        for live, one in new.values():
            name = self._name_type(live, one)
            shape = derive_first(live, one, type_name=name, stored=self._stored.get(name, []))
            if shape is not None:
                yield shape

    def _name_type(self, live: LiveTable, declared: DeclaredType | None) -> str:
        name = live.name if live.schema == "public" else f"{live.schema}.{live.name}"
        name = name if declared is None else declared.type_name
        while name in self._located:
            # Another table, which was renamed, goes on under this name of a type.
            name = f"{name}~"
        return name

    def mark(self) -> list[BoundType]:
        """Say from where on tables are what they are; the types whose rows come first."""
        unfinished = []
        unmarked = self._store.changes.list_unmarked(self._connection)
        for name, revision in unmarked.items():
            shape, live = self._stored[name][-1], self._located.get(name)
            if live is None or shape.revision != revision:
                continue
            if shape.change.logs_rows:
                unfinished.append(make_bound(shape, live, self._declared.get(name)))
            else:
                self._store.changes.mark(self._connection, shape)
        return unfinished


def _replace(connection: Connection, type_name: str, by: NotedBy) -> BoundType:
    store = by.target.store
    store.require_current(connection)
    stored = group_shapes(store.list_types(connection))
    located = locate_tables(connection, stored)
    name = _find_name(type_name, stored, located)
    revisions = stored[name]
    tables = read_live_tables(connection, [one.table for one in by.catalog.types.values()])
    declared = find_declared(by.catalog, stored, located, tables).get(name)
    live = located.get(name) or _find_by_name(connection, revisions[-1], declared)
    if live is None:
        raise SchemaDriftError(
            f"the table of type {name!r} is not in the database",
            hint=f"if it was dropped for good, retire the type: op.retire_type({name!r}, "
            "reason=...)",
        )
    shape = evolve_shape(live, revisions, declared)
    if shape is None:
        raise SchemaDriftError(
            f"type {name!r} has a message that the application compiled itself, and that does not "
            "fit its table",
            hint="give the log of the application's next version, which registers it",
        )
    shape = replace(shape, revision=revisions[-1].revision + 1, numbers=(live.numbers,))
    store.changes.replace(connection, shape)
    newest = group_shapes(store.list_types(connection))[name][-1]
    return make_bound(newest, live, declared)


def _fits(live: LiveTable, declared: DeclaredType) -> bool:
    """Whether rows of the table can be logged as what the model says at all."""
    key = {column.name for column in declared.table.primary_key}
    return live.kind in ("r", "p") and live.oddity is None and set(live.key_names) == key


def _find_name(type_name: str, stored: Revisions, located: Mapping[str, LiveTable]) -> str:
    """The log's name of a type that is given by it, or by the name of its table."""
    named = [name for name, live in located.items() if live.name == type_name]
    if type_name in stored and (type_name in located or not named):
        return type_name
    if len(named) == 1:
        return named[0]
    raise UnknownTypeError(
        f"the log has no type {type_name!r}",
        hint=f"it has {', '.join(sorted(stored)) or 'no types'}",
    )


def _find_by_name(
    connection: Connection, newest: Shape, declared: DeclaredType | None
) -> LiveTable | None:
    """The table that has taken the place of the one that the type had."""
    metadata = sa.MetaData()
    tables = [sa.Table(newest.table, metadata, schema=newest.schema)]
    if declared is not None:
        tables.append(declared.table)
    found = read_live_tables(connection, tables)
    return next((found[table] for table in tables if table in found), None)
