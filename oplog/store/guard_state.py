"""Reads which guards stand on tables, and the images they kept.

Images are collected and removed in one statement, inside the writing transaction.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    quote,
    quote_for_driver,
)
from oplog.postgres.table_form import is_created_trigger
from oplog.postgres.text_settings import FIXED_SETTINGS
from oplog.schema.guard import GUARD_TRIGGERS


@dataclass(frozen=True, slots=True)
class Guard:
    """A table that is guarded."""

    oid: int
    cascades: bool
    """A change of its rows may, through foreign keys with actions, change others of its rows
    in the same statement: an announcement of one would be taken for the other."""
    log_schema: str = ""
    """The schema of the log whose owner reads back what was written, because the writer's role may
    not see it; empty where the role reads it itself."""


@dataclass(frozen=True, slots=True)
class Guards:
    """Everything a transaction has to know of the guards in its database."""

    tables: Mapping[int, Guard]
    """By the table's oid; only tables whose guard is whole and enabled."""
    deferred: Sequence[str]
    """Names of deferrable triggers of the application's own, quoted: what they write has to
    be known before the entries are built."""


@dataclass(slots=True)
class Image:
    """Rows that one statement touched unannounced, in part or whole.

    `operation` is I, U or D. `kept` names the columns of `old_rows` and `new_rows`, which are
    texts under the text settings. An update that left all kept columns as they were has no
    `old_rows`. `changed` are the columns that an update changed in any of the rows.
    """

    relation: int
    operation: str
    rows: int
    kept: Sequence[str]
    old_rows: Sequence[Sequence[str | None]] | None
    new_rows: Sequence[Sequence[str | None]] | None
    changed: Sequence[str]


class Collected(NamedTuple):
    """The images of a transaction, and the text settings that it had before."""

    images: Sequence[Image]
    settings: Sequence[str]


@dataclass(frozen=True, slots=True)
class ImageCount:
    """How many rows of one table this transaction's images are of; `operation` as in `Image`."""

    relation: int
    table: str
    operation: str
    rows: int


@dataclass(frozen=True, slots=True)
class DeclaredGuard:
    """What migrations said of a table."""

    schema: str
    table: str
    tracked: bool
    reason: str
    bypass_role: str | None


MANY_IMAGES = 1000
"""More images than these are joined, and their order is not kept. Only the order in which a reader
gets the rows depends on it."""

_GUARDED = """
SELECT g.tgrelid::bigint, c.relkind::text, count(*),
  (c.relrowsecurity OR NOT pg_catalog.has_table_privilege(c.oid, 'SELECT'))
  AND pg_catalog.bool_or(pg_catalog.has_function_privilege(r.oid, 'EXECUTE')
    AND pg_catalog.has_table_privilege(o.oid, c.oid, 'SELECT')
    AND pg_catalog.pg_has_role(c.relowner, o.oid, 'MEMBER')
    AND (NOT c.relrowsecurity OR o.rolsuper OR o.rolbypassrls
      OR NOT c.relforcerowsecurity AND pg_catalog.pg_has_role(o.oid, c.relowner, 'USAGE')))
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
LEFT JOIN pg_catalog.pg_proc r ON r.pronamespace = n.oid AND r.proname = 'oplog_read_written'
LEFT JOIN pg_catalog.pg_roles o ON o.oid = r.proowner
WHERE n.nspname = %s AND pg_catalog.starts_with(f.proname, 'oplog_guard')
  AND g.tgenabled = 'A' AND g.tgparentid = 0::oid
GROUP BY g.tgrelid, c.oid, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relowner"""

_CASCADING = """
WITH RECURSIVE action AS (
  SELECT DISTINCT confrelid AS parent, conrelid AS child FROM pg_catalog.pg_constraint
  WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))),
reach AS (
  SELECT parent, child FROM action
  UNION SELECT r.parent, a.child FROM reach r JOIN action a ON a.parent = r.child)
SELECT parent::bigint FROM reach WHERE parent = child"""

_DEFERRED = f"""
SELECT DISTINCT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(g.tgname)
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
WHERE g.tgdeferrable AND {is_created_trigger("g")} AND g.tgenabled <> 'D'
  AND NOT pg_catalog.starts_with(f.proname, 'oplog_guard')"""

_CHECKS = """
SELECT DISTINCT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(k.conname)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
JOIN pg_catalog.pg_trigger g ON g.tgconstraint = k.oid
JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
JOIN pg_catalog.pg_namespace o ON o.oid = f.pronamespace
WHERE k.contype = 't' AND g.tgdeferrable AND o.nspname = %s
  AND pg_catalog.starts_with(f.proname, 'oplog_guard') ORDER BY 1"""

_UNGUARDED = """
SELECT t.oid IS NOT NULL AND o.oid IS NOT NULL AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
  WHERE g.tgrelid = t.oid AND f.proname = 'oplog_guard_check'
    AND f.pronamespace = (SELECT p.pronamespace FROM pg_catalog.pg_proc p WHERE p.oid = o.oid))
FROM pg_catalog.to_regclass(%s) AS t(oid), pg_catalog.to_regprocedure(%s) AS o(oid)"""


def read_guards(connection: Connection, schema: str) -> Guards:
    """The guards of the log in `schema`."""
    rows = connection.exec_driver_sql(_GUARDED, (schema,)).fetchall()
    whole = {
        oid: schema if by_owner else ""
        for oid, kind, count, by_owner in rows
        if GUARD_TRIGGERS.get(kind, 0) <= count
    }
    if not whole:
        return Guards({}, ())
    cascading = set(connection.exec_driver_sql(_CASCADING).scalars())
    deferred = list(connection.exec_driver_sql(_DEFERRED).scalars())
    return Guards(
        {oid: Guard(oid, oid in cascading, read_in) for oid, read_in in whole.items()}, deferred
    )


def collect_images(connection: Connection, schema: str) -> Collected:
    """Take this transaction's images away, in the order they were kept.

    The same statement sets the text settings, because the rows are read next. Many images are
    joined to one for each kind: a statement that is executed once for each row leaves an image
    for each.
    """
    s = quote_for_driver(schema)
    rows = connection.exec_driver_sql(
        "SELECT s.before, g.relation::bigint, g.operation::text, g.rows, g.kept, g.old_rows, "
        f"g.new_rows, coalesce(g.changed, '{{}}') FROM ({FIXED_SETTINGS}) s "
        f"LEFT JOIN {s}.oplog_collect_images() g ON true ORDER BY g.id"
    )
    many = rows.rowcount > MANY_IMAGES
    iterator = iter(rows)
    first = next(iterator)
    images = (row[1:] for row in chain((first,), iterator) if row[1] is not None)
    # Without any image there is the row of the settings.
    joined = _join_images(images) if many else [Image(*image) for image in images]
    return Collected(joined, first[0])


def _join_images(rows: Iterable[Sequence[Any]]) -> list[Image]:
    """One image for all that differ in nothing but their rows."""
    joined: dict[Hashable, tuple[Image, list[Any], list[Any]]] = {}
    for row in rows:
        relation, operation, count, kept, old_rows, new_rows, changed = row
        kind = (relation, operation, *kept, None, *changed, old_rows is None, new_rows is None)
        found = joined.get(kind)
        if found is None:
            joined[kind] = Image(*row), old_rows or [], new_rows or []
            continue
        image, olds, news = found
        image.rows += count
        olds += old_rows or ()
        news += new_rows or ()
    return [image for image, _, _ in joined.values()]


def count_images(connection: Connection, schema: str) -> list[ImageCount]:
    """What this transaction's images are of, which stay where they are."""
    s = quote_for_driver(schema)
    rows = connection.exec_driver_sql(
        "SELECT relation::bigint, relation::regclass::text, operation::text, sum(rows)::bigint "
        f"FROM {s}.oplog_image WHERE transaction_id = pg_catalog.pg_current_xact_id_if_assigned() "
        "GROUP BY relation, operation ORDER BY 1, 3"
    )
    return [ImageCount(*row) for row in rows]


def list_declared_guards(connection: Connection, schema: str) -> list[DeclaredGuard]:
    """What `op.track_tables` and `op.untrack_tables` declared, by schema and table."""
    s = quote_for_driver(schema)
    rows = connection.exec_driver_sql(
        f"SELECT schema_name, table_name, tracked, reason, bypass_role FROM {s}.oplog_guard "
        "ORDER BY 1, 2"
    )
    return [DeclaredGuard(*row) for row in rows]


def is_armed(connection: Connection, prefix: str) -> bool:
    """Guards counted rows in this transaction, and their check has not run yet.

    A setting says it, so that a database without a log can be asked as well.
    """
    found: Any = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting(%s, true) "
        "= pg_catalog.pg_current_xact_id_if_assigned()::text",
        (f"{prefix}.armed",),
    ).scalar_one()
    return bool(found)


def list_deferred(connection: Connection, schema: str) -> list[str]:
    """Names of the application's deferrable triggers, quoted; none where nothing is guarded."""
    return list(read_guards(connection, schema).deferred)


def list_checks(connection: Connection, schema: str) -> list[str]:
    """Names of the constraints by which the log in `schema` looks at COMMIT, quoted."""
    return list(connection.exec_driver_sql(_CHECKS, (schema,)).scalars())


def lacks_guard(connection: Connection, schema: str, table: str) -> bool:
    """The table of this quoted name is there, and so is the log, and no guard of it stands there.

    By its check alone: whether the guard is whole is for the binding.
    """
    found: Any = connection.exec_driver_sql(
        _UNGUARDED, (table, f"{quote(schema)}.oplog_arm()")
    ).scalar()
    return bool(found)
