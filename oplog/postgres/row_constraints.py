"""Foreign keys and unique indexes of tables: what orders the writes of several rows.

A constraint that a partitioned table gives its partitions is that of the partitioned table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.postgres.live_table import LiveColumn, LiveTable
from oplog.postgres.quoting import double_percent, quote


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of table `child`, by oid; columns of the two sides stand in one order.

    `nullable` are the columns of the child that may be NULL. `deferrable` says that it may be
    checked at COMMIT; `acts`, that the database does something to rows whose parent goes or
    changes, at once; `follows`, that it changes them with their parent.
    """

    name: str
    child: int
    child_table: str
    child_columns: tuple[str, ...]
    child_keys: tuple[str, ...]
    parent: int
    parent_table: str
    parent_columns: tuple[str, ...]
    nullable: frozenset[str]
    deferrable: bool
    acts: bool
    follows: bool
    qualified: str
    """The constraint's name as `SET CONSTRAINTS` takes it."""


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique index, or the constraint that it belongs to.

    `plain` is False for one over expressions or of some rows, whose values its columns do not tell.
    """

    name: str
    table: int
    columns: tuple[str, ...]
    nullable: frozenset[str]
    plain: bool
    deferrable: bool
    qualified: str
    keys: tuple[str, ...] = ()
    """The expressions that are unique, as SQL."""
    predicate: str = "true"
    """Which rows the index has, as SQL."""


@dataclass(frozen=True, slots=True)
class RowConstraints:
    """The constraints that concern some tables."""

    foreign_keys: tuple[ForeignKey, ...]
    unique: tuple[UniqueIndex, ...]


_ROOT = "coalesce(pg_catalog.pg_partition_root({}), {})"
_NAME = (
    "pg_catalog.concat(pg_catalog.quote_ident({n}.nspname), '.', "
    "pg_catalog.quote_ident({c}.relname))"
)


def _list_names(relation: str, numbers: str, *, condition: str = "true") -> str:
    return (
        "ARRAY(SELECT a.attname::text FROM pg_catalog.unnest("
        f"{numbers}) WITH ORDINALITY AS u(number, n) JOIN pg_catalog.pg_attribute a "
        f"ON a.attrelid = {relation} AND a.attnum = u.number WHERE {condition} ORDER BY u.n)"
    )


_KEYS = (
    "ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i "
    "JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid "
    "AND a.attnum = ANY (i.indkey::smallint[]) "
    "WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY a.attnum)"
)

_FOREIGN_KEYS = f"""
SELECT k.conname::text, {_ROOT.format("k.conrelid", "k.conrelid")}::oid::bigint,
  {_NAME.format(n="n", c="c")}, {_list_names("k.conrelid", "k.conkey")}, {_KEYS},
  {_ROOT.format("k.confrelid", "k.confrelid")}::oid::bigint,
  {_NAME.format(n="m", c="p")}, {_list_names("k.confrelid", "k.confkey")},
  {_list_names("k.conrelid", "k.conkey", condition="NOT a.attnotnull")},
  k.condeferrable, k.confdeltype <> 'a' OR k.confupdtype <> 'a', k.confupdtype = 'c',
  pg_catalog.concat(pg_catalog.quote_ident(n.nspname), '.', pg_catalog.quote_ident(k.conname))
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0::oid AND (
  {_ROOT.format("k.conrelid", "k.conrelid")}::oid = ANY (%s::bigint[]::oid[])
  OR {_ROOT.format("k.confrelid", "k.confrelid")}::oid = ANY (%s::bigint[]::oid[]))
ORDER BY 3, 1
"""

_UNIQUE = f"""
SELECT x.relname::text, i.indrelid::bigint,
  CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL
    THEN {_list_names("i.indrelid", "(i.indkey::smallint[])[0:i.indnkeyatts - 1]")}
    ELSE ARRAY(SELECT DISTINCT a.attname::text FROM pg_catalog.pg_depend d
      JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid) END,
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND NOT a.attnotnull),
  i.indexprs IS NULL AND i.indpred IS NULL, coalesce(k.condeferrable, false),
  pg_catalog.concat(pg_catalog.quote_ident(n.nspname), '.', pg_catalog.quote_ident(k.conname)),
  ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, g.key, true)
    FROM pg_catalog.generate_series(1, i.indnkeyatts::integer) AS g(key) ORDER BY g.key),
  coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid, true), 'true')
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
  AND k.contype IN ('p', 'u')
WHERE i.indisunique AND i.indrelid = ANY (%s::bigint[]::oid[])
ORDER BY i.indrelid, x.relname
"""


def read_row_constraints(connection: Connection, oids: Iterable[int]) -> RowConstraints:
    """Foreign keys from and to these tables, from tables that are not logged too; unique ones."""
    tables = sorted(oids)
    keys = [
        ForeignKey(
            name=row[0],
            child=row[1],
            child_table=row[2],
            child_columns=tuple(row[3]),
            child_keys=tuple(row[4]),
            parent=row[5],
            parent_table=row[6],
            parent_columns=tuple(row[7]),
            nullable=frozenset(row[8]),
            deferrable=row[9],
            acts=row[10],
            follows=row[11],
            qualified=row[12],
        )
        for row in connection.exec_driver_sql(_FOREIGN_KEYS, (tables, tables))
    ]
    unique = [
        UniqueIndex(
            name=row[0],
            table=row[1],
            columns=tuple(row[2]),
            nullable=frozenset(row[3]) & frozenset(row[2]),
            plain=row[4],
            deferrable=row[5],
            qualified=row[6],
            keys=tuple(row[7]),
            predicate=row[8],
        )
        for row in connection.exec_driver_sql(_UNIQUE, (tables,))
    ]
    return RowConstraints(tuple(keys), tuple(unique))


def find_present(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    *,
    values: Collection[tuple[str, ...]],
    shown: Sequence[str],
    types: Sequence[str],
) -> list[tuple[tuple[str, ...], tuple[str | None, ...]]]:
    """Rows of a qualified table that have one of these values in the columns, all as text.

    `columns` and `shown`, which is given of each row, are quoted; `types` are those of the columns.
    """
    if not values:
        return []
    by_column = [list(texts) for texts in zip(*values, strict=True)]
    given = ", ".join(["pg_catalog.unnest(%s::text[])"] * len(columns))
    aliases = ", ".join(f"v{n}" for n in range(len(columns)))
    joined = " AND ".join(
        f"t.{column}::{kind} = g.v{n}::{kind}"
        for n, (column, kind) in enumerate(zip(columns, types, strict=True))
    )
    selected = ", ".join(f"t.{name}::text" for name in shown)
    rows = connection.exec_driver_sql(
        double_percent(f"SELECT {aliases}, {selected or 'NULL'} FROM {table} t JOIN ROWS FROM (")
        + f"{given}) AS g({aliases}) ON {double_percent(joined)}",
        tuple(by_column),
    ).fetchall()
    width = len(columns)
    return [(tuple(row[:width]), tuple(row[width:])) for row in rows]


def compute_keys(
    connection: Connection,
    index: UniqueIndex,
    columns: Sequence[LiveColumn],
    *,
    rows: Sequence[Sequence[str | None]],
) -> list[tuple[str, ...] | None]:
    """What each of these rows has in the index, as text; None for a row that it does not restrict.

    `rows` have texts of the columns, which are those that the index is made of.
    """
    arrays = ", ".join(["pg_catalog.unnest(%s::text[])"] * len(columns))
    aliases = ", ".join(f"c{n}" for n in range(len(columns)))
    typed = ", ".join(
        f"g.c{n}::{spell_type(column)} AS {quote(column.name)}" for n, column in enumerate(columns)
    )
    keys = ", ".join(f"({key})::text" for key in index.keys)
    found = connection.exec_driver_sql(
        double_percent(f'SELECT t."oplog row", {keys} FROM (SELECT g."oplog row", {typed} FROM ')
        + f'ROWS FROM ({arrays}) WITH ORDINALITY AS g({aliases}, "oplog row")'
        + double_percent(f") t WHERE {index.predicate}"),
        tuple([list(texts) for texts in zip(*rows, strict=True)]),
    ).fetchall()
    by_row = {row[0]: None if None in row[1:] else tuple(row[1:]) for row in found}
    return [by_row.get(n) for n in range(1, len(rows) + 1)]


def read_keyed(
    connection: Connection,
    table: LiveTable,
    *,
    columns: Sequence[str],
    keys: Sequence[Sequence[str | None]],
    lock: bool,
) -> list[tuple[int, tuple[str | None, ...]]]:
    """Columns, as text, of rows with these primary keys, each with the number of its key from 0.

    `keys` has a list of texts for each column of the key. With `lock` the rows are locked, in the
    order of the keys.
    """
    arrays = ", ".join("pg_catalog.unnest(%s::text[])" for _ in keys)
    aliases = ", ".join(f"k{n}" for n in range(len(keys)))
    by_name = {column.name: column for column in table.columns}
    joined = " AND ".join(
        _match(by_name[name], f"k.k{n}") for n, name in enumerate(table.key_names)
    )
    selected = ", ".join(f"t.{quote(name)}::text" for name in columns)
    rows = connection.exec_driver_sql(
        f"SELECT k.n, {double_percent(selected)} FROM "
        f"ROWS FROM ({arrays}) WITH ORDINALITY AS k({aliases}, n) "
        f"JOIN {double_percent(table.qualified)} t ON {double_percent(joined)} ORDER BY k.n"
        + (" FOR UPDATE OF t" if lock else ""),
        tuple(keys),
    ).fetchall()
    return [(row[0] - 1, tuple(row[1:])) for row in rows]


def _match(column: LiveColumn, given: str) -> str:
    # A domain over an enum has no operators of its own.
    cast = f"::{spell_type(column)}" if column.category == "E" else ""
    return f"t.{quote(column.name)}{cast} = {given}::{spell_type(column)}"


def spell_type(column: LiveColumn) -> str:
    """The column's type as SQL names it under any search path."""
    return column.full_type or column.pg_type


def find_spare_number(connection: Connection, table: str, column: str) -> int:
    """A whole number above all of a column's; both names are quoted."""
    statement = f"SELECT pg_catalog.trunc(coalesce(max({column}), 0)) + 1 FROM {table}"
    return int(connection.exec_driver_sql(double_percent(statement)).scalar_one())
