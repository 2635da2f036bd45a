"""Partitions of the log's large tables, by position, as DDL.

A log grows at one end and is pruned at the other: a partition goes in a moment, whatever is in it.
The next one is made ahead, by an append or by `oplog maintain`. `ATTACH PARTITION` waits for
no writer and lets none wait; `CREATE TABLE ... PARTITION OF` would.
"""

from __future__ import annotations

from oplog.postgres.quoting import quote_literal
from oplog.schema.locks import PARTITIONS_LOCK

PARTITIONED = ("record", "part", "token")
"""Tables that are partitioned, without the prefix `oplog_`."""
PARTITION_POSITIONS = 1 << 22
"""Positions of one partition."""
AHEAD = 2
"""How many partitions there are, at least, from the one of the newest position on."""
PARTITION_PATTERN = "^oplog_(record|part|token)_p[0-9]+$"
"""What the names of partitions match, as a regular expression of Postgres."""


def create_partition_statements(s: str, *, positions: int = PARTITION_POSITIONS) -> list[str]:
    """The function that makes partitions, in the quoted schema `s`, and those of the present.

    Each has so many `positions`.
    """
    present = f"SELECT {s}.oplog_make_partitions(q.last_value) FROM {s}.oplog_position_seq q"
    return [_make_partitions(s, positions), present]


def _make_partitions(s: str, positions: int) -> str:
    tables = ", ".join(f"'oplog_{name}'" for name in PARTITIONED)
    literal = s.replace("'", "''")
    return f"""CREATE FUNCTION {s}.oplog_make_partitions(p_position bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Makes the partition of a position and the next, where they are missing; how many tables it made.
-- They belong to the log's owner, also if another role calls. Nobody else has rights on a
-- partition: all others go through the whole table.
DECLARE
  v_table text;
  v_number bigint;
  v_name text;
  v_grantee text;
  v_made integer := 0;
BEGIN
  IF NOT EXISTS (SELECT FROM unnest(ARRAY[{tables}]) AS t(name),
      generate_series(0, {AHEAD - 1}) AS ahead(n) WHERE to_regclass(concat('{literal}.', t.name,
        '_p', p_position / {positions} + ahead.n)) IS NULL) THEN
    RETURN 0;
  END IF;
  -- Of two at once one makes them, and the other need not wait: they are made long before they are
  -- needed.
  IF NOT {s}.oplog_try_lock('{PARTITIONS_LOCK}') THEN RETURN 0; END IF;
  FOREACH v_table IN ARRAY ARRAY[{tables}] LOOP
    FOR v_number IN SELECT p_position / {positions} + n
        FROM generate_series(0, {AHEAD - 1}) AS n LOOP
      v_name := concat('{literal}.', v_table, '_p', v_number);
      CONTINUE WHEN to_regclass(v_name) IS NOT NULL;
      BEGIN
        EXECUTE concat('CREATE TABLE ', v_name, ' (LIKE {literal}.', v_table, ' INCLUDING ALL)');
      EXCEPTION
        -- Who had the lock before has made it, and this session had looked it up before that.
        WHEN duplicate_table THEN CONTINUE;
      END;
      FOR v_grantee IN SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC')
          FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) x
          LEFT JOIN pg_roles r ON r.oid = x.grantee
          WHERE c.oid = v_name::regclass AND x.grantee <> c.relowner LOOP
        EXECUTE concat('REVOKE ALL ON ', v_name, ' FROM ', v_grantee);
      END LOOP;
      {_protect(s)}
      EXECUTE concat('ALTER TABLE {literal}.', v_table, ' ATTACH PARTITION ', v_name,
        ' FOR VALUES FROM (', v_number * {positions}, ') TO (',
        (v_number + 1) * {positions}, ')');
      v_made := v_made + 1;
    END LOOP;
  END LOOP;
  RETURN v_made;
END $oplog_fn$"""


def protect_statement(s: str, schema: str) -> str:
    """The statement that gives every partition in `schema`, quoted `s`, its trigger again."""
    return f"""DO $oplog_do$
DECLARE
  v_name text;
BEGIN
  FOR v_name IN SELECT {quote_literal(f"{s}.")} || c.relname FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = {quote_literal(schema)} AND c.relkind = 'r'
        AND c.relname ~ '{PARTITION_PATTERN}' ORDER BY c.relname LOOP
    {_protect(s)}
  END LOOP;
END $oplog_do$"""


def define_trigger(s: str, table: str) -> str:
    """The trigger of a partition with this quoted name: what comes after CREATE."""
    return (
        f"TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {s}.oplog_refuse_change()"
    )


def _protect(s: str) -> str:
    """PL/pgSQL that makes the trigger of the partition whose quoted name is `v_name`."""
    trigger = define_trigger(s.replace("'", "''"), "', v_name, '")
    return f"""EXECUTE pg_catalog.concat('CREATE OR REPLACE {trigger}');
      EXECUTE pg_catalog.concat('ALTER TABLE ', v_name,
        ' ENABLE ALWAYS TRIGGER oplog_append_only');"""
