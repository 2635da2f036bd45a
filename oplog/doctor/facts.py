"""Reads everything that a diagnosis has to know of a database, in one go.

Writes nothing, so that it runs on a standby. Tables that are missing or may not be read are facts,
not errors. `oplog.doctor.checks` judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.doctor.access_facts import Access, read_access
from oplog.doctor.activity import Activity, read_activity
from oplog.doctor.inspection import list_functions, list_triggers
from oplog.payload.shape import Shape
from oplog.postgres.live_table import REFUSED_SETTINGS, LiveTable, read_live_tables
from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.schema.expected import FoundTrigger, FunctionForm, list_log_tables
from oplog.schema.guard import FORMAT_MARK, make_prefix
from oplog.schema.locks import LOCK_TABLES
from oplog.schema.mark_names import BYPASS_AGGREGATE
from oplog.schema.tables import (
    VERSION,
)
from oplog.store.guard_state import DeclaredGuard, list_declared_guards
from oplog.store.home import Homing, read_homing
from oplog.store.housekeeping import list_row_checks
from oplog.store.logged_keys import LoggedKey, list_logged_keys
from oplog.store.partition_store import list_partition_names
from oplog.store.records import Store
from oplog.store.removal import PruningStore, Watermark
from oplog.store.version import read_comment, says_restoring

WATCHED_SETTINGS = (
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "idle_in_transaction_session_timeout",
    "session_replication_role",
    "tcp_keepalives_idle",
    "server_encoding",
    *REFUSED_SETTINGS,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A table or partition and the guard triggers on it. `qualified` is its quoted name."""

    oid: int
    schema: str
    table: str
    qualified: str
    triggers: Mapping[str, FoundTrigger]

    @property
    def name(self) -> str:
        """Schema and table, for people."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class GuardedTree:
    """A table with its partitions; the root comes first."""

    oid: int
    kind: str
    parts: Sequence[Part]

    @property
    def root(self) -> Part:
        """The table that migrations track: of a partitioned one, the root."""
        return self.parts[0]


@dataclass(frozen=True, slots=True)
class Bypasses:
    """The number of bypassed transactions, and the mark of the last one."""

    count: int
    recorded_at: datetime
    reason: str
    role: str
    changes: str


@dataclass(frozen=True, slots=True)
class OwnedObject:
    """The owner of the log's schema, or of one of its tables or functions."""

    kind: str
    """schema, table or function."""
    name: str
    owner: str
    superuser: bool


@dataclass(frozen=True)
class LogFacts:
    """What the log's schema contains; empty where it cannot or may not be read."""

    usable: bool = True
    """Whether the role has USAGE on the schema."""
    version: int | None = None
    restoring: bool = False
    homing: Homing | None = None
    missing_tables: Sequence[str] = ()
    unreadable_tables: Sequence[str] = ()
    partitions: Sequence[str] = ()
    """Names of the partitions of the log's tables."""
    triggers: Mapping[str, Mapping[str, FoundTrigger]] = field(default_factory=dict)
    functions: Mapping[str, list[FunctionForm]] = field(default_factory=dict)
    row_checks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """CHECK constraints by table and name."""
    owned: Sequence[OwnedObject] = ()
    declared: Sequence[DeclaredGuard] = ()
    shapes: Sequence[Shape] = ()
    keys: Sequence[LoggedKey] = ()
    """Oldest first."""
    bypasses: Bypasses | None = None
    images_left: Mapping[str, int] = field(default_factory=dict)
    """Touched rows that ended transactions left in `oplog_image`, by table."""
    pruned: Watermark | None = None
    access: Access = field(default_factory=Access)

    @property
    def readable(self) -> bool:
        """Whether the log's types and records can be read."""
        lacking = {*self.missing_tables, *self.unreadable_tables}
        needed = {"oplog_type", "oplog_type_numbers", "oplog_entry", "oplog_record"}
        return self.usable and self.version == VERSION and not lacking & needed


@dataclass(frozen=True)
class Facts:
    """All facts that `judge` needs of a database."""

    role: str
    superuser: bool
    standby: bool
    over_tcp: bool
    database: str
    settings: Mapping[str, str]
    """The connection's settings, durations in their base unit."""
    role_settings: Sequence[tuple[str, str, str]]
    """Settings of other roles: role, setting, value."""
    log: LogFacts
    live: Mapping[sa.Table, LiveTable]
    trees: Sequence[GuardedTree]
    """Guarded tables, and those of the catalog."""
    activity: Activity
    """Other sessions' open transactions."""


def read_facts(connection: Connection, store: Store, *, tables: Iterable[sa.Table]) -> Facts:
    """All facts about the log of `store` and about the catalog's `tables`.

    Several statements: in a transaction that is not REPEATABLE READ they may see changes
    that others make meanwhile.
    """
    server = connection.exec_driver_sql(
        "SELECT current_user::text, r.rolsuper, pg_catalog.pg_is_in_recovery(), "
        "pg_catalog.inet_client_addr() IS NOT NULL, pg_catalog.current_database()::text "
        "FROM pg_catalog.pg_roles r WHERE r.rolname = current_user"
    ).one()
    live = read_live_tables(connection, tables)
    log = _read_log(connection, store, standby=server[2])
    role, superuser, standby, over_tcp, database = server
    return Facts(
        role=role,
        superuser=superuser,
        standby=standby,
        over_tcp=over_tcp,
        database=database,
        settings=_read_settings(connection),
        role_settings=_list_role_settings(connection),
        log=log,
        live=live,
        trees=_list_trees(connection, store.schema, oids=[table.oid for table in live.values()]),
        activity=read_activity(connection),
    )


# -- the log ----------------------------------------------------------------------------------


def _read_log(connection: Connection, store: Store, *, standby: bool) -> LogFacts:
    schema = store.schema
    usable = connection.exec_driver_sql(
        "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') FROM pg_catalog.pg_namespace n "
        "WHERE n.nspname = %s",
        (schema,),
    ).scalar()
    if not usable:
        return LogFacts(usable=usable is None)
    rows = connection.exec_driver_sql(
        "SELECT c.relname::text, pg_catalog.has_table_privilege(c.oid, 'SELECT') "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relkind IN ('r', 'p')",
        (schema,),
    )
    readable: dict[str, bool] = {row[0]: row[1] for row in rows}
    names = list_log_tables(schema)

    def can_read(*suffixes: str) -> bool:
        return all(readable.get(f"oplog_{suffix}", False) for suffix in suffixes)

    version = store.read_version(connection)
    shapes = store.list_types(connection) if can_read("type", "type_numbers") else ()
    return LogFacts(
        version=version,
        restoring=says_restoring(read_comment(connection, schema)),
        homing=read_homing(connection, schema),
        missing_tables=[name for name in names if name not in readable],
        unreadable_tables=[
            name for name in names if not readable.get(name, True) and name not in LOCK_TABLES
        ],
        partitions=list_partition_names(connection, schema),
        triggers=list_triggers(connection, schema),
        functions=list_functions(connection, schema),
        row_checks=list_row_checks(connection, schema),
        owned=_list_owned(connection, schema),
        declared=list_declared_guards(connection, schema) if can_read("guard") else (),
        shapes=shapes,
        keys=list_logged_keys(connection, schema) if can_read("key") else (),
        bypasses=_read_bypasses(connection, schema) if can_read("entry", "record") else None,
        pruned=PruningStore(schema).read_watermark(connection) if can_read("pruned") else None,
        access=Access()
        if version is None
        else read_access(connection, schema, logged=[(s.schema, s.table) for s in shapes]),
        # An unlogged table cannot be read on a standby.
        images_left=_read_images(connection, schema) if can_read("image") and not standby else {},
    )


def _list_owned(connection: Connection, schema: str) -> list[OwnedObject]:
    rows = connection.exec_driver_sql(
        """WITH log AS (SELECT oid, nspowner FROM pg_catalog.pg_namespace WHERE nspname = %s),
owned AS (
  SELECT 'schema' AS kind, %s::text AS name, nspowner AS owner FROM log
  UNION ALL SELECT 'table', c.relname::text, c.relowner
  FROM pg_catalog.pg_class c JOIN log ON log.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND pg_catalog.starts_with(c.relname::text, 'oplog_')
  UNION ALL SELECT 'function', p.proname::text, p.proowner
  FROM pg_catalog.pg_proc p JOIN log ON log.oid = p.pronamespace
  WHERE pg_catalog.starts_with(p.proname::text, 'oplog_'))
SELECT o.kind, o.name, r.rolname::text, r.rolsuper
FROM owned o JOIN pg_catalog.pg_roles owner ON owner.oid = o.owner
-- The schema public belongs to a role that stands for the database's owner.
JOIN pg_catalog.pg_roles r ON r.oid = CASE owner.rolname WHEN 'pg_database_owner' THEN
  (SELECT d.datdba FROM pg_catalog.pg_database d
   WHERE d.datname = pg_catalog.current_database()) ELSE owner.oid END
ORDER BY 1, 2""",
        (schema, schema),
    )
    return [OwnedObject(*row) for row in rows]


def _read_bypasses(connection: Connection, schema: str) -> Bypasses | None:
    s = quote_for_driver(schema)
    row = connection.exec_driver_sql(
        f"SELECT e.version, r.created_at, r.metadata FROM {s}.oplog_entry e "
        f"JOIN {s}.oplog_record r ON r.position = e.position WHERE e.aggregate_name = %s "
        # Another record may have an aggregate of this name.
        f"AND r.format = {FORMAT_MARK} ORDER BY e.version DESC LIMIT 1",
        (BYPASS_AGGREGATE,),
    ).one_or_none()
    if row is None:
        return None
    count, recorded_at, flat = row
    metadata = dict(zip(flat[::2], flat[1::2], strict=True))
    texts = [metadata.get(f"oplog.{key}", "") for key in ("bypass", "role", "changes")]
    return Bypasses(count, recorded_at, *texts)


def _read_images(connection: Connection, schema: str) -> dict[str, int]:
    s = quote_for_driver(schema)
    # Rows of other open transactions are not visible.
    rows = connection.exec_driver_sql(
        f"SELECT relation::regclass::text, sum(rows)::bigint FROM {s}.oplog_image "
        "WHERE transaction_id IS DISTINCT FROM pg_catalog.pg_current_xact_id_if_assigned() "
        "GROUP BY relation ORDER BY 1"
    )
    return {row[0]: row[1] for row in rows}


# -- the application's tables -------------------------------------------------------------------

_TREES = """
WITH root AS (
  SELECT coalesce(pg_catalog.pg_partition_root(r.oid), r.oid)::oid AS oid
  FROM (SELECT pg_catalog.unnest(%(oids)s::bigint[])::oid AS oid
    UNION SELECT g.tgrelid FROM pg_catalog.pg_trigger g
    JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid AND c.relpersistence <> 't'
    WHERE pg_catalog.starts_with(g.tgname::text, %(prefix)s) OR (n.nspname = %(schema)s
      AND pg_catalog.starts_with(f.proname::text, 'oplog_guard_')
      AND f.proname <> 'oplog_guard_image')) r),
member AS (
  SELECT oid AS root, oid FROM root
  UNION SELECT r.oid, t.relid::oid FROM root r, pg_catalog.pg_partition_tree(r.oid) t
  WHERE t.relid IS NOT NULL)
SELECT m.root::bigint, k.relkind::text, m.oid::bigint, n.nspname::text, c.relname::text,
  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
  g.tgname::text, g.tgenabled::text, pg_catalog.pg_get_triggerdef(g.oid), f.proname::text
FROM member m
JOIN pg_catalog.pg_class k ON k.oid = m.root
JOIN pg_catalog.pg_class c ON c.oid = m.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN (pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid)
  ON g.tgrelid = m.oid AND pg_catalog.starts_with(g.tgname::text, %(prefix)s)
ORDER BY m.root, m.oid <> m.root, 4, 5
"""


def _list_trees(connection: Connection, schema: str, *, oids: Sequence[int]) -> list[GuardedTree]:
    prefix = f"{make_prefix(schema)}_guard_"
    parts: dict[tuple[int, str], dict[int, tuple[Any, dict[str, FoundTrigger]]]] = {}
    for row in connection.exec_driver_sql(
        _TREES, {"oids": list(oids), "prefix": prefix, "schema": schema}
    ):
        tree = parts.setdefault((row[0], row[1]), {})
        _, triggers = tree.setdefault(row[2], (row, {}))
        if row[6] is not None:
            triggers[row[6]] = FoundTrigger(row[4], *row[6:])
    return [
        GuardedTree(
            root,
            kind,
            [
                Part(oid=oid, schema=row[3], table=row[4], qualified=row[5], triggers=triggers)
                for oid, (row, triggers) in tree.items()
            ],
        )
        for (root, kind), tree in parts.items()
    ]


# -- settings -----------------------------------------------------------------------------------


def _read_settings(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql(
        "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY(%s::text[])",
        (list(WATCHED_SETTINGS),),
    )
    return {row[0]: row[1] for row in rows}


def _list_role_settings(connection: Connection) -> list[tuple[str, str, str]]:
    """Settings that ALTER ROLE ... SET gives to other roles in this database."""
    rows = connection.exec_driver_sql(
        """SELECT r.rolname::text, pg_catalog.split_part(p.pair, '=', 1),
  pg_catalog.substr(p.pair, pg_catalog.strpos(p.pair, '=') + 1)
FROM pg_catalog.pg_db_role_setting s
JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS p(pair)
WHERE r.rolname <> session_user AND s.setdatabase IN (0, (
  SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database()))
  AND pg_catalog.split_part(p.pair, '=', 1) = ANY(%s::text[])
ORDER BY 1, 2""",
        (list(WATCHED_SETTINGS),),
    )
    return [(row[0], row[1], row[2]) for row in rows]
