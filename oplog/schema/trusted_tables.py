"""Which tables functions of the log may read with the rights of its owner, as DDL.

Who reads a table runs what its owner chose: functions in policies, and those that the planner
computes in advance for indexes, constraints and statistics. A role may bring a table of its own, by
registering a type for it. So the log's owner reads only tables of roles that have its rights
anyway, and learns of others what their files say.
"""

from __future__ import annotations

from oplog.schema.guard_origin import UNGUARDED

PINNED = "SET search_path = pg_catalog, pg_temp"
TRUST_FUNCTIONS = ("is_filled(oid)", "may_read(oid)")
"""Functions to drop, without the prefix of their names."""


def create_trust_statements(s: str) -> list[str]:
    """The functions, in the quoted schema `s`."""
    return [_may_read(s), _is_filled(s)]


def refuse_foreign_table(s: str, table: str) -> str:
    """PL/pgSQL that raises if the log's owner may not read the table."""
    return f"""IF NOT {s}.oplog_may_read({table}) THEN
    RAISE EXCEPTION USING errcode = '{UNGUARDED}',
      message = concat('oplog: the owner of the log does not read ', {table}::regclass,
        ': its owner, or that of a partition, could run functions as the owner of the log'),
      hint = 'let the role that owns the log own the tables that it guards, or a member of it';
  END IF;"""


def _list_tree(table: str) -> str:
    return (
        f"(SELECT {table} AS relid UNION SELECT t.relid FROM pg_partition_tree({table}) t) r "
        "JOIN pg_class c ON c.oid = r.relid"
    )


def _may_read(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_may_read(p_table oid) RETURNS boolean
LANGUAGE sql STABLE {PINNED} AS $oplog_fn$
-- Whether the table and its partitions belong to roles that have this role's rights.
SELECT NOT EXISTS (SELECT FROM {_list_tree("p_table")}
  WHERE NOT pg_has_role(c.relowner, current_user, 'MEMBER'))
$oplog_fn$"""


def _is_filled(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_is_filled(p_table oid) RETURNS boolean
LANGUAGE plpgsql STABLE {PINNED} AS $oplog_fn$
-- Whether the table has rows. One that may not be read, or not all rows of it, has some if it has
-- a file that is not empty: rows that are gone may have left one. A view, or a table of another
-- server, is taken to have some.
DECLARE
  v_filled boolean;
BEGIN
  IF {s}.oplog_may_read(p_table) AND has_table_privilege(p_table, 'SELECT')
    AND NOT row_security_active(p_table) THEN
    EXECUTE concat('SELECT EXISTS (SELECT FROM ', p_table::regclass, ')') INTO v_filled;
  ELSE
    SELECT bool_or(c.relkind NOT IN ('r', 'p') OR c.relkind = 'r' AND pg_relation_size(c.oid) > 0)
      INTO v_filled FROM {_list_tree("p_table")};
  END IF;
  RETURN coalesce(v_filled, false);
END $oplog_fn$"""
