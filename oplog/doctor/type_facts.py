"""Reads what the log knows of its types, and what the database and the models have of them.

Reads only. What the role may not ask is None, and no error. `oplog.doctor.evolution` judges the
facts for a log that is deployed, `oplog.doctor.contract` for a build before it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import ConfigurationError, NotCapturableError, OplogError, SchemaDriftError
from oplog.payload.lineage import group_shapes
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.derivation import resolve_shape
from oplog.postgres.live_table import (
    LiveTable,
    Reference,
    list_outward_references,
    read_database_id,
    read_live_tables,
    require_live_table,
)
from oplog.postgres.type_evolution import (
    Revisions,
    evolve_shape,
    find_declared,
    find_numbers,
    locate_tables,
)
from oplog.store import Store, TablesLog
from oplog.store.adopted import Turns

_ASKED = ("oplog_describe_change",)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a table cannot be logged as it is, and what to do about it.

    `waits` is whether a version of the application with another message ends it.
    """

    message: str
    hint: str
    waits: bool = False


@dataclass(frozen=True)
class TypeFacts:
    """A type of the log, or one that is declared and not in it yet: `stored` is empty then.

    `live` is the table that the type has now, `reached` whether the models' name is that table's,
    `now` the revision that describes it: the newest
    stored one itself where nothing changed. `change` is what became of rows since that was stored.
    `dropped`: this database had the type's table, and has it no more; `replacement` is another one
    of its name, `filled` whether that has rows, None if the role may not see it. `pending`: a
    stored change whose rows are not all logged again yet. `retired` types have ended.
    """

    type_name: str
    stored: Sequence[Shape] = ()
    declared: DeclaredType | None = None
    live: LiveTable | None = None
    reached: bool = True
    now: Shape | None = None
    change: SchemaChange | None = None
    refusal: Refusal | None = None
    dropped: bool = False
    replacement: LiveTable | None = None
    filled: bool | None = None
    pending: bool = False
    retired: bool = False

    @property
    def newest(self) -> Shape | None:
        """The newest revision that the log has."""
        return self.stored[-1] if self.stored else None

    @property
    def is_unnoted(self) -> bool:
        """Whether the table was changed, and the log does not say so yet."""
        newest, now = self.newest, self.now
        if newest is None or now is None or self.live is None:
            return False
        change = self.change
        return now.revision > newest.revision or (
            now is newest and change is not None and (change.logs_rows or bool(change.labels))
        )

    @property
    def excluded(self) -> Mapping[str, str]:
        """Columns that are not logged, with the reason."""
        if self.declared is not None:
            return self.declared.excluded
        return self.newest.excluded if self.newest is not None else {}


@dataclass(frozen=True)
class SchemaFacts:
    """All types, and what the foreign keys of their tables refer to outside of them.

    `unasked` are functions of the log that the role may not execute: what they would have
    answered is not known.
    """

    types: Sequence[TypeFacts]
    references: Sequence[Reference] = ()
    unasked: Sequence[str] = ()

    def find_live(self, live: LiveTable) -> TypeFacts | None:
        """The stored type of a table."""
        for one in self.types:
            if one.stored and one.live is not None and one.live.oid == live.oid:
                return one
        return None


def read_schema_facts(connection: Connection, store: Store, catalog: TypeCatalog) -> SchemaFacts:
    """Facts of all types that the log knows or the catalog declares."""
    log = TablesLog(store, connection)
    stored = group_shapes(log.list_types())
    turns = log.find_adoptions(list(stored), snapshot=log.read_snapshot())
    unasked = _list_unasked(connection, store.schema)
    located = locate_tables(connection, stored)
    tables = read_live_tables(connection, [one.table for one in catalog.types.values()])
    declared = find_declared(catalog, stored, located, tables)
    types = [
        _look(connection, name, stored, live=located.get(name), declared=declared.get(name))
        for name in stored
    ]
    types = [
        replace(
            one,
            retired=turns.get(one.type_name, Turns()).is_retired_at(one.stored[-1].revision),
            pending=is_pending(turns.get(one.type_name, Turns()), one.stored[-1]),
            reached=one.declared is None or one.declared.table in tables,
        )
        for one in types
    ]
    if not unasked:
        types = _ask(connection, store, types)
    types += _look_at_new(catalog, tables, known=types)
    oids = [one.live.oid for one in types if one.live is not None and not one.retired]
    return SchemaFacts(types, list_outward_references(connection, oids), unasked)


def _list_unasked(connection: Connection, schema: str) -> list[str]:
    rows = connection.exec_driver_sql(
        "SELECT w.name FROM pg_catalog.unnest(%s::text[]) AS w(name) WHERE NOT EXISTS ("
        "SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = %s AND p.proname = w.name "
        "AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) ORDER BY 1",
        (list(_ASKED), schema),
    )
    return list(rows.scalars())


def is_pending(turns: Turns, newest: Shape) -> bool:
    """Whether the log does not say yet that all rows of the newest change are in it."""
    said = {revision for _, revision in turns.changes}
    retired = turns.is_retired_at(newest.revision)
    return newest.change.logs_rows and newest.revision not in said and not retired


def _look(
    connection: Connection,
    name: str,
    stored: Revisions,
    *,
    live: LiveTable | None,
    declared: DeclaredType | None,
) -> TypeFacts:
    """A stored type and its table."""
    found = TypeFacts(name, stored[name], declared, live)
    if live is None:
        if find_numbers(stored[name], read_database_id(connection)) is None:
            return found
        other = _find_replacement(connection, stored[name][-1], declared)
        filled = None if other is None else _has_rows(connection, other)
        return replace(found, dropped=True, replacement=other, filled=filled)
    try:
        now = evolve_shape(live, stored[name], declared)
    except OplogError as error:
        return replace(found, refusal=Refusal(str(error.args[0]), error.hint))
    if now is None:
        return replace(found, refusal=_find_refusal(declared, live, stored[name], name))
    return replace(found, now=now)


def _find_refusal(
    declared: DeclaredType | None, live: LiveTable, stored: Sequence[Shape], name: str
) -> Refusal:
    """Why the application's own message does not fit the table."""
    if declared is not None:
        try:
            resolve_shape(declared, live, stored=list(stored), type_name=name)
        except (SchemaDriftError, ConfigurationError) as error:
            return Refusal(str(error.args[0]), error.hint, waits=True)
    return Refusal(
        "the table was changed, and the message of its type is that of another application",
        hint="ask with the models of the application that registers it",
        waits=True,
    )


def _find_replacement(
    connection: Connection, newest: Shape, declared: DeclaredType | None
) -> LiveTable | None:
    tables = [sa.Table(newest.table, sa.MetaData(), schema=newest.schema)]
    if declared is not None:
        tables.append(declared.table)
    found = read_live_tables(connection, tables)
    return next((one for one in found.values() if one.kind in ("r", "p")), None)


def _has_rows(connection: Connection, live: LiveTable) -> bool | None:
    allowed = connection.exec_driver_sql(
        "SELECT pg_catalog.has_table_privilege(c.oid, 'SELECT') "
        "AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE') "
        "FROM pg_catalog.pg_class c WHERE c.oid = %s::bigint::oid",
        (live.oid,),
    ).scalar()
    if not allowed:
        return None
    found = connection.exec_driver_sql(
        f"SELECT EXISTS (SELECT FROM {live.qualified})",
        execution_options={"no_parameters": True},
    )
    return bool(found.scalar_one())


def _ask(connection: Connection, store: Store, types: Sequence[TypeFacts]) -> list[TypeFacts]:
    """Add what the database itself says of changes."""
    asked = {
        one.type_name: (one.now, one.live.oid)
        for one in types
        if one.now is not None and one.live is not None and not one.retired
        if _may_have_changed(one.now, one.stored, one.live)
    }
    found = store.changes.describe(connection, list(asked.values()))
    changes = dict(zip(asked, found, strict=True))
    return [replace(one, change=changes.get(one.type_name)) for one in types]


def _may_have_changed(now: Shape, stored: Sequence[Shape], live: LiveTable) -> bool:
    if now is stored[-1]:
        # A database that never had the revision, a restored one, has nothing to compare with.
        return find_numbers(stored, live.database) is not None
    # A revision of other models, which the table has had, changes nothing.
    return now.revision > stored[-1].revision


def _look_at_new(
    catalog: TypeCatalog, tables: Mapping[sa.Table, LiveTable], *, known: Sequence[TypeFacts]
) -> list[TypeFacts]:
    """Types that are declared, and that the log does not have."""
    taken = {id(one.declared) for one in known}
    new = [one for one in catalog.types.values() if id(one) not in taken]
    found = []
    for one in new:
        live = tables.get(one.table)
        facts = TypeFacts(one.type_name, declared=one, live=live)
        if live is not None:
            try:
                require_live_table(tables, one.table)
                facts = replace(facts, now=resolve_shape(one, live, stored=[]))
            except NotCapturableError as error:
                facts = replace(facts, refusal=Refusal(str(error.args[0]), error.hint))
            except (SchemaDriftError, ConfigurationError):
                # The models and the table disagree, which is judged column by column.
                pass
        found.append(facts)
    return found
