"""The catalog bound to one database: declared types, stored shapes, live tables.

Built once for an engine, before its first logged write, and read by every one after. Binding
writes: a type that the log has not seen is stored first, by a transaction of its own, so that no
other writer waits for the caller's, and a rollback does not take it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import xor
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.errors import (
    SchemaDriftError,
    SchemaVersionError,
    UnknownTypeError,
    UnloggedWriteError,
    WrongKeyError,
)
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.derivation import resolve_shape
from oplog.postgres.driver import cut_off, require_driver
from oplog.postgres.live_table import (
    check_settings,
    read_live_tables,
    read_tables_by_oid,
)
from oplog.postgres.standby import require_primary
from oplog.postgres.type_evolution import (
    Revisions,
    derive_first,
    find_declared,
    locate_tables,
)
from oplog.store import Store
from oplog.store.guard_state import Guards, read_guards
from oplog.store.rows import KnownTables
from oplog.type_binding import BoundType, TypeBinding, make_bound

_APART_SECONDS = 5.0
"""Seconds for storing types on a connection of its own; then the caller's transaction does it."""
_NO_GUARDS = Guards({}, ())


@dataclass(frozen=True, eq=False)
class Binding:
    """Everything a transaction needs to know about its database."""

    log_id: UUID
    key_id: str
    """The key this transaction seals with; empty for plaintext."""
    types: Mapping[sa.Table, BoundType]
    by_name: Mapping[str, BoundType]
    """By declared names, and by the log's own where no other type is declared under them."""
    fresh: bool
    """Types or keys were stored by the transaction that built this; it must commit first."""
    epoch: int = 0
    """How many schema changes the log had when this was read."""
    unfinished: Sequence[BoundType] = ()
    """Types of a schema change whose rows have to be logged again first."""
    deferred: Sequence[str] = ()
    """Deferrable triggers of the application's own; empty where nothing is guarded."""

    def know(self, written: Iterable[BoundType]) -> KnownTables:
        """What a transaction that writes these types takes the tables for."""
        forms, labels = dict[int, int](), dict[int, int]()
        for bound in written:
            forms |= bound.live.forms
            labels |= bound.live.labels
        if not forms:
            return KnownTables(self.epoch)
        form = reduce(xor, (*forms.values(), *labels.values()))
        return KnownTables(self.epoch, list(forms), list(labels), form)

    @cached_property
    def by_stored_name(self) -> Mapping[str, BoundType]:
        """By the log's names: after two tables swapped theirs, each is declared as the other."""
        return {bound.type_name: bound for bound in self.types.values()}

    @cached_property
    def secret_types(self) -> frozenset[str]:
        """Types with columns that the sizes of sealed bytes must not tell."""
        return frozenset(
            name for name, bound in self.by_stored_name.items() if bound.declared.secret
        )

    @cached_property
    def searchable(self) -> Mapping[str, frozenset[str]]:
        """By type, the columns whose values are found by tokens; a log in plaintext has none."""
        if not self.key_id:
            return {}
        return {
            name: bound.declared.searchable
            for name, bound in self.by_stored_name.items()
            if bound.declared.searchable
        }

    @cached_property
    def by_oid(self) -> Mapping[int, BoundType]:
        """The tracked types by the oids of their tables."""
        found: dict[int, BoundType] = {}
        for bound in self.types.values():
            # Of several types of one table the first one.
            found.setdefault(bound.live.oid, bound)
        return found

    def find_relation(self, oid: int) -> BoundType:
        """The tracked type of a table by its oid; `UnloggedWriteError` if there is none."""
        found = self.by_oid.get(oid)
        if found is not None:
            return found
        raise UnloggedWriteError(
            f"the guarded table with oid {oid} was changed, and this log's catalog does not "
            "have it",
            hint="add the table to the catalog, or untrack it in a migration: "
            "op.untrack_tables(..., reason=...)",
        )

    def find_type(self, type_name: str) -> BoundType:
        """The tracked type; `UnknownTypeError` if the catalog does not have it."""
        found = self.by_name.get(type_name)
        if found is None:
            raise UnknownTypeError(
                f"{type_name!r} is not a type of this log",
                hint=f"the catalog has {', '.join(sorted(self.by_name)) or 'no types'}",
            )
        return found


def bind_for_writing(
    connection: Connection,
    catalog: TypeCatalog,
    *,
    store: Store,
    keyring: Keyring | None,
    guard: bool = True,
    apart: bool = True,
) -> Binding:
    """What a transaction needs to log its rows; nothing is stored by the transaction itself.

    Types and key ids that the log does not know are stored by a short transaction on a
    connection apart: in the caller's own, every other first writer would wait for its end,
    and one in the same thread for ever. Only where that cannot see the same tables (they
    are made by the caller's open transaction) the caller's own stores them, and the binding
    is `fresh`. Without `apart` they are not looked for elsewhere. `ConfigurationError` on a
    standby, and for a driver other than psycopg 3.
    """
    require_driver(connection)
    require_primary(connection, "writing to the log")
    if not apart:
        bound = bind_catalog(connection, catalog, store=store, keyring=keyring)
        return _add_guards(bound, read_guards(connection, store.schema) if guard else _NO_GUARDS)
    bound = bind_catalog(connection, catalog, store=store, keyring=keyring, write=False)
    guards = read_guards(connection, store.schema) if guard else _NO_GUARDS
    if not bound.fresh:
        return _add_guards(bound, guards)
    other = _bind_apart(connection, catalog, store=store, keyring=keyring)
    if other is not None and other.log_id == bound.log_id and _same_types(other, bound):
        return _add_guards(other, guards)
    return _add_guards(bind_catalog(connection, catalog, store=store, keyring=keyring), guards)


def _add_guards(binding: Binding, guards: Guards) -> Binding:
    if not guards.tables:
        return binding
    types = {
        table: replace(bound, guard=guards.tables.get(bound.live.oid))
        for table, bound in binding.types.items()
    }
    by_name = {bound.shape.type_name: bound for bound in types.values()}
    by_name |= {bound.declared.type_name: bound for bound in types.values()}
    return replace(binding, types=types, by_name=by_name, deferred=guards.deferred)


def bind_catalog(
    connection: Connection,
    catalog: TypeCatalog,
    *,
    store: Store,
    keyring: Keyring | None,
    write: bool = True,
) -> Binding:
    """Compare catalog, log and live tables; store types and key ids the log does not know.

    With `write=False` nothing is stored, and the binding is `fresh` if something had to be.
    Raises `SchemaVersionError` without current log tables, `SchemaDriftError` where tables
    and models disagree, `WrongKeyError` when a known key id comes with another key,
    `ConfigurationError` for settings under which the log's SQL says something else.
    """
    check_settings(connection)
    store.require_current(connection)
    log_id = store.read_log_id(connection)
    # Read once: another thread may rotate the keyring at any moment.
    key_id = "" if keyring is None else keyring.current_key_id
    fresh = keyring is not None and not _knows_key(connection, keyring, key_id, store)
    if fresh and write and keyring is not None:
        store.register_key(connection, key_id, check_value=keyring.check_value(key_id))
    found = TypeBinding(connection, catalog, store)
    found.resolve()
    if found.missing or found.unmarked or found.gone:
        fresh = True
        if write:
            found.register()
    bound = {one.declared.table: one for one in found.bound}
    by_name = {one.shape.type_name: one for one in bound.values()}
    by_name |= {one.declared.type_name: one for one in bound.values()}
    return Binding(
        log_id,
        key_id,
        types=bound,
        by_name=by_name,
        fresh=fresh,
        epoch=found.epoch,
        unfinished=found.unfinished,
    )


def bind_stored(
    connection: Connection, catalog: TypeCatalog, *, store: Store, keyring: Keyring | None
) -> Binding:
    """The binding of all types that the log knows to the tables as they are, with their guards.

    For a migration, whose tables are not what the models say: the newest revisions of the log are,
    once changes were noted. Types that nobody declares any more are bound as well.
    """
    require_driver(connection)
    require_primary(connection, "writing to the log")
    nothing = bind_catalog(connection, catalog.narrow(()), store=store, keyring=keyring)
    stored = group_shapes(store.list_types(connection))
    located = locate_tables(connection, stored)
    tables = read_live_tables(connection, [one.table for one in catalog.types.values()])
    declared = find_declared(catalog, stored, located, tables)
    bound = [
        make_bound(stored[name][-1], live, declared.get(name)) for name, live in located.items()
    ]
    # Two types may have been declared by one model, one after the other.
    types = {sa.Table(one.type_name, sa.MetaData()): one for one in bound}
    by_name = {one.type_name: one for one in bound}
    binding = replace(nothing, types=types, by_name=by_name)
    return _add_guards(binding, read_guards(connection, store.schema))


def list_unstored_shapes(
    connection: Connection, catalog: TypeCatalog, *, stored: Revisions, schema: str
) -> list[Shape]:
    """Shapes of the application's tables that the log has no type for yet.

    Nothing was ever logged for them: every row that they hold slipped past. Those are declared
    tables, guarded ones that were mapped after the catalog was made from their models, and all
    guarded ones for a catalog that has none. Tables that are not in the database are left out.
    """
    missing = [t for t in catalog.types.values() if t.type_name not in stored]
    live = read_live_tables(connection, [declared.table for declared in catalog.types.values()])
    shapes = [
        resolve_shape(declared, live[declared.table], stored=[])
        for declared in missing
        if declared.table in live
    ]
    known = {one.oid for one in live.values()}
    known |= {one.oid for one in locate_tables(connection, stored).values()}
    unknown = sorted(read_guards(connection, schema).tables.keys() - known)
    taken = {*stored, *(shape.type_name for shape in shapes)}
    for found in read_tables_by_oid(connection, unknown).values():
        names = {found.name, f"{found.schema}.{found.name}"}
        # Another application may declare the table, and adopt its rows.
        ours = not catalog.types or bool(names & set(catalog.list_missing()))
        if ours and not names & {*catalog.untracked, *taken}:
            shape = derive_first(found, None, type_name=f"{found.schema}.{found.name}")
            shapes += [] if shape is None else [shape]
    return shapes


def _bind_apart(
    caller: Connection, catalog: TypeCatalog, *, store: Store, keyring: Keyring | None
) -> Binding | None:
    """The binding stored and committed on a connection of its own; None if that fails."""
    engine = caller.engine
    # Under another search path it would store other tables of the same names.
    path = caller.exec_driver_sql("SELECT pg_catalog.current_setting('search_path')").scalar_one()
    # Not from the pool: the caller may hold its only connection.
    apart = Engine(engine.pool.recreate(), engine.dialect, engine.url)
    try:
        with apart.connect() as connection, cut_off(connection, _APART_SECONDS), connection.begin():
            # What is read here is written by every append: at SERIALIZABLE one of both would fail.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.exec_driver_sql(
                "SELECT pg_catalog.set_config('lock_timeout', '5s', true), "
                "pg_catalog.set_config('search_path', %s, true)",
                (path,),
            )
            bound = bind_catalog(connection, catalog, store=store, keyring=keyring)
        return replace(bound, fresh=False)
    except (SchemaVersionError, SchemaDriftError, DBAPIError):
        # Tables that only the caller's transaction sees, or no connection to be had: the
        # caller's own attempt, which follows, succeeds or raises what is wrong.
        return None
    finally:
        apart.dispose()


def _same_types(one: Binding, other: Binding) -> bool:
    return all(bound.shape.same_as(other.types[table].shape) for table, bound in one.types.items())


def _knows_key(connection: Connection, keyring: Keyring, key_id: str, store: Store) -> bool:
    known = store.read_key_check(connection, key_id)
    if known is not None and known != keyring.check_value(key_id):
        raise WrongKeyError(
            f"the keyring's key {key_id!r} is not the key that this log knows by that id",
            hint="use the keyring this log was written with",
        )
    return known is not None
