"""Guards against TRUNCATE for partitions that were made after their table was tracked.

PostgreSQL gives a new partition the row triggers of its table, and no statement triggers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.postgres.quoting import double_percent, quote, quote_for_driver
from oplog.postgres.sqlstate import may_run_again
from oplog.schema.guard import make_prefix

LOCK_MILLISECONDS = 500
"""How long a partition is waited for: writers who come meanwhile wait behind."""


class UnguardedPartition(NamedTuple):
    """A partition without the trigger: its qualified and quoted name, its plain one."""

    qualified: str
    name: str
    may_guard: bool
    """Whether this role may create the trigger."""


@dataclass(frozen=True, slots=True)
class GuardedPartitions:
    """Partitions that have the trigger since now, and those that still have not."""

    guarded: tuple[str, ...] = ()
    unguarded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Names of both, as JSON lists."""
        return {"guarded": list(self.guarded), "unguarded": list(self.unguarded)}


NONE_MADE_LATER = GuardedPartitions()


def guard_partitions(connection: Connection, schema: str) -> GuardedPartitions:
    """Give partitions of tracked tables the trigger against TRUNCATE that they lack.

    In the connection's transaction, which keeps their writers waiting until it ends. One that
    belongs to another role, or is in use, stays as it is.
    """
    guarded: list[str] = []
    unguarded: list[str] = []
    for one in list_unguarded(connection, schema):
        done = one.may_guard and _guard(connection, schema, one)
        (guarded if done else unguarded).append(one.name)
    return GuardedPartitions(tuple(guarded), tuple(unguarded))


def list_unguarded(connection: Connection, schema: str) -> list[UnguardedPartition]:
    """Partitions, at any depth, of tracked tables that are guarded against TRUNCATE themselves."""
    rows = connection.exec_driver_sql(
        "SELECT pg_catalog.concat(pg_catalog.quote_ident(n.nspname), '.', "
        "pg_catalog.quote_ident(c.relname)), pg_catalog.concat(n.nspname, '.', c.relname), "
        "pg_catalog.pg_has_role(c.relowner, 'USAGE') "
        "AND pg_catalog.has_function_privilege(g.tgfoid, 'EXECUTE') "
        "FROM pg_catalog.pg_trigger g "
        "JOIN pg_catalog.pg_class root ON root.oid = g.tgrelid AND root.relkind = 'p' "
        "AND NOT root.relispartition "
        "CROSS JOIN LATERAL pg_catalog.pg_partition_tree(root.oid) t "
        "JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind IN ('r', 'p') "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE g.tgfoid = pg_catalog.to_regprocedure(%s) AND g.tgname = %s "
        "AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger o "
        "WHERE o.tgrelid = c.oid AND o.tgname = g.tgname) ORDER BY n.nspname, c.relname",
        (f"{quote(schema)}.oplog_guard_truncate()", _name_trigger(schema)),
    )
    return [UnguardedPartition(*row) for row in rows]


def _guard(connection: Connection, schema: str, partition: UnguardedPartition) -> bool:
    table, trigger = double_percent(partition.qualified), _name_trigger(schema)
    limit = connection.exec_driver_sql("SELECT pg_catalog.current_setting('lock_timeout')").scalar()
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout TO {LOCK_MILLISECONDS}")
            connection.exec_driver_sql(
                f"CREATE TRIGGER {trigger} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION {quote_for_driver(schema)}.oplog_guard_truncate()"
            )
            # ALWAYS: session_replication_role = replica would switch ordinary triggers off.
            connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")
            connection.exec_driver_sql(
                "SELECT pg_catalog.set_config('lock_timeout', %s, true)", (limit,)
            )
    except DBAPIError as error:
        if not may_run_again(error):
            raise
        return False
    return True


def _name_trigger(schema: str) -> str:
    return f"{make_prefix(schema)}_guard_truncate"
