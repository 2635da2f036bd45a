"""Finds, for each declared table, the revision under which its rows are logged.

A declared table is found by name, and its type in the log by the table's oid: a table that was
renamed goes on as the type that it was. Revisions that the log lacks are stored, and so is what
the catalog says of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.entry import check_aggregate_name
from oplog.errors import EntryError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.derivation import resolve_shape
from oplog.postgres.live_table import (
    LiveTable,
    read_live_tables,
    read_tables_by_oid,
    require_live_table,
)
from oplog.postgres.namesake import find_name, refuse_second_table
from oplog.postgres.type_evolution import (
    Revisions,
    find_numbers,
    find_stored_name,
    raise_revision,
)
from oplog.store import Store
from oplog.store.guard_state import Guard


@dataclass(frozen=True, eq=False)
class BoundType:
    """A tracked table in this database, ready to be captured."""

    declared: DeclaredType
    shape: Shape
    live: LiveTable
    guard: Guard | None = None
    """None where the table has no guard: what the application cannot see is refused."""

    @property
    def type_name(self) -> str:
        """The log's name of the type: the declared one, unless the table was renamed since."""
        return self.shape.type_name

    @cached_property
    def template(self) -> AggregateTemplate:
        """How rows are grouped."""
        if self.shape.aggregate == self.declared.template.text:
            return self.declared.template
        return AggregateTemplate(self.shape.aggregate)

    @cached_property
    def regroups(self) -> bool:
        """The aggregate's name depends on more than the primary key."""
        return not set(self.template.columns) <= set(self.shape.key_names)

    @cached_property
    def affixes(self) -> tuple[str, str] | None:
        """What stands before and after the only column of a name; None if there are others.

        The column is all of the primary key. With any whole number between them, the name needs
        no check.
        """
        columns = self.template.columns
        if len(columns) != 1 or columns != self.shape.key_names:
            return None
        before, after = self.template.render({columns[0]: "\0"}).split("\0", 1)
        try:
            check_aggregate_name(f"{before}{-(2**63)}{after}")
        except EntryError:
            return None
        return before, after


def make_bound(shape: Shape, live: LiveTable, declared: DeclaredType | None) -> BoundType:
    """A stored type with its table, whether or not the application declares it."""
    if declared is None:
        metadata = sa.MetaData()
        table = sa.Table(live.name, metadata, schema=live.schema)
        for column in shape.columns:
            kept = sa.Column(column.name, sa.types.NullType(), primary_key=column.primary_key)
            table.append_column(kept)
        declared = DeclaredType(
            shape.type_name, table, AggregateTemplate(shape.aggregate), excluded=shape.excluded
        )
    return BoundType(declared, shape, live)


class TypeBinding:
    """The types of a catalog, bound to the tables of one database."""

    def __init__(self, connection: Connection, catalog: TypeCatalog, store: Store) -> None:
        self._connection = connection
        self._catalog = catalog
        self._store = store
        self.bound: list[BoundType] = []
        self.missing: list[BoundType] = []
        """Those whose revision, or its numbers in this database, the log does not have."""
        self.unmarked: list[BoundType] = []
        """Those of which the log does not say yet from where on they are so."""
        self.gone: list[str] = []
        """Names of types whose tables this database had and has no more."""
        self.epoch = 0

    @property
    def unfinished(self) -> list[BoundType]:
        """Types of a schema change whose rows have to be logged again first."""
        return [one for one in self.unmarked if one.shape.change.logs_rows]

    def resolve(self) -> None:
        """Read everything anew."""
        connection, declared = self._connection, list(self._catalog.types.values())
        # Before what it is the number of.
        self.epoch = self._store.changes.read_epoch(connection)
        tables = read_live_tables(connection, [one.table for one in declared])
        stored = group_shapes(self._store.list_types(connection))
        self.bound = []
        for one in declared:
            live = require_live_table(tables, one.table)
            name = self._find_name(one, live, stored)
            shape = resolve_shape(one, live, stored=stored.get(name, []), type_name=name)
            self.bound.append(BoundType(one, shape, live))
        self.bound = self._follow_changes(stored)
        self.missing = [
            one
            for one in self.bound
            if not _is_stored(one.shape, one.live, stored.get(one.shape.type_name, []))
        ]
        self.unmarked = []
        if any(len(revisions) > 1 for revisions in stored.values()):
            unmarked = self._store.changes.list_unmarked(connection)
            self.unmarked = [
                one for one in self.bound if unmarked.get(one.type_name) == one.shape.revision
            ]
        self.gone = self._list_gone(stored)

    def register(self) -> None:
        """Store what is missing, retire what is gone, and say from where on it is so."""
        if self.gone:
            self._store.changes.retire_missing(self._connection)
            self.resolve()
        while self.missing:
            # Once: with hundreds of types, reading them for each would take longer than the rest.
            stored = group_shapes(self._store.list_types(self._connection))
            if any(_may_be_gone(one, stored) for one in self.missing):
                self._store.changes.retire_missing(self._connection)
            for one in self.missing:
                # False if another process stored this revision first; its commit was waited for.
                self._store.register_type(self._connection, one.shape)
            self.resolve()
        for one in self.unmarked:
            if not one.shape.change.logs_rows:
                self._store.changes.mark(self._connection, one.shape)
        self.unmarked = self.unfinished

    # -- names ----------------------------------------------------------------------------

    def _find_name(self, one: DeclaredType, live: LiveTable, stored: Revisions) -> str:
        """The log's name of a declared type: that of the same table, whatever it is called."""
        name = find_stored_name(live, stored)
        if name is not None:
            return name
        name = one.type_name
        while name in stored and self._has_moved_on(live, stored[name]):
            # Another table, which was renamed, goes on under this name of a type.
            name = f"{name}~"
        refuse_second_table(self._connection, live, type_name=name, stored=stored.get(name, []))
        return name

    def _has_moved_on(self, live: LiveTable, revisions: Sequence[Shape]) -> bool:
        numbers = find_numbers(revisions, live.database)
        if numbers is None or numbers.table == live.oid:
            return False
        now = find_name(self._connection, numbers.table)
        return now is not None and now[1] != live.name

    def _list_gone(self, stored: Revisions) -> list[str]:
        """Of the types that nobody declares here: those of dropped tables, not retired yet."""
        declared = {one.type_name for one in self.bound}
        oids = {
            name: numbers.table
            for database in {one.live.database for one in self.bound}
            for name, revisions in stored.items()
            for numbers in [find_numbers(revisions, database)]
            if name not in declared and numbers is not None
        }
        present = read_tables_by_oid(self._connection, set(oids.values()))
        if set(oids.values()) <= present.keys():
            return []
        retired = self._store.changes.list_retired(self._connection)
        return [name for name, oid in oids.items() if oid not in present and name not in retired]

    # -- what the database did by itself --------------------------------------------------

    def _follow_changes(self, stored: Revisions) -> list[BoundType]:
        """Types, with a new revision where the database wrote rows anew, or renamed labels."""
        asked = [
            one
            for one in self.bound
            for known in [stored.get(one.type_name, [])]
            if known and one.shape is known[-1] and find_numbers(known, one.live.database)
        ]
        found = self._store.changes.describe(
            self._connection, [(one.shape, one.live.oid) for one in asked]
        )
        raised = {
            one.type_name: replace(one, shape=raise_revision(one.shape, one.live))
            for one, change in zip(asked, found, strict=True)
            if change.logs_rows or change.labels
        }
        return [raised.get(one.type_name, one) for one in self.bound]


def _may_be_gone(one: BoundType, stored: Revisions) -> bool:
    """Whether the type was of another table of this name, which may have been dropped."""
    known = stored.get(one.type_name)
    numbers = find_numbers(known, one.live.database) if known else None
    return numbers is not None and numbers.table != one.live.oid


def _is_stored(shape: Shape, live: LiveTable, stored: list[Shape]) -> bool:
    """Whether the log has the revision, and where this database keeps its columns."""
    return any(
        known == shape and live.database in {n.database for n in known.numbers} for known in stored
    )
