"""Finds the tables of stored types, and the revision that describes a table as it is now.

Needs no models: what the log knows of a type, and the live table, are enough. So a migration can
be noted at any of its revisions, by a process whose models are those of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import ConfigurationError, SchemaDriftError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.column_numbers import Numbers
from oplog.payload.derived_shape import derive_shape
from oplog.payload.shape import DERIVED, Shape
from oplog.postgres.derivation import find_fitting, list_live_columns, resolve_shape
from oplog.postgres.live_table import (
    LiveTable,
    read_database_id,
    read_live_tables,
    read_tables_by_oid,
)

Revisions = Mapping[str, Sequence[Shape]]
"""All revisions of each type, rising."""


def locate_tables(connection: Connection, stored: Revisions) -> dict[str, LiveTable]:
    """The live table of each type that has one.

    By its oid where this database has had the newest revision, whatever the table is called now;
    else by the name that the newest revision gives it.
    """
    database = read_database_id(connection)
    oids = {
        name: numbers.table
        for name, revisions in stored.items()
        for numbers in [find_numbers(revisions, database)]
        if numbers is not None
    }
    by_oid = read_tables_by_oid(connection, set(oids.values()))
    metadata = sa.MetaData()
    named = {
        name: sa.Table(
            revisions[-1].table, metadata, schema=revisions[-1].schema, keep_existing=True
        )
        for name, revisions in stored.items()
        if name not in oids
    }
    by_name = read_live_tables(connection, named.values())
    located = {name: by_oid[oid] for name, oid in oids.items() if oid in by_oid}
    located |= {name: by_name[table] for name, table in named.items() if table in by_name}
    return {name: table for name, table in located.items() if table.kind in ("r", "p")}


def find_numbers(revisions: Sequence[Shape], database: str) -> Numbers | None:
    """By which numbers a database has the newest revision; None if it never had it."""
    for numbers in revisions[-1].numbers:
        if numbers.database == database:
            return numbers
    return None


def find_stored_name(live: LiveTable, stored: Revisions) -> str | None:
    """The type that this database has had for this very table; None if there is none."""
    for name, revisions in stored.items():
        numbers = find_numbers(revisions, live.database)
        if numbers is not None and numbers.table == live.oid:
            return name
    return None


def find_declared(
    catalog: TypeCatalog,
    stored: Revisions,
    located: Mapping[str, LiveTable],
    tables: Mapping[sa.Table, LiveTable],
) -> dict[str, DeclaredType]:
    """What the application declares of each stored type: of its table, or of its name.

    Not of its name where that is another table's by now: a table was renamed, and a new one made.
    `tables` are the live ones of the declared types.
    """
    by_place = {(one.table.schema, one.table.name): one for one in catalog.types.values()}
    found = {}
    for name in stored:
        live = located.get(name)
        places = [] if live is None else [(live.schema, live.name), (None, live.name)]
        matches = [by_place[place] for place in places if place in by_place]
        if matches:
            found[name] = matches[0]
        elif name in catalog.types:
            one = catalog.types[name]
            if live is None or one.table not in tables or tables[one.table].oid == live.oid:
                found[name] = one
    return found


def evolve_shape(
    live: LiveTable, stored: Sequence[Shape], declared: DeclaredType | None
) -> Shape | None:
    """The revision that describes the table; None if only the application can tell.

    That is the case of a message that the application compiled itself, and that does not fit.
    `stored` are all revisions of the type. What the models say of excluded columns and aggregates
    counts as far as it fits the table; else what the log has, under the names of now. Raises
    `NotCapturableError` for a column that cannot be logged.
    """
    newest = stored[-1]
    if declared is not None and declared.model is not None:
        live = live.spell_types()
    if declared is not None and declared.message_class is not None:
        try:
            return resolve_shape(declared, live, stored=list(stored), type_name=newest.type_name)
        except (SchemaDriftError, ConfigurationError):
            return None
    if declared is None and not newest.message_name.startswith(f"{DERIVED}."):
        # The message of another application: nothing to say as long as it fits.
        return find_fitting(list_live_columns(live, newest.excluded), live, stored)
    names = follow_names(newest, live)
    present = {column.name for column in live.columns}
    excluded = {names[name]: why for name, why in newest.excluded.items() if name in names}
    if declared is not None:
        excluded = {name: why for name, why in declared.excluded.items() if name in present}
    columns = list_live_columns(live, excluded)
    logged = {column.name for column in columns}
    return derive_shape(
        newest.type_name,
        columns,
        schema=live.schema,
        table=live.name,
        aggregate=_find_template(live, newest, declared, logged=logged, names=names),
        excluded=excluded,
        stored=stored,
        numbers=live.numbers,
    )


def derive_first(
    live: LiveTable,
    declared: DeclaredType | None,
    *,
    type_name: str,
    stored: Sequence[Shape] = (),
) -> Shape | None:
    """The revision of a table that the log does not have; None if only the application can tell.

    `stored` are revisions of a type of this name whose table is gone. Raises `NotCapturableError`
    for a column that cannot be logged.
    """
    if declared is not None and declared.model is not None:
        live = live.spell_types()
    if declared is not None and declared.message_class is not None:
        try:
            return resolve_shape(declared, live, stored=list(stored), type_name=type_name)
        except (SchemaDriftError, ConfigurationError):
            return None
    present = {column.name for column in live.columns}
    excluded = {} if declared is None else dict(declared.excluded)
    excluded = {name: why for name, why in excluded.items() if name in present}
    columns = list_live_columns(live, excluded)
    logged = {column.name for column in columns}
    fits = declared is not None and set(declared.template.columns) <= logged
    return derive_shape(
        type_name,
        columns,
        schema=live.schema,
        table=live.name,
        aggregate=declared.template.text if declared and fits else name_each_row(live),
        excluded=excluded,
        stored=stored,
        numbers=live.numbers,
    )


def follow_names(newest: Shape, live: LiveTable) -> dict[str, str]:
    """What the columns of a revision are called now; a column that is gone is left out."""
    here = next(
        (n for n in newest.numbers if (n.database, n.table) == (live.database, live.oid)), None
    )
    called = {column.number: column.name for column in live.columns}
    if here is None:
        return {column.name: column.name for column in live.columns}
    return {name: called[number] for name, number in here.columns.items() if number in called}


def raise_revision(newest: Shape, live: LiveTable) -> Shape:
    """The same shape as a new revision: its rows were written anew by the database."""
    return replace(newest, revision=newest.revision + 1, numbers=(live.numbers,))


def _find_template(
    live: LiveTable,
    newest: Shape,
    declared: DeclaredType | None,
    *,
    logged: set[str],
    names: Mapping[str, str],
) -> str:
    """How rows are grouped: as declared, as logged, or each row by itself."""
    if declared is not None and set(declared.template.columns) <= logged:
        return declared.template.text
    kept = AggregateTemplate(newest.aggregate)
    if {names.get(name) for name in kept.columns} <= logged:
        return kept.rename(names).text
    return name_each_row(live)


def name_each_row(live: LiveTable) -> str:
    """The template by which each row is an aggregate of its own."""
    escaped = live.name.replace("{", "{{").replace("}", "}}")
    return f"{escaped}/" + "/".join(f"{{{name}}}" for name in live.key_names)
