"""What the log rebuilds: tables, the revisions of types that they have the columns of, and values.

Reads the log's own types and the live tables, not the application's models, so that a log can be
verified without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy.engine import Connection

from oplog.payload.shape import Column
from oplog.postgres.live_table import LiveColumn, LiveTable
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.replay.domain_columns import DomainColumn, DomainColumns, choose_columns
from oplog.replay.type_target import TypeTarget
from oplog.value import ValueCodec, codec_for


@dataclass(frozen=True, eq=False)
class TablePlan:
    """A table with its types and columns in the log."""

    live: LiveTable
    targets: Mapping[str, TypeTarget]
    """By type, the revision as which its rows are read."""
    columns: tuple[Column, ...]
    """Logged columns, in the table's order."""
    excluded: frozenset[str]
    """Columns excluded from the log; NULL in a rebuilt table."""
    compared: tuple[str, ...]
    """Logged columns and those computed from logged ones alone."""
    fills: Mapping[str, str]
    """Values, as SQL, of columns in rows that were logged before the column was added."""
    domains: DomainColumns
    """Columns whose type is a domain, which may refuse rows of then, and those made of them."""
    formulas: Mapping[str, str]
    """SQL of the computed columns, by the bare names of the others."""
    arrays: Mapping[str, str] = field(default_factory=dict)
    """Columns that are arrays of a domain, and the type of such an array of what is below it."""
    unproved: frozenset[str] = frozenset()
    """Columns with constraints that are NOT VALID: rows may break them."""
    stored: bool = False
    """Whether `live` is no table of the database, but made from a stored revision."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types whose rows the table has."""
        return tuple(self.targets)

    @property
    def name(self) -> str:
        """The table as errors show it."""
        return f"{self.live.schema}.{self.live.name}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The logged columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return self.live.key_names

    @cached_property
    def codecs(self) -> Mapping[str, ValueCodec]:
        """The codec of each logged column's type."""
        return {c.name: codec_for(c.pg_type, category=c.category) for c in self.columns}

    @cached_property
    def late(self) -> frozenset[str]:
        """Columns that older rows get from the log after the rows themselves."""
        return frozenset(name for one in self.targets.values() for name in one.list_late())

    def name_type(self, name: str) -> str:
        """The type of a column below its domain, as SQL."""
        return self.arrays.get(name) or self.live_columns[name].pg_type

    @cached_property
    def live_columns(self) -> Mapping[str, LiveColumn]:
        """All of the table's columns by name."""
        return {column.name: column for column in self.live.columns}


_DETAILS = """
SELECT a.attrelid::bigint, a.attname,
  CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END,
  pg_catalog.pg_get_expr(d.adbin, d.adrelid),
  ARRAY(SELECT b.attname::text FROM pg_catalog.pg_depend p
    JOIN pg_catalog.pg_attribute b ON b.attrelid = p.refobjid AND b.attnum = p.refobjsubid
    WHERE p.classid = 'pg_catalog.pg_attrdef'::regclass AND p.objid = d.oid
      AND p.refclassid = 'pg_catalog.pg_class'::regclass AND p.refobjid = a.attrelid
      AND b.attnum <> a.attnum),
  CASE WHEN t.typtype <> 'd' THEN (WITH RECURSIVE below(oid, modifier) AS (
      SELECT e.typbasetype, e.typtypmod FROM pg_catalog.pg_type e
        WHERE e.oid = t.typelem AND e.typtype = 'd'
      UNION ALL SELECT u.typbasetype, CASE WHEN u.typtypmod >= 0 THEN u.typtypmod
        ELSE below.modifier END FROM below JOIN pg_catalog.pg_type u
        ON u.oid = below.oid WHERE u.typtype = 'd')
    SELECT pg_catalog.concat(pg_catalog.format_type(below.oid, below.modifier), '[]')
    FROM below JOIN pg_catalog.pg_type u ON u.oid = below.oid WHERE u.typtype <> 'd') END,
  t.typtype = 'd', pg_catalog.format_type(a.atttypid, a.atttypmod),
  (SELECT pg_catalog.concat(' COLLATE ', pg_catalog.quote_ident(n.nspname), '.',
      pg_catalog.quote_ident(c.collname))
    FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
    WHERE c.oid = a.attcollation),
  EXISTS (WITH RECURSIVE below(oid) AS (
      SELECT t.oid UNION SELECT CASE WHEN u.typtype = 'd' THEN u.typbasetype ELSE u.typelem END
        FROM below JOIN pg_catalog.pg_type u ON u.oid = below.oid
        WHERE u.typtype = 'd' OR u.typelem <> 0::oid)
    SELECT FROM pg_catalog.pg_constraint k JOIN below ON below.oid = k.contypid
    WHERE NOT k.convalidated)
  OR EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = a.attrelid
    AND k.contype = 'n' AND k.conkey[1] = a.attnum AND NOT k.convalidated)
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY(%s::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""

# Only a literal default is the same for every row. Anything with a name in it could be now(), a
# random value, or nextval() of the live table's sequence.
_LITERAL = re.compile(
    r"\(?(?:-?[0-9.]+|true|false|E?'(?:[^']|'')*')\)?(?:::[\w\s\".\[\](),]+)?", re.IGNORECASE
)


def read_plans(
    connection: Connection, placed: Iterable[tuple[LiveTable, TypeTarget]]
) -> list[TablePlan]:
    """Plans for live tables, each with the revision of a type that it has the columns of.

    Text settings must be pinned: stored defaults are read as text.
    """
    tables: dict[int, LiveTable] = {}
    targets: dict[int, list[TypeTarget]] = {}
    for live, target in placed:
        tables[live.oid] = live
        targets.setdefault(live.oid, []).append(target)
    details = _read_details(connection, list(tables))
    plans = [_make_plan(tables[oid], targets[oid], details[oid]) for oid in tables]
    return sorted(plans, key=lambda plan: plan.name)


def _read_details(connection: Connection, oids: list[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in connection.exec_driver_sql(_DETAILS, (oids,)):
        found.setdefault(row[0], {})[row[1]] = row
    return found


def _make_plan(
    live: LiveTable, targets: Sequence[TypeTarget], details: dict[str, Any]
) -> TablePlan:
    shapes = [target.shape for target in targets]
    logged = {column.name: column for shape in shapes for column in shape.columns}
    excluded = frozenset(
        name for shape in shapes for name in shape.excluded if name not in shapes[-1].by_name
    )
    columns = tuple(
        logged[column.name]
        for column in live.columns
        if not column.generated and column.name in logged and column.name not in excluded
    )
    hidden = {column.name for column in live.columns if not column.generated} - {
        column.name for column in columns
    }
    computed = [
        column.name
        for column in live.columns
        if column.generated and not hidden & set(details[column.name][4])
    ]
    return TablePlan(
        live=live,
        targets={target.shape.type_name: target for target in targets},
        columns=columns,
        excluded=excluded,
        compared=(*(column.name for column in columns), *computed),
        fills=_find_fills(columns, live, targets, details),
        domains=choose_columns(_describe_type(c, details[c.name]) for c in live.columns),
        formulas={
            column.name: details[column.name][3] for column in live.columns if column.generated
        },
        arrays={name: row[5] for name, row in details.items() if row[5]},
        unproved=frozenset(name for name, row in details.items() if row[9]),
    )


def _describe_type(column: LiveColumn, row: Sequence[Any]) -> DomainColumn:
    _, name, _, expression, uses, array, is_domain, own, collation, _ = row
    base = column.pg_type if is_domain else array or own
    suffix = collation or ""
    if not column.generated:
        return DomainColumn(name, f"{base}{suffix}", f"{own}{suffix}")
    return DomainColumn(
        name, f"{base}{suffix}", f"{own}{suffix}", formula=expression, uses=frozenset(uses)
    )


def make_stored_plan(
    target: TypeTarget, *, spelled: Mapping[int, str], schema: str, table: str
) -> TablePlan:
    """The plan of a table that the database does not have, from the revision alone.

    `spelled` are types of its columns by field number; any other column is made as text.
    """
    shape = target.shape
    columns = tuple(
        LiveColumn(
            name=column.name,
            pg_type=spelled.get(column.number, "text"),
            category=column.category,
            generated=False,
            primary_key=column.primary_key,
            not_null=column.primary_key,
            has_default=False,
            number=number,
        )
        for number, column in enumerate(shape.columns, 1)
    )
    live = LiveTable(0, schema, table, kind="r", columns=columns, rewrites_rows=False)
    fills = {
        name: _state_fill(text, live_column.pg_type)
        for live_column in columns
        for name, text in target.find_fills().items()
        if name == live_column.name and text is not None
    }
    return TablePlan(
        live=live,
        targets={shape.type_name: target},
        columns=shape.columns,
        excluded=frozenset(),
        compared=shape.names,
        fills=fills,
        domains={},
        formulas={},
        stored=True,
    )


def _find_fills(
    columns: tuple[Column, ...],
    live: LiveTable,
    targets: Sequence[TypeTarget],
    details: dict[str, Any],
) -> dict[str, str]:
    # Of a domain what is below it: it may have been narrowed since.
    types = {column.name: details[column.name][5] or column.pg_type for column in live.columns}
    known: dict[str, str | None] = {}
    for target in targets:
        known |= dict(target.find_fills()) | dict.fromkeys(target.list_late())
    fills = {}
    for column in columns:
        _, _, missing, default = details[column.name][:4]
        if column.name in known:
            text = known[column.name]
            if text is not None:
                fills[column.name] = _state_fill(text, types[column.name])
        elif missing is not None:
            # Nothing is noted of the column: what ALTER TABLE ADD COLUMN gave the rows of that
            # time, whatever the default has become since.
            fills[column.name] = _state_fill(missing, types[column.name])
        elif default is not None and _LITERAL.fullmatch(default):
            fills[column.name] = default
    return fills


def _state_fill(text: str, type_name: str) -> str:
    return f"{quote_literal_safely(text)}::{type_name}"


def quote_literal_safely(text: str) -> str:
    """A string literal that means the same under any standard_conforming_strings."""
    return "E" + quote_literal(text.replace("\\", "\\\\"))


def list_quoted(names: Iterable[str], *, prefix: str = "") -> str:
    """Column names as an SQL list."""
    return ", ".join(prefix + quote(name) for name in names)
