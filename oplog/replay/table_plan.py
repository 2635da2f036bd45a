"""Which tables the log rebuilds, and whether they still have the shape that it describes.

Reads the log's own types and the live tables, not the application's models, so that a log can be
verified without them. A column that only old revisions have is history; one that the newest
revision lacks was never logged, and is drift.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.errors import NotCapturableError, SchemaDriftError
from oplog.payload.shape import Column, Shape
from oplog.postgres.live_table import LiveColumn, LiveTable, read_live_tables
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.value import ValueCodec, codec_for


@dataclass(frozen=True, eq=False)
class TablePlan:
    """A live table with its types and columns in the log."""

    live: LiveTable
    types: tuple[str, ...]
    columns: tuple[Column, ...]
    """Logged columns, in the table's order."""
    excluded: frozenset[str]
    """Columns excluded from the log; NULL in a rebuilt table."""
    compared: tuple[str, ...]
    """Logged columns and those computed from logged ones alone."""
    fills: Mapping[str, str]
    """Values, as SQL, of columns in rows that were logged before the column was added."""
    domains: Mapping[str, str]
    """Base types of columns whose type is a domain, which may refuse NULL."""
    formulas: Mapping[str, str]
    """SQL of the computed columns, by the bare names of the others."""

    @property
    def name(self) -> str:
        """The live table as errors show it."""
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
        """The codec of each logged column's current type."""
        from_log = Shape(
            type_name="",
            revision=0,
            schema="",
            table="",
            columns=self.columns,
            aggregate="",
            message_name="",
            descriptor=b"",
        )
        return from_log.codecs

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
  t.typtype = 'd', pg_catalog.format_type(a.atttypid, a.atttypmod)
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
    connection: Connection, types: Iterable[Shape], *, retired: Collection[str] = ()
) -> list[TablePlan]:
    """Plans for the newest revisions of all types, by table name.

    The tables of `retired` types may be missing. `SchemaDriftError` names the table and the
    column where live table and log disagree. Text settings must be pinned: stored defaults are
    read as text.
    """
    grouped: dict[tuple[str, str], list[Shape]] = {}
    for shape in types:
        grouped.setdefault((shape.schema, shape.table), []).append(shape)
    metadata = sa.MetaData()
    wanted = {name: sa.Table(name[1], metadata, schema=name[0]) for name in sorted(grouped)}
    live = read_live_tables(connection, wanted.values())
    details = _read_details(connection, [table.oid for table in live.values()])
    plans = []
    for name, table in wanted.items():
        found = live.get(table)
        if found is None or found.kind not in ("r", "p"):
            missing = [s.type_name for s in grouped[name] if s.type_name not in retired]
            if not missing:
                continue
            raise SchemaDriftError(
                f"table {name[0]}.{name[1]} is in the log (type {missing[-1]!r}) and not in the "
                "database",
                hint="if a migration dropped, renamed or moved it, say so in a migration: "
                f"op.retire_type({missing[-1]!r}, reason=...); rows that go on under another "
                "name are logged with oplog adopt",
            )
        plans.append(_make_plan(found, grouped[name], details[found.oid]))
    return plans


def _read_details(connection: Connection, oids: list[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in connection.exec_driver_sql(_DETAILS, (oids,)):
        found.setdefault(row[0], {})[row[1]] = row
    return found


def _make_plan(live: LiveTable, shapes: list[Shape], details: dict[str, Any]) -> TablePlan:
    name = f"{live.schema}.{live.name}"
    excluded = frozenset(column for shape in shapes for column in shape.excluded)
    logged = {c.name: c for shape in shapes for c in shape.columns if c.name not in excluded}
    _check_drift(live, shapes, name=name, excluded=excluded)
    columns = tuple(
        logged[column.name]
        for column in live.columns
        if not column.generated and column.name in logged
    )
    computed = [
        column.name
        for column in live.columns
        if column.generated and not excluded & set(details[column.name][4])
    ]
    return TablePlan(
        live=live,
        types=tuple(shape.type_name for shape in shapes),
        columns=columns,
        excluded=excluded,
        compared=(*(column.name for column in columns), *computed),
        fills=_find_fills(columns, details),
        domains={column: row[6] for column, row in details.items() if row[5]},
        formulas={
            column.name: details[column.name][3] for column in live.columns if column.generated
        },
    )


def _check_drift(
    live: LiveTable, shapes: list[Shape], *, name: str, excluded: frozenset[str]
) -> None:
    by_name = {column.name: column for column in live.columns}
    for shape in shapes:
        if set(shape.key_names) != set(live.key_names):
            raise SchemaDriftError(
                f"{name} has primary key ({', '.join(live.key_names)}) in the database and "
                f"({', '.join(shape.key_names)}) in the log",
                hint="bring the table and the log's type into agreement with a migration",
            )
    # Of several types of one table only one is still written: a column that any of them lacks
    # may have been dropped since.
    for column in shapes[0].names:
        if column not in by_name and all(column in shape.by_name for shape in shapes):
            raise SchemaDriftError(
                f"column {name}.{column} is in the log (type {shapes[-1].type_name!r} revision "
                f"{shapes[-1].revision}) and not in the table",
                hint="if a migration dropped it, start the application once: its next logged "
                "transaction stores the new revision",
            )
    _check_kinds(live, shapes, name=name, excluded=excluded)
    known = {column for shape in shapes for column in shape.names}
    for found in live.columns:
        if found.generated or found.name in excluded or found.name in known:
            continue
        raise SchemaDriftError(
            f"column {name}.{found.name} is in the table and not in the log (type "
            f"{shapes[-1].type_name!r} revision {shapes[-1].revision})",
            hint="if a migration added it, start the application once: its next logged "
            "transaction stores the new revision",
        )


def _check_kinds(
    live: LiveTable, shapes: list[Shape], *, name: str, excluded: frozenset[str]
) -> None:
    """Raise `SchemaDriftError` for a column whose type has another `Kind` than the logged ones.

    Types of one kind, such as integer and bigint, read each other's values, or report the one
    that does not fit.
    """
    for found in live.columns:
        logged = [s.by_name[found.name] for s in shapes if found.name in s.by_name]
        if not logged or found.generated or found.name in excluded:
            continue
        try:
            kind = codec_for(found.pg_type, category=found.category).kind
        except NotCapturableError:
            kind = None
        if all(column.kind is not kind for column in logged):
            raise SchemaDriftError(
                f"column {name}.{found.name} is {found.pg_type} in the table and "
                f"{logged[-1].pg_type} in the log (type {shapes[-1].type_name!r} revision "
                f"{shapes[-1].revision})",
                hint="if a migration changed it, log its rows anew with the new model: "
                "oplog adopt --again",
            )


def _find_fills(columns: tuple[Column, ...], details: dict[str, Any]) -> dict[str, str]:
    fills = {}
    for column in columns:
        _, _, missing, default, _, _, type_name = details[column.name]
        if missing is not None:
            # What ALTER TABLE ADD COLUMN gave the rows of that time, whatever the default
            # has become since.
            fills[column.name] = f"{quote_literal_safely(missing)}::{type_name}"
        elif default is not None and _LITERAL.fullmatch(default):
            fills[column.name] = default
    return fills


def quote_literal_safely(text: str) -> str:
    """A string literal that means the same under any standard_conforming_strings."""
    return "E" + quote_literal(text.replace("\\", "\\\\"))


def list_quoted(names: Iterable[str], *, prefix: str = "") -> str:
    """Column names as an SQL list."""
    return ", ".join(prefix + quote(name) for name in names)
