"""What the server's catalog says about tables: columns, keys, references, checks.

Read with SQL of its own, so that it can judge what the log reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

Rows = Counter[tuple[str | None, ...]]
COLUMNS = """
SELECT c.relname, a.attnum, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
    CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod)
        ELSE pg_catalog.format_type(a.atttypid, a.atttypmod) END,
    a.attnotnull, a.attidentity <> '' OR coalesce(
        pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%%', false),
    a.attgenerated <> '', d.adbin IS NOT NULL,
    ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum AS e
        WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder), c.oid::bigint
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relkind IN ('r', 'p')
    AND NOT c.relispartition
ORDER BY c.relname, a.attnum
"""
CONSTRAINTS = """
SELECT c.relname, o.contype::text, o.conkey, f.relname, o.confkey,
    pg_catalog.pg_get_constraintdef(o.oid)
FROM pg_catalog.pg_constraint AS o
JOIN pg_catalog.pg_class AS c ON c.oid = o.conrelid
LEFT JOIN pg_catalog.pg_class AS f ON f.oid = o.confrelid
WHERE c.relnamespace = pg_catalog.to_regnamespace(%s)
ORDER BY c.relname, o.conname
"""
LITERAL = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True)
class Column:
    """A column. `type_name` is what a value is cast to, `base` the type without a domain."""

    number: int
    name: str
    type_name: str
    base: str
    required: bool
    """NOT NULL."""
    numbered: bool
    """The server draws the value from a sequence."""
    generated: bool
    has_default: bool
    labels: tuple[str, ...] = ()
    """Of an enum; of a text column those that its checks name."""


@dataclass(frozen=True)
class Reference:
    """A foreign key."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass
class Table:
    """A table of the application."""

    name: str
    oid: int
    columns: dict[str, Column] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    references: list[Reference] = field(default_factory=list)


def quote(name: str) -> str:
    """The name as an identifier, in a statement that the driver reads for placeholders."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def read_tables(
    connection: Connection, *, schema: str = "public", without: Iterable[str] = ()
) -> dict[str, Table]:
    """All tables of a schema by name, except those of `without`."""
    tables: dict[str, Table] = {}
    numbered: dict[str, dict[int, str]] = {}
    for row in connection.exec_driver_sql(COLUMNS, (schema,)):
        name, number, column, type_name, base, required, drawn, generated, default, labels, oid = (
            row
        )
        table = tables.setdefault(name, Table(name, oid))
        numbered.setdefault(name, {})[number] = column
        table.columns[column] = Column(
            number, column, type_name, base, required, drawn, generated, default, tuple(labels)
        )
    for name, kind, own, parent, theirs, text in connection.exec_driver_sql(CONSTRAINTS, (schema,)):
        if name not in tables:
            continue
        columns = tuple(numbered[name][one] for one in own or ())
        if kind == "p":
            tables[name].key = columns
        elif kind == "f" and parent in tables:
            others = tuple(numbered[parent][one] for one in theirs)
            tables[name].references.append(Reference(columns, parent, others))
        elif kind == "c" and len(columns) == 1:
            _note_labels(tables[name], columns[0], text)
    for name in without:
        tables.pop(name, None)
    return tables


def _note_labels(table: Table, column: str, check: str) -> None:
    found = tuple(one.replace("''", "'") for one in LITERAL.findall(check))
    old = table.columns[column]
    if found and not old.labels:
        table.columns[column] = Column(**{**old.__dict__, "labels": found})


def sort_by_reference(tables: Mapping[str, Table]) -> list[Table]:
    """Parents before their children, as far as there is no circle."""
    done: list[Table] = []
    left = dict(sorted(tables.items()))
    while left:
        ready = [
            one
            for one in left.values()
            if not any(r.parent in left and r.parent != one.name for r in one.references)
        ] or [min(left.values(), key=lambda one: len(one.references))]
        done += ready
        for one in ready:
            del left[one.name]
    return done


def read_rows(
    connection: Connection, table: str, columns: Sequence[str], *, schema: str = "public"
) -> Rows:
    """Each row's columns as text, and how often there is such a row."""
    listed = ", ".join(f"{quote(one)}::text" for one in columns) or "1"
    found = connection.exec_driver_sql(f"SELECT {listed} FROM {quote(schema)}.{quote(table)}")
    return Counter(tuple(row) for row in found)


@dataclass(frozen=True)
class Content:
    """The rows of one table at one moment."""

    table: Table
    columns: tuple[str, ...]
    rows: Rows


def read_content(
    connection: Connection,
    tables: Mapping[str, Table],
    *,
    schema: str = "public",
    generated: bool = True,
) -> dict[str, Content]:
    """The rows of all tables; columns by name, those that the server computes only if wanted."""
    content = {}
    for name, table in tables.items():
        columns = tuple(
            sorted(one.name for one in table.columns.values() if generated or not one.generated)
        )
        content[name] = Content(table, columns, read_rows(connection, name, columns, schema=schema))
    return content


def compare_content(expected: Mapping[str, Content], found: Mapping[str, Content]) -> list[str]:
    """What differs, one line for each table."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    for name in sorted(expected.keys() & found.keys()):
        left, right = expected[name], found[name]
        if left.columns != right.columns:
            lines.append(f"{name} has columns {_differ(left.columns, right.columns)}")
        elif left.rows != right.rows:
            lines.append(f"{name}: {describe_rows(left, right)}")
    return lines


def _differ(left: Sequence[str], right: Sequence[str]) -> str:
    gone, more = sorted(set(left) - set(right)), sorted(set(right) - set(left))
    return ", ".join([f"-{one}" for one in gone] + [f"+{one}" for one in more])


def describe_rows(left: Content, right: Content) -> str:
    """How many rows differ, and one of them on each side."""
    gone, more = left.rows - right.rows, right.rows - left.rows
    text = f"{gone.total()} rows missing, {more.total()} rows more"
    for word, rows in (("expected", gone), ("found", more)):
        if rows:
            row = dict(zip(left.columns, next(iter(rows)), strict=True))
            text += f"; {word} {str(row)[:300]}"
    return text
