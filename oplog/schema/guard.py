"""Guards: triggers by which PostgreSQL refuses changes that are not logged, as DDL.

A guard has neither keys nor types. So it counts rows, and keeps the keys of touched rows:

- every row raises the transaction's *tally*, which the application must match when it appends
  its entries. A deferred trigger, armed by the first row, refuses COMMIT while it is open;
- of a statement that the application did not *announce* (by a comment with the table's oid)
  the touched keys are left in `oplog_image`, and the client is told by an INFO message, once
  for each transaction.

Tally and arming live in settings local to the transaction, bound to its id: ROLLBACK TO
SAVEPOINT takes them back together with the rows, and nothing leaks to the next transaction.
"""

from __future__ import annotations

from hashlib import sha256

from oplog.schema.kept_images import TELL_PROGRAM, create_collected_statements, weigh_image
from oplog.schema.mark_names import ADOPTION_PREFIX, BYPASS_AGGREGATE, RETIRED, RETIRED_REVISION
from oplog.schema.own_writes import read_written_function
from oplog.schema.touched_keys import (
    DEFINER,
    IMAGE_FUNCTIONS,
    UNLOGGED,
    create_image_statements,
    refuse_early,
)
from oplog.schema.trusted_tables import TRUST_FUNCTIONS, create_trust_statements

FORMAT_MARK = 3
"""Format number of a record that the database writes: no payload, only metadata."""
GUARD_TRIGGERS = {"r": 5, "p": 3}
"""How many guard triggers an ordinary and a partitioned table have, by relkind."""


def make_prefix(schema: str) -> str:
    """The part before the dot in the settings of the log in `schema`."""
    return "oplog" if schema == "oplog" else f"oplog_{sha256(schema.encode()).hexdigest()[:8]}"


def announce(oid: int, prefix: str) -> str:
    """The comment that makes a statement on this table an announced one to one log."""
    return f"/*{prefix}:{oid}*/ "


def create_guard_statements(s: str, schema: str) -> list[str]:
    """DDL of everything guards need; `s` is `schema` quoted."""
    p = make_prefix(schema)
    return [
        f"""CREATE TABLE {s}.oplog_guard (
  schema_name text COLLATE "C" NOT NULL,
  table_name text COLLATE "C" NOT NULL,
  tracked boolean NOT NULL,
  reason text NOT NULL,
  bypass_role text,
  changed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (schema_name, table_name))""",
        *create_image_statements(s, p),
        *create_trust_statements(s),
        read_written_function(s, p),
        *create_collected_statements(s),
        _write_mark(s),
        _mark(s),
        _retire_type(s),
        _try_bypass(s, p),
        _check(s, p),
        _settle_function(s, p),
        _truncate(s, p),
        _check_trackable(s),
        _declare(s),
        _drop_guard(s, p),
        _track(s, p, schema),
        _untrack(s),
    ]


def drop_guard_statements(s: str) -> list[str]:
    """Remove every guard, wherever it stands, then the functions and tables."""
    functions = (
        "track_table(regclass, text)",
        "untrack_table(regclass, text)",
        "drop_guard(regclass)",
        "declare_guard(regclass, boolean, text, text)",
        "check_trackable(regclass)",
        "guard_truncate()",
        "guard_check()",
        "guard_image()",
        "read_written(oid, text[], text[], text[])",
        *TRUST_FUNCTIONS,
        *IMAGE_FUNCTIONS,
        "settle(bigint)",
        "try_bypass(text, text[])",
        "retire_type(text, text)",
        "mark(text[], text[])",
        "write_mark(text, text[], text[])",
    )
    check = _in_literal(f"{s}.oplog_guard_check()")
    return [
        f"""SELECT {s}.oplog_drop_guard(t.tgrelid::regclass)
FROM (SELECT DISTINCT g.tgrelid FROM pg_catalog.pg_trigger g
      WHERE g.tgfoid = '{check}'::regprocedure AND g.tgparentid = 0::oid) t""",
        # Its trigger calls one of the functions.
        f"DROP FUNCTION {s}.oplog_collect_images()",
        f"DROP TABLE {s}.oplog_image",
        *(f"DROP FUNCTION {s}.oplog_{function}" for function in functions),
        f"DROP TABLE {s}.oplog_guard",
    ]


# -- COMMIT -----------------------------------------------------------------------------------


def _write_mark(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_write_mark(
  p_aggregate text, p_keys text[], p_values text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- A record by the database itself: it has no key to seal with, so it has no payload.
DECLARE
  v_metadata text[] := ARRAY(SELECT t.text
    FROM ROWS FROM (unnest(p_keys), unnest(p_values)) WITH ORDINALITY AS m(key, value, n),
    LATERAL (VALUES (1, m.key), (2, m.value)) AS t(place, text) ORDER BY m.n, t.place);
BEGIN
  PERFORM {s}.oplog_append_mark(gen_random_uuid(), ARRAY[p_aggregate], ARRAY[NULL]::bigint[],
    ''::bytea, NULL, NULL, {FORMAT_MARK}::smallint, '', v_metadata, NULL, NULL, NULL, NULL, NULL,
    NULL, true);
END $oplog_fn$"""


def _mark(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_mark(p_keys text[], p_values text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
SELECT {s}.oplog_write_mark('{BYPASS_AGGREGATE}', p_keys, p_values)
$oplog_fn$"""


def _retire_type(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_retire_type(p_type text, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Says in the log that the table of a type is gone, and all its rows with it.
BEGIN
  IF NOT EXISTS (SELECT FROM {s}.oplog_type t WHERE t.type_name = p_type) THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = concat('oplog: the log has no type ', quote_literal(p_type)),
      hint = '`oplog types list` shows those that it has';
  END IF;
  IF btrim(p_reason) = '' THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: a type is retired for a reason',
      hint = 'say what became of its table';
  END IF;
  PERFORM {s}.oplog_write_mark(concat('{ADOPTION_PREFIX}', p_type),
    ARRAY['{RETIRED}', '{RETIRED_REVISION}', 'oplog.reason', 'oplog.role'],
    ARRAY[p_type, (SELECT max(t.revision)::text FROM {s}.oplog_type t WHERE t.type_name = p_type),
      left(p_reason, 250), session_user::text]);
END $oplog_fn$"""


def _try_bypass(s: str, p: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_try_bypass(p_changes text, p_tables text[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- True if this transaction may pass unlogged; it leaves a mark that says so.
DECLARE
  v_reason text := left(current_setting('{p}.bypass', true), 250);
BEGIN
  IF coalesce(v_reason, '') = '' THEN RETURN false; END IF;
  -- Every table by the name that op.track_tables declared: of another one nobody said who may.
  IF EXISTS (SELECT FROM unnest(p_tables) AS t(name) WHERE NOT EXISTS (
      SELECT FROM {s}.oplog_guard g WHERE g.tracked
        AND concat(quote_ident(g.schema_name), '.', quote_ident(g.table_name)) = t.name
        AND (g.bypass_role IS NULL OR pg_has_role(session_user, g.bypass_role, 'MEMBER')))) THEN
    RETURN false;
  END IF;
  PERFORM {s}.oplog_mark(ARRAY['oplog.bypass', 'oplog.role', 'oplog.changes'],
    ARRAY[v_reason, session_user::text, p_changes]);
  RETURN true;
END $oplog_fn$"""


def _check(s: str, p: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_guard_check() RETURNS trigger
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Runs at COMMIT. An open tally is a change that no entry tells.
DECLARE
  v_set text;
  v_tally text := current_setting('{p}.tally', true);
  v_changes text;
  v_tables text[];
  v_told boolean;
BEGIN
  IF starts_with(tg_table_schema, 'pg_temp') THEN
    PERFORM {s}.oplog_require_guard(tg_relid, tg_name);
  END IF;
  -- Each arming queues one check, so that this one finds its transaction armed.
  IF current_setting('{p}.armed', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
    RAISE EXCEPTION USING errcode = '{UNLOGGED}',
      message = concat('oplog: settings were reset after this transaction changed ',
        tg_relid::regclass, ': whether it logs the change is not known'),
      hint = 'keep RESET ALL and DISCARD out of transactions that write tracked tables';
  END IF;
  IF coalesce(v_tally, '') = '' THEN
    {refuse_early("tg_relid")}
  END IF;
  -- Whatever a deferred trigger writes after this arms the check again.
  v_set := set_config('{p}.armed', '', true);
  IF v_tally = '0' THEN RETURN NULL; END IF;
  SELECT string_agg(concat(i.name, ' (', i.rows, CASE i.rows WHEN 1 THEN ' row)' ELSE ' rows)' END),
      ', ' ORDER BY i.name), array_agg(i.name), coalesce(sum(i.weight) = v_tally::bigint, false)
    INTO v_changes, v_tables, v_told
    FROM (SELECT concat(quote_ident(n.nspname), '.', quote_ident(c.relname)) AS name,
            sum(m.rows) AS rows, sum({weigh_image("m")}) AS weight
          FROM {s}.oplog_image m JOIN pg_class c ON c.oid = m.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE m.transaction_id = pg_current_xact_id() GROUP BY 1) i;
  -- A mark names every table; announced statements left none, nor did images that are gone.
  IF v_told AND {s}.oplog_try_bypass(v_changes, v_tables) THEN
    DELETE FROM {s}.oplog_image WHERE transaction_id = pg_current_xact_id();
    PERFORM set_config('{p}.tally', '0', true);
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING errcode = '{UNLOGGED}',
    message = concat('oplog: this transaction changes tracked rows and does not log them: ',
      concat_ws(', and ', v_changes, CASE WHEN NOT v_told
        THEN 'statements were announced and no entry came' END)), detail = {TELL_PROGRAM},
    hint = concat(CASE WHEN current_query() ~* 'set\\s+constraints'
      THEN 'SET CONSTRAINTS ALL IMMEDIATE runs this check too early; name your constraints instead'
      ELSE 'write through a session that is attached to the log' END,
      ', or set {p}.bypass to the reason why this transaction may pass unlogged');
END $oplog_fn$"""


def check_and_reset_tally(p: str) -> str:
    """PL/pgSQL that raises unless the guards' tally equals `p_tally`, and then sets it to 0.

    `p_tally` is what the application counted; the function around it declares `v_set`.
    """
    tally = f"pg_catalog.current_setting('{p}.tally', true)"
    return f"""IF {tally} IS DISTINCT FROM p_tally::pg_catalog.text THEN
    RAISE EXCEPTION USING errcode = '{UNLOGGED}',
      message = 'oplog: the database saw other changes to tracked tables than the session logs',
      detail = pg_catalog.concat('tally ', {tally}, ', session ', p_tally),
      hint = 'run the transaction again, which looks at its tables anew; if it stays so, run '
        '`oplog doctor`';
  END IF;
  v_set := pg_catalog.set_config('{p}.tally', '0', true);"""


def _settle_function(s: str, p: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_settle(p_tally bigint) RETURNS void
LANGUAGE plpgsql AS $oplog_fn$
-- For a transaction whose changes come to nothing, so that there is nothing to append.
DECLARE
  v_set pg_catalog.text;
BEGIN
  {check_and_reset_tally(p)}
END $oplog_fn$"""


def _truncate(s: str, p: str) -> str:
    name = "concat(quote_ident(tg_table_schema), '.', quote_ident(tg_table_name))"
    return f"""CREATE FUNCTION {s}.oplog_guard_truncate() RETURNS trigger
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
DECLARE
  v_root text;
BEGIN
  PERFORM {s}.oplog_require_guard(tg_relid, tg_name);
  -- Who may pass is declared for the whole of a partitioned table.
  SELECT concat(quote_ident(n.nspname), '.', quote_ident(c.relname)) INTO v_root
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = coalesce(pg_partition_root(tg_relid), tg_relid);
  IF {s}.oplog_try_bypass(concat({name}, ' (TRUNCATE)'), ARRAY[v_root]) THEN RETURN NULL; END IF;
  RAISE EXCEPTION USING errcode = '{UNLOGGED}',
    message = concat('oplog: TRUNCATE of tracked table ', {name},
      ' is refused: it would not be logged'),
    hint = 'use DELETE, which is logged row by row, or set {p}.bypass to the reason why not';
END $oplog_fn$"""


# -- tracking ---------------------------------------------------------------------------------


def _in_literal(text: str) -> str:
    return text.replace("'", "''")


def _drop_guard(s: str, p: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_drop_guard(p_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_trigger record;
BEGIN
  FOR v_trigger IN
    SELECT g.tgname, g.tgrelid::regclass AS relation
    FROM (SELECT p_table AS relid UNION SELECT relid FROM pg_partition_tree(p_table)) t
    JOIN pg_trigger g ON g.tgrelid = t.relid
    JOIN pg_proc f ON f.oid = g.tgfoid
    -- By name as well: somebody may have pointed one at another function.
    WHERE g.tgparentid = 0::oid AND (starts_with(g.tgname, '{p}_guard_')
      OR starts_with(f.proname, 'oplog_guard') AND f.pronamespace = (
        SELECT o.pronamespace FROM pg_proc o
        WHERE o.oid = '{_in_literal(s)}.oplog_guard_check()'::regprocedure))
  LOOP
    EXECUTE concat('DROP TRIGGER ', quote_ident(v_trigger.tgname), ' ON ', v_trigger.relation);
  END LOOP;
END $oplog_fn$"""


def _track(s: str, p: str, schema: str) -> str:
    q = _in_literal(s)
    argument = _in_literal("'" + _in_literal(schema) + "'")
    return f"""CREATE FUNCTION {s}.oplog_track_table(p_table regclass, p_bypass_role text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_kind "char" := {s}.oplog_check_trackable(p_table);
  v_event text;
  v_part regclass;
  v_trigger text;
BEGIN
  PERFORM {s}.oplog_drop_guard(p_table);
  EXECUTE concat('CREATE CONSTRAINT TRIGGER {p}_guard_armed AFTER INSERT OR UPDATE OR DELETE ON ',
    p_table, ' DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN ({q}.oplog_arm()) '
    'EXECUTE FUNCTION {q}.oplog_guard_check()');
  IF v_kind = 'p' THEN
    EXECUTE concat('CREATE TRIGGER {p}_guard_row AFTER INSERT OR UPDATE OR DELETE ON ', p_table,
      ' FOR EACH ROW EXECUTE FUNCTION {q}.oplog_guard_row({argument})');
  ELSE
    FOREACH v_event IN ARRAY ARRAY['insert', 'update', 'delete'] LOOP
      EXECUTE concat('CREATE TRIGGER {p}_guard_', v_event, ' AFTER ', v_event, ' ON ', p_table,
        ' REFERENCING', CASE WHEN v_event <> 'insert' THEN ' OLD TABLE AS oplog_old' END,
        CASE WHEN v_event <> 'delete' THEN ' NEW TABLE AS oplog_new' END,
        ' FOR EACH STATEMENT EXECUTE FUNCTION {q}.oplog_guard({argument})');
    END LOOP;
  END IF;
  FOR v_part IN SELECT p_table UNION SELECT relid FROM pg_partition_tree(p_table) LOOP
    EXECUTE concat('CREATE TRIGGER {p}_guard_truncate BEFORE TRUNCATE ON ', v_part,
      ' FOR EACH STATEMENT EXECUTE FUNCTION {q}.oplog_guard_truncate()');
  END LOOP;
  -- ALWAYS: session_replication_role = replica would switch ordinary triggers off.
  FOR v_part, v_trigger IN
    SELECT g.tgrelid::regclass, g.tgname FROM pg_trigger g
    JOIN (SELECT p_table AS relid UNION SELECT relid FROM pg_partition_tree(p_table)) t
      ON t.relid = g.tgrelid
    WHERE starts_with(g.tgname, '{p}_guard_') AND g.tgenabled <> 'A' ORDER BY g.tgparentid
  LOOP
    EXECUTE concat('ALTER TABLE ', v_part, ' ENABLE ALWAYS TRIGGER ', quote_ident(v_trigger));
  END LOOP;
  PERFORM {s}.oplog_declare_guard(p_table, true, '', p_bypass_role);
END $oplog_fn$"""


def _check_trackable(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_check_trackable(p_table regclass) RETURNS "char"
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_class pg_class;
  v_why text;
BEGIN
  SELECT * INTO v_class FROM pg_class c WHERE c.oid = p_table;
  v_why := CASE
    WHEN v_class.relkind NOT IN ('r', 'p') THEN 'it is not a table'
    WHEN v_class.relpersistence = 't' THEN 'it is temporary'
    WHEN v_class.relispartition THEN concat('it is a partition; track ', pg_partition_root(p_table))
    WHEN v_class.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h
      WHERE p_table IN (h.inhrelid, h.inhparent))
      THEN 'it takes part in table inheritance, where a key may be there twice'
    WHEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = p_table AND i.indisprimary)
      THEN 'it has no primary key'
  END;
  IF v_why IS NOT NULL THEN
    RAISE EXCEPTION USING errcode = '42809',
      message = concat('oplog: ', p_table, ' cannot be tracked: ', v_why),
      hint = 'list it as untracked, with the reason';
  END IF;
  RETURN v_class.relkind;
END $oplog_fn$"""


def _declare(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_declare_guard(
  p_table regclass, p_tracked boolean, p_reason text, p_bypass_role text)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
INSERT INTO {s}.oplog_guard (schema_name, table_name, tracked, reason, bypass_role)
SELECT n.nspname, c.relname, p_tracked, p_reason, p_bypass_role
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table
ON CONFLICT (schema_name, table_name) DO UPDATE SET tracked = excluded.tracked,
  reason = excluded.reason, bypass_role = excluded.bypass_role, changed_at = clock_timestamp()
$oplog_fn$"""


def _untrack(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_untrack_table(p_table regclass, p_reason text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
BEGIN
  PERFORM {s}.oplog_drop_guard(p_table);
  PERFORM {s}.oplog_declare_guard(p_table, false, p_reason, NULL);
END $oplog_fn$"""
