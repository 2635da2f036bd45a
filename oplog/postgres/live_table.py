"""Reads from the catalog what a tracked table really has: columns, types, keys, triggers.

The model is not enough: a default, a trigger, a domain or a narrower type in the database decides
what is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import xor
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError, NotCapturableError, SchemaDriftError
from oplog.payload.column_numbers import Numbers
from oplog.postgres.quoting import quote
from oplog.postgres.table_form import (
    hash_column,
    hash_labels,
    hash_relations,
    hash_triggers,
    is_own_trigger,
)

REFUSED_SETTINGS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "standard_conforming_strings": (
            "off",
            "on",
            "a backslash in the text of the log's functions would mean something else",
        ),
        "array_nulls": (
            "off",
            "on",
            "a NULL inside an array parameter is stored as the word",
        ),
        "quote_all_identifiers": (
            "on",
            "off",
            "the server spells the same type in another way",
        ),
    }
)
"""Settings that change what the log's own SQL says: the value, the one to set, and why."""


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column as Postgres has it; `pg_type` is the base type of a domain."""

    name: str
    pg_type: str
    category: str
    generated: bool
    primary_key: bool
    not_null: bool
    has_default: bool
    """An insert that leaves the column out may store something other than NULL."""
    parts: tuple[str, ...] = ()
    """Types that values are made of: of elements, of fields, of bounds."""
    blind: bool = False
    """Its collation calls texts equal that differ."""
    cast_to_text: str = ""
    """A function of somebody's own that `::text` calls instead of the type's output."""
    number: int = 0
    """Its `attnum`, which a rename leaves as it is."""
    full_type: str = ""
    """`pg_type` with the schema of an enum, composite or range, whatever the search path is."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a type is made of: names of types, and hashes by oid of composite types and labels."""

    names: list[str]
    forms: dict[int, int]
    labels: dict[int, int]


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table as Postgres has it."""

    oid: int
    schema: str
    name: str
    kind: str
    columns: tuple[LiveColumn, ...]
    rewrites_rows: bool
    """A trigger or rule of the application's may change what a statement stores."""
    oddity: str | None = None
    """Why rows of this table cannot be told exactly, whatever writes them."""
    forms: Mapping[int, int] = field(default_factory=dict)
    """Hashes of its columns, and of those of composite types in it, by the oid of each."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Hashes of the labels of enum types in it, by the label's oid."""
    database: str = ""
    """The server's system identifier and the database's oid, with a slash between."""

    @property
    def numbers(self) -> Numbers:
        """Which table and which columns these are, whatever they are called."""
        columns = {column.name: column.number for column in self.columns}
        return Numbers(self.database, self.oid, columns)

    def spell_types(self) -> LiveTable:
        """The same with types that no search path spells otherwise, as tables of tenants need."""
        columns = tuple(replace(one, pg_type=one.full_type or one.pg_type) for one in self.columns)
        return replace(self, columns=columns)

    @property
    def qualified(self) -> str:
        """The quoted, schema-qualified name."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def key_names(self) -> tuple[str, ...]:
        """Columns of the primary key."""
        return tuple(c.name for c in self.columns if c.primary_key)


DATABASE_ID = """(SELECT pg_catalog.concat(i.system_identifier, '/', d.oid)
   FROM pg_catalog.pg_control_system() i, pg_catalog.pg_database d
   WHERE d.datname = pg_catalog.current_database())"""
_QUERY = f"""
WITH RECURSIVE wanted AS (
  SELECT n, CASE WHEN w.oid <> 0 THEN w.oid::oid ELSE pg_catalog.to_regclass(name)::oid END AS oid
  FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::bigint[]))
    WITH ORDINALITY AS w(name, oid, n)),
base AS (
  SELECT a.attrelid, a.attnum, a.atttypid AS typid, a.atttypmod AS typmod
  FROM pg_catalog.pg_attribute a
  -- Once, also where two names are of one table.
  WHERE a.attrelid IN (SELECT w.oid FROM wanted w) AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attrelid, b.attnum, t.typbasetype,
    CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE b.typmod END
  FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid WHERE t.typtype = 'd')
SELECT w.n, c.oid::bigint, s.nspname, c.relname, c.relkind::text,
  EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgenabled <> 'D' AND {is_own_trigger("g")}
          -- A partition may have triggers of its own.
          AND (g.tgrelid = c.oid OR c.relkind = 'p' AND g.tgrelid IN (
            SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p)))
  OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid),
  a.attname, pg_catalog.format_type(b.typid, b.typmod), t.typtype::text,
  a.attgenerated <> '', a.attnotnull,
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
          AND a.attnum = ANY (i.indkey::smallint[])),
  a.atthasdef OR a.attidentity <> '' OR own.typdefault IS NOT NULL,
  CASE WHEN c.relpersistence = 't' THEN 'a temporary table of that name is in the way'
    WHEN c.relkind = 'r' AND NOT c.relispartition AND EXISTS (
      SELECT FROM pg_catalog.pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))
    THEN 'it takes part in table inheritance, where a key may be there twice' END,
  CASE WHEN t.typelem <> 0::oid OR t.typtype <> 'b' THEN b.typid::bigint END,
  EXISTS (SELECT FROM pg_catalog.pg_collation k
    WHERE k.oid = a.attcollation AND NOT k.collisdeterministic),
  coalesce((SELECT k.castfunc::regprocedure::text FROM pg_catalog.pg_cast k
    WHERE k.castsource = b.typid AND k.casttarget = 'pg_catalog.text'::regtype
      AND k.castmethod = 'f' AND k.oid >= 16384
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend m WHERE m.objid = k.oid
        AND m.classid = 'pg_catalog.pg_cast'::regclass AND m.deptype = 'e')), ''),
  a.attnum,
  {hash_column("a")}, ({hash_triggers("c.oid")}),
  {DATABASE_ID},
  pg_catalog.concat(CASE WHEN e.typtype IN ('e', 'c', 'r', 'm')
      AND e.typnamespace <> 'pg_catalog'::regnamespace AND pg_catalog.pg_type_is_visible(e.oid)
    THEN pg_catalog.concat(e.typnamespace::regnamespace, '.') END,
    pg_catalog.format_type(b.typid, b.typmod))
FROM wanted w
JOIN pg_catalog.pg_class c ON c.oid = w.oid
JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type own ON own.oid = a.atttypid
JOIN base b ON b.attrelid = c.oid AND b.attnum = a.attnum
JOIN pg_catalog.pg_type t ON t.oid = b.typid AND t.typtype <> 'd'
JOIN pg_catalog.pg_type e ON e.oid = CASE t.typcategory WHEN 'A' THEN t.typelem ELSE t.oid END
ORDER BY w.n, a.attnum
"""

_PARTS = f"""
SELECT w.typid, found.made_of, found.label::bigint, found.relation::bigint, CASE found.kind
  WHEN 'c' THEN ({hash_relations("ARRAY[found.relation]")})
  WHEN 'e' THEN ({hash_labels("ARRAY[found.label]")}) END
FROM pg_catalog.unnest(%s::bigint[]) AS w(typid) CROSS JOIN LATERAL (
  WITH RECURSIVE part(oid) AS (
    SELECT w.typid::oid UNION SELECT inner_part.oid FROM part
    JOIN pg_catalog.pg_type p ON p.oid = part.oid CROSS JOIN LATERAL (
      SELECT p.typelem WHERE p.typelem <> 0::oid
      UNION ALL SELECT p.typbasetype WHERE p.typtype = 'd'
      UNION ALL SELECT e.atttypid FROM pg_catalog.pg_attribute e
        WHERE e.attrelid = p.typrelid AND e.attnum > 0 AND NOT e.attisdropped
      UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r
        WHERE p.oid IN (r.rngtypid, r.rngmultitypid)) inner_part(oid))
  SELECT l.oid AS label, t.typrelid AS relation, t.typtype AS kind,
    CASE WHEN t.oid <> w.typid::oid THEN pg_catalog.format_type(t.oid, NULL) END AS made_of
  FROM part JOIN pg_catalog.pg_type t ON t.oid = part.oid
  LEFT JOIN pg_catalog.pg_enum l ON l.enumtypid = t.oid) found
ORDER BY 1, 2
"""
"""What types are made of. Apart from the rest, which is planned in half the time without it."""


def check_settings(connection: Connection) -> None:
    """Raise `ConfigurationError` where a setting changes what the log's own SQL says."""
    found = connection.exec_driver_sql(
        "SELECT name, setting, pg_catalog.current_database()::text FROM pg_catalog.pg_settings "
        "WHERE name OPERATOR(pg_catalog.=) ANY(%s::text[])",
        (list(REFUSED_SETTINGS),),
    )
    for name, value, database in found:
        refused, wanted, why = REFUSED_SETTINGS[name]
        if value == refused:
            raise ConfigurationError(
                f"{name} is {value}: {why}",
                hint=f"ALTER DATABASE {quote(database)} SET {name} = {wanted}, or the same for "
                "the role that sets it",
            )


def read_live_tables(
    connection: Connection, tables: Iterable[sa.Table]
) -> Mapping[sa.Table, LiveTable]:
    """The live form of each table that exists, found by the connection's search path."""
    ordered = list(tables)
    names = [
        quote(table.name) if table.schema is None else f"{quote(table.schema)}.{quote(table.name)}"
        for table in ordered
    ]
    found = _read(connection, names, [0] * len(names))
    return {ordered[n]: table for n, table in found.items()}


def read_tables_by_oid(connection: Connection, oids: Iterable[int]) -> Mapping[int, LiveTable]:
    """The live form of each table that exists, by its oid."""
    ordered = list(oids)
    found = _read(connection, [""] * len(ordered), ordered)
    return {ordered[n]: table for n, table in found.items()}


def read_database_id(connection: Connection) -> str:
    """The server's system identifier and the database's oid, with a slash between."""
    return str(connection.exec_driver_sql(f"SELECT {DATABASE_ID}").scalar_one())


def _read(
    connection: Connection, names: Sequence[str], oids: Sequence[int]
) -> dict[int, LiveTable]:
    """Tables by their place among the oids and, where one is 0, the names.

    Not NULL: with `array_nulls` off it would be read as a name.
    """
    if not names:
        return {}
    found: dict[int, list[Any]] = {}
    made: set[int] = set()
    for row in connection.exec_driver_sql(_QUERY, (list(names), list(oids))):
        found.setdefault(row[0] - 1, []).append(row)
        if row[14] is not None:
            made.add(row[14])
    parts = _read_parts(connection, made)
    return {n: _build(rows, parts) for n, rows in found.items()}


def _read_parts(connection: Connection, types: Collection[int]) -> dict[int, _Parts]:
    """What each of these types is made of."""
    parts: dict[int, _Parts] = {}
    if types:
        for typid, name, label, relation, form in connection.exec_driver_sql(
            _PARTS, (sorted(types),)
        ):
            found = parts.setdefault(typid, _Parts([], {}, {}))
            if name is not None and name not in found.names:
                found.names.append(name)
            if form is not None:
                (found.forms if relation else found.labels)[relation or label] = form
    return parts


def require_live_table(live: Mapping[sa.Table, LiveTable], table: sa.Table) -> LiveTable:
    """The live form of `table`; `SchemaDriftError` if it is missing or misses its key."""
    found = live.get(table)
    if found is None:
        raise SchemaDriftError(
            f"table {table.fullname} is in the catalog and not in the database",
            hint="run the migrations, or list the table in untracked={...}",
        )
    if found.kind not in ("r", "p"):
        raise NotCapturableError(
            f"{table.fullname} is not a table in the database (relkind {found.kind!r})",
            hint='views and foreign tables are not logged; list it in untracked={...: "reason"}',
        )
    if found.oddity is not None:
        raise NotCapturableError(
            f"{table.fullname} cannot be logged: {found.oddity}",
            hint='give the table another name, or list it in untracked={...: "reason"}',
        )
    if set(found.key_names) != {c.name for c in table.primary_key}:
        raise SchemaDriftError(
            f"table {table.fullname} has primary key ({', '.join(found.key_names)}) in the "
            f"database and ({', '.join(c.name for c in table.primary_key)}) in the models",
            hint="bring the model and the table into agreement with a migration",
        )
    return found


def _build(rows: list[Any], parts: Mapping[int, _Parts]) -> LiveTable:
    _, oid, schema, name, kind, rewrites = rows[0][:6]
    columns = tuple(
        LiveColumn(
            name=row[6],
            pg_type=row[7],
            category="E" if row[8] == "e" else "",
            generated=row[9],
            primary_key=row[11],
            not_null=row[10],
            has_default=row[12],
            parts=() if row[14] is None else tuple(parts[row[14]].names),
            blind=row[15],
            cast_to_text=row[16],
            number=row[17],
            full_type=row[21],
        )
        for row in rows
    )
    forms, labels = (
        {oid: reduce(xor, (row[18] for row in rows), rows[0][19] or 0)},
        dict[int, int](),
    )
    for row in rows:
        if row[14] is not None:
            forms |= parts[row[14]].forms
            labels |= parts[row[14]].labels
    return LiveTable(
        oid=oid,
        schema=schema,
        name=name,
        kind=kind,
        columns=columns,
        rewrites_rows=rewrites,
        oddity=rows[0][13],
        forms=forms,
        labels=labels,
        database=rows[0][20],
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key, and the names of the table that has it and of the one it refers to."""

    constraint: str
    table: str
    parent: str


_REFERENCES = """
SELECT k.conname::text, pg_catalog.concat(n.nspname, '.', c.relname),
  pg_catalog.concat(m.nspname, '.', p.relname)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0::oid
  AND k.conrelid = ANY (%s::bigint[]::oid[]) AND k.confrelid <> ALL (%s::bigint[]::oid[])
ORDER BY 2, 1
"""


def list_outward_references(connection: Connection, oids: Iterable[int]) -> list[Reference]:
    """Foreign keys of these tables to tables that are not among them."""
    tables = list(oids)
    rows = connection.exec_driver_sql(_REFERENCES, (tables, tables))
    return [Reference(*row) for row in rows]
