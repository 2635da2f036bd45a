"""Reads from the catalog who has more rights on a log than its definition gives.

Also what writes past its guards. Any role may read all of it, so that an application can ask about
itself. `oplog.doctor.access` judges the facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    double_percent,
)
from oplog.postgres.table_form import is_created_trigger
from oplog.schema.expected import list_log_functions, list_log_tables
from oplog.schema.guard import make_prefix
from oplog.schema.locks import CLAIM_INDEX
from oplog.schema.rights import CALLED_BY_EVERYBODY, select_excess
from oplog.schema.tables import ENTRY_INDEX, IDEMPOTENCY_INDEX, RECORD_ID_INDEX


@dataclass(frozen=True, slots=True)
class Excess:
    """Privileges of a role beyond the definition, and the statement that revokes them.

    `name` is the object's.
    """

    name: str
    role: str
    privileges: str
    statement: str


@dataclass(frozen=True, slots=True)
class WideRole:
    """A role that reaches the log without a privilege on any of its objects.

    `role` is its name, `right` what it has, `statement` what revokes it.
    """

    role: str
    right: str
    statement: str


@dataclass(frozen=True, slots=True)
class StrayTrigger:
    """A trigger that calls a function of the log and is not part of a guard."""

    name: str
    table: str
    """Quoted, with its schema."""
    temporary: bool
    function: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A table that a logical replication subscription writes."""

    table: str
    subscription: str
    """Quoted."""
    enabled: bool
    guarded: bool
    of_log: bool
    """It is one of the log's own tables."""


@dataclass(frozen=True, slots=True)
class ForeignTable:
    """A logged table, or a partition of one, whose owner does not have the log owner's rights.

    `statement` gives it to the owner of the log.
    """

    table: str
    role: str
    statement: str


@dataclass(frozen=True)
class Access:
    """What differs from the log's definition, and what writes past its guards."""

    excess: Sequence[Excess] = ()
    wide: Sequence[WideRole] = ()
    closed: Sequence[str] = ()
    """Functions that each writer of a guarded table calls, and that PUBLIC may not execute."""
    strays: Sequence[StrayTrigger] = ()
    subscribed: Sequence[Subscribed] = ()
    foreign: Sequence[ForeignTable] = ()
    missing_indexes: Sequence[str] = ()
    """Names of unique indexes that an append relies on, and that do not exist."""


SCHEMA_CREATE = "CREATE"
"""A privilege on the log's schema."""
PREDEFINED = ("pg_write_all_data", "pg_maintain")
"""Roles of PostgreSQL whose members write, or lock, every table."""
_WIDE = """
WITH log AS (SELECT n.oid, n.nspname, n.nspacl, n.nspowner, c.relowner
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'oplog_log'
  WHERE n.nspname = %(schema)s),
wide AS (
  SELECT x.grantee AS oid, x.privilege_type AS right, pg_catalog.concat('REVOKE CREATE ON SCHEMA ',
    pg_catalog.quote_ident(log.nspname), ' FROM ') AS revoke
  FROM log CROSS JOIN LATERAL pg_catalog.aclexplode(
    coalesce(log.nspacl, pg_catalog.acldefault('n', log.nspowner))) x
  WHERE x.privilege_type = 'CREATE' AND x.grantee <> log.nspowner
  UNION SELECT m.member, g.rolname, pg_catalog.concat('REVOKE ', g.rolname, ' FROM ')
  FROM log, pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
  WHERE g.rolname = ANY (%(predefined)s::text[]))
SELECT coalesce(r.rolname::text, 'PUBLIC'), w.right,
  pg_catalog.concat(w.revoke, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC'))
FROM wide w CROSS JOIN log LEFT JOIN pg_catalog.pg_roles r ON r.oid = w.oid
WHERE r.oid IS NULL OR NOT r.rolsuper AND NOT pg_catalog.pg_has_role(r.oid, log.relowner, 'MEMBER')
ORDER BY 1, 2"""

_CLOSED = """SELECT p.proname::text FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %s AND p.proname = ANY (%s::text[]) AND NOT EXISTS (
  SELECT FROM pg_catalog.aclexplode(
    coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) x
  WHERE x.grantee = 0::oid AND x.privilege_type = 'EXECUTE')
ORDER BY 1"""

_GUARDING = f"""
SELECT g.oid, g.tgrelid, g.tgname, g.tgparentid, g.tgenabled, f.proname,
  c.relname, c.relpersistence, c.relkind, s.nspname
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND {is_created_trigger("g")} AND f.proname <> 'oplog_guard_image'
  AND pg_catalog.starts_with(f.proname::text, 'oplog_guard')"""

_STRAYS = f"""
SELECT pg_catalog.quote_ident(g.tgname),
  pg_catalog.quote_ident(g.nspname) || '.' || pg_catalog.quote_ident(g.relname),
  g.relpersistence = 't', g.proname::text
FROM ({_GUARDING}) g
WHERE g.tgparentid = 0::oid AND (g.relpersistence = 't'
  OR (g.tgname::text, g.proname::text) NOT IN (
  SELECT %(prefix)s || known.event, known.function FROM (VALUES
    ('insert', 'oplog_guard'), ('update', 'oplog_guard'), ('delete', 'oplog_guard'),
    ('row', 'oplog_guard_row'), ('armed', 'oplog_guard_check'),
    ('truncate', 'oplog_guard_truncate')) AS known(event, function)))
ORDER BY 2, 1"""

_SUBSCRIBED = f"""
WITH guarding AS ({_GUARDING})
SELECT DISTINCT g.nspname || '.' || g.relname, pg_catalog.quote_ident(s.subname), s.subenabled,
  true, false
FROM guarding g
JOIN pg_catalog.pg_subscription_rel r ON r.srrelid IN (g.tgrelid,
  pg_catalog.pg_partition_root(g.tgrelid))
JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
UNION ALL
SELECT n.nspname || '.' || c.relname, pg_catalog.quote_ident(s.subname), s.subenabled,
  false, n.nspname = %(schema)s
FROM pg_catalog.pg_subscription_rel r
JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
JOIN pg_catalog.pg_class c ON c.oid = r.srrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT EXISTS (SELECT FROM guarding g
  WHERE r.srrelid IN (g.tgrelid, pg_catalog.pg_partition_root(g.tgrelid)))
ORDER BY 1, 2"""

_FOREIGN = """
SELECT DISTINCT pg_catalog.concat(n.nspname, '.', c.relname), r.rolname::text,
  pg_catalog.concat('ALTER TABLE ', pg_catalog.quote_ident(n.nspname), '.',
    pg_catalog.quote_ident(c.relname), ' OWNER TO ', pg_catalog.quote_ident(o.rolname))
FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(tables)s::text[]))
  AS t(schema_name, table_name)
JOIN pg_catalog.pg_namespace s ON s.nspname = t.schema_name
JOIN pg_catalog.pg_class whole ON whole.relnamespace = s.oid AND whole.relname = t.table_name
  AND whole.relkind IN ('r', 'p')
CROSS JOIN LATERAL (SELECT whole.oid AS relid
  UNION SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(whole.oid) p) part
JOIN pg_catalog.pg_class c ON c.oid = part.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
JOIN pg_catalog.pg_namespace l ON l.nspname = %(schema)s
JOIN pg_catalog.pg_class log ON log.relnamespace = l.oid AND log.relname = 'oplog_log'
JOIN pg_catalog.pg_roles o ON o.oid = log.relowner
WHERE NOT pg_catalog.pg_has_role(r.oid, o.oid, 'MEMBER') ORDER BY 1"""

_UNIQUE = (
    (RECORD_ID_INDEX, "oplog_outcome"),
    (IDEMPOTENCY_INDEX, "oplog_outcome"),
    (ENTRY_INDEX, "oplog_entry"),
    (CLAIM_INDEX, "oplog_claim"),
)
_MISSING = """
SELECT w.name FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[]))
  AS w(name, parent)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace AND n.oid = c.relnamespace
  WHERE n.nspname = %s AND x.relname = w.name AND c.relname = w.parent
    AND i.indisunique AND i.indisvalid)
ORDER BY 1"""


def read_access(
    connection: Connection, schema: str, *, logged: Sequence[tuple[str, str]]
) -> Access:
    """Read the facts of the log in `schema`, which must exist.

    `logged` are schema and name of each table that the log has types for.
    """
    names = [*list_log_tables(schema), *list_log_functions(schema)]
    # Written as a literal, for DDL; here a percent sign would be taken for a parameter.
    excess = double_percent(select_excess(schema, objects=names))
    open_to_all = [f"oplog_{name}" for name in CALLED_BY_EVERYBODY]
    about = {"schema": schema, "prefix": f"{make_prefix(schema)}_guard_"}
    tables = {
        "schema": schema,
        "schemas": [place for place, _ in logged],
        "tables": [name for _, name in logged],
    }
    reach = {"schema": schema, "predefined": list(PREDEFINED)}
    return Access(
        excess=[Excess(*row) for row in connection.exec_driver_sql(excess)],
        wide=[WideRole(*row) for row in connection.exec_driver_sql(_WIDE, reach)],
        closed=list(connection.exec_driver_sql(_CLOSED, (schema, open_to_all)).scalars()),
        strays=[StrayTrigger(*row) for row in connection.exec_driver_sql(_STRAYS, about)],
        subscribed=[Subscribed(*row) for row in connection.exec_driver_sql(_SUBSCRIBED, about)],
        foreign=[ForeignTable(*row) for row in connection.exec_driver_sql(_FOREIGN, tables)],
        missing_indexes=_list_missing_indexes(connection, schema),
    )


def _list_missing_indexes(connection: Connection, schema: str) -> list[str]:
    names, tables = zip(*_UNIQUE, strict=True)
    rows = connection.exec_driver_sql(_MISSING, (list(names), list(tables), schema))
    return list(rows.scalars())
