"""Finds the live tables of a log's types: by oid where this database has had them, else by name.

A table that was renamed or moved is the same, and so are its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.payload.column_numbers import Numbers
from oplog.payload.lineage import list_line
from oplog.payload.shape import Column, Shape
from oplog.postgres.live_table import (
    LiveColumn,
    LiveTable,
    read_database_id,
    read_live_tables,
    read_tables_by_oid,
)

Name = tuple[str, str]
"""Schema and table."""
Labels = Mapping[tuple[int, str], frozenset[str]]
"""The labels of an enum, by the oid of a table and the name of its column."""


@dataclass(frozen=True, slots=True)
class Place:
    """The table of a type in this database; `live` is None if there is none.

    `dropped`: this database has had another table of the type, which is gone. `noted` is the
    newest revision that was noted here of the table that is there.
    """

    live: LiveTable | None
    dropped: bool = False
    noted: Shape | None = None


def find_places(
    connection: Connection, revisions: Mapping[str, Sequence[Shape]]
) -> Mapping[str, Place]:
    """The place of each type, whose `revisions` rise."""
    database = read_database_id(connection)
    here = {name: _find_noted(shapes, database) for name, shapes in revisions.items()}
    by_oid = {
        oid: table
        for oid, table in read_tables_by_oid(
            connection, {known[1].table for known in here.values() if known is not None}
        ).items()
        if table.kind in ("r", "p")
    }
    named = {
        name: (shapes[-1].schema, shapes[-1].table)
        for name, shapes in revisions.items()
        for known in [here[name]]
        if known is None or known[1].table not in by_oid
    }
    by_name = read_named_tables(connection, named.values())
    places = {}
    for name, known in here.items():
        if known is not None and known[1].table in by_oid:
            places[name] = Place(by_oid[known[1].table], noted=known[0])
        else:
            live = by_name.get(named[name])
            if known is not None and live is not None and live.oid in by_oid:
                # The table of another type, which was renamed.
                live = None
            places[name] = Place(live, dropped=known is not None)
    return places


def read_named_tables(connection: Connection, names: Iterable[Name]) -> Mapping[Name, LiveTable]:
    """Tables by schema and name; those that are none, or not there, are left out."""
    metadata = sa.MetaData()
    tables = {
        (schema, table): sa.Table(table, metadata, schema=schema)
        for schema, table in sorted(set(names))
    }
    live = read_live_tables(connection, tables.values())
    return {
        name: live[table]
        for name, table in tables.items()
        if table in live and live[table].kind in ("r", "p")
    }


def fits(
    shape: Shape, live: LiveTable, shapes: Sequence[Shape], *, others: Iterable[str] = ()
) -> bool:
    """Whether the table has exactly the columns of the revision, and its key.

    `shapes` are all revisions of the type. A column of another number is another one, where the
    database tells. Excluded and computed columns do not matter, nor do those of `others`.
    """
    aside = {name for known in shapes for name in known.excluded} | set(others)
    stored = [column for column in live.columns if not column.generated]
    by_name = {column.name: column for column in stored}
    placed = list_placed(live, shapes)
    return (
        set(shape.key_names) == set(live.key_names)
        and all(
            name in by_name and _is_column(column, by_name[name], placed)
            for name, column in shape.by_name.items()
        )
        and all(one.name in shape.by_name or one.name in aside for one in stored)
    )


def read_labels(connection: Connection, oids: Iterable[int]) -> Labels:
    """The labels of all enum columns of tables."""
    rows = connection.exec_driver_sql(
        "SELECT a.attrelid::bigint, a.attname::text, pg_catalog.array_agg(e.enumlabel::text) "
        "FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_enum e ON e.enumtypid = a.atttypid "
        "WHERE a.attrelid = ANY (%s::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped "
        "GROUP BY 1, 2",
        (list(oids),),
    )
    return {(oid, name): frozenset(found) for oid, name, found in rows}


def has_labels(shape: Shape, live: LiveTable, shapes: Sequence[Shape], labels: Labels) -> bool:
    """Whether enums of the table have the labels of the revision, as far as any was renamed."""
    for column in shape.columns:
        there = labels.get((live.oid, column.name))
        if there is not None and not _list_labels(shape, column.number, shapes) <= there:
            return False
    return True


def _list_labels(shape: Shape, number: int, shapes: Sequence[Shape]) -> set[str]:
    """Labels that an enum has at a revision: what was renamed to before, and from after it."""
    found: set[str] = set()
    for one in list_line(shapes, shape):
        renamed = one.change.labels.get(number, {})
        found = (found - set(renamed)) | set(renamed.values())
    since: set[str] = set()
    for one in shapes:
        if one.revision > shape.revision:
            renamed = one.change.labels.get(number, {})
            found |= set(renamed) - since
            since |= set(renamed.values())
    return found


def list_placed(live: LiveTable, shapes: Iterable[Shape]) -> Mapping[int, Sequence[Column]]:
    """The columns of all revisions by their numbers in the catalog, as far as they are known."""
    placed: dict[int, list[Column]] = {}
    for shape in shapes:
        for numbers in shape.numbers:
            if (numbers.database, numbers.table) == (live.database, live.oid):
                for column in shape.columns:
                    if column.name in numbers.columns:
                        placed.setdefault(numbers.columns[column.name], []).append(column)
    return placed


def is_same_type(one: str, other: str) -> bool:
    """Whether two spellings mean one type: the search path decides whether a schema is spelled."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _is_column(column: Column, live: LiveColumn, placed: Mapping[int, Sequence[Column]]) -> bool:
    if not is_same_type(column.pg_type, live.pg_type):
        return False
    if live.number in placed:
        known = placed[live.number]
        # A conversion gives the same column another number.
        return any(one.number == column.number for one in known) or all(
            one.kind is not column.kind for one in known
        )
    return all(one.number != column.number for found in placed.values() for one in found)


def _find_noted(shapes: Sequence[Shape], database: str) -> tuple[Shape, Numbers] | None:
    for shape in reversed(shapes):
        for numbers in reversed(shape.numbers):
            if numbers.database == database:
                return shape, numbers
    return None
