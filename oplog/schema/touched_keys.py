"""Guard functions that count touched rows and keep the keys of unannounced ones, as DDL.

The order of nested statements (cascades, triggers that write) cannot be told from outside. So only
keys and the names of changed columns are kept, no values. The application reads the rows when it
collects the keys; how often a row came and went tells what it was before.
"""

from __future__ import annotations

from oplog.schema.guard_origin import require_guard_function
from oplog.value import TEXT_SETTINGS

UNLOGGED = "OP003"
"""SQLSTATE of a transaction, or a TRUNCATE, that is refused because nothing logs it."""
IMAGES_KEPT = "OP004"
"""SQLSTATE of the INFO message that images wait to be collected."""
PINNED = "SET search_path = pg_catalog, pg_temp"
"""A fixed path, so that nobody puts functions or tables of their own in the way."""
DEFINER = f"SECURITY DEFINER {PINNED}"
"""Run with the owner's rights, so that any role that may write a table can be counted; a
fixed path, so that such a role cannot put functions of its own in the way."""

LOW_BITS = 1048575
"""What of a table's oid is in the weight of its rows."""
_IMAGE_ROWS = 10000
_SETTINGS = ", ".join(f"current_setting('{name}')" for name in TEXT_SETTINGS)
_FIXED = ", ".join(f"'{value}'" for value in TEXT_SETTINGS.values())


def weigh(operation: str, oid: int) -> int:
    """What one row adds to a tally; `operation` is I, U or D, as in `oplog_image`.

    An update weighs as much as a delete and an insert: that is what a partitioned table
    reports of a row that moves between partitions.
    """
    unit = (oid & LOW_BITS) * 4
    return {"I": unit + 1, "D": unit + 2, "U": 2 * unit + 3}[operation]


def _in_literal(text: str) -> str:
    return text.replace("'", "''")


def create_image_statements(s: str, p: str) -> list[str]:
    """DDL of the images; `s` is the quoted schema, `p` the prefix of its settings."""
    return [
        # Rows live no longer than their transaction, which a crash ends too.
        f"""CREATE UNLOGGED TABLE {s}.oplog_image (
  id bigint GENERATED ALWAYS AS IDENTITY,
  transaction_id xid8 NOT NULL,
  relation oid NOT NULL,
  operation "char" NOT NULL,
  rows bigint NOT NULL,
  kept text[] NOT NULL,
  old_rows text[],
  new_rows text[],
  changed text[])""",
        f"CREATE INDEX oplog_image_transaction ON {s}.oplog_image (transaction_id)",
        _arm(s, p),
        require_guard_function(s, p),
        _set_text(s),
        _kept_columns(s),
        _image_update(s),
        _image(s, p),
        _image_row(s, p),
        _collect_images(s),
    ]


IMAGE_FUNCTIONS = (
    "guard()",
    "guard_row()",
    "arm()",
    "require_guard(oid, name)",
    "image_update(oid, text[])",
    "set_text(text[])",
    "kept_columns(oid)",
)
"""Functions to drop, without the prefix of their names."""


# -- counting ---------------------------------------------------------------------------------


def _arm(s: str, p: str) -> str:
    # Conditions of triggers are parsed again for every statement: a long one costs more than
    # the call of a function, whose plan is kept.
    return f"""CREATE FUNCTION {s}.oplog_arm() RETURNS boolean
LANGUAGE plpgsql AS $oplog_fn$
-- True for a transaction's first row, which queues the check of COMMIT. Every role that writes a
-- tracked table calls it, as the condition of a trigger, so PUBLIC may execute it: a role without
-- any right on the log is then refused at COMMIT, with a reason. It runs with the caller's rights
-- and does what SET LOCAL would. The tally is empty until a guard has counted a row. The caller's
-- path finds a type or an operator of its own first, so that both are named in full.
DECLARE
  v_set pg_catalog.text;
  v_id pg_catalog.text := pg_catalog.pg_current_xact_id();
BEGIN
  IF coalesce(pg_catalog.current_setting('{p}.armed', true), '') OPERATOR(pg_catalog.=) v_id THEN
    RETURN false;
  END IF;
  -- Assigned, not performed: a plain expression needs no executor.
  v_set := pg_catalog.set_config('{p}.armed', v_id, true);
  v_set := pg_catalog.set_config('{p}.tally', '', true);
  RETURN true;
END $oplog_fn$"""


def _raise_tally(p: str, weight: str) -> str:
    return (
        f"v_set := set_config('{p}.tally', "
        f"(coalesce(nullif(current_setting('{p}.tally', true), ''), '0')::bigint + {weight})"
        "::text, true);"
    )


def _weight(relation: str) -> str:
    """One row's weight in SQL; must agree with `weigh`."""
    unit = f"({relation}::bigint & {LOW_BITS}) * 4"
    return (
        f"(CASE tg_op WHEN 'INSERT' THEN {unit} + 1 "
        f"WHEN 'UPDATE' THEN 2 * {unit} + 3 ELSE {unit} + 2 END)"
    )


def _refuse_strange(s: str) -> str:
    """Before anything is read: transition tables hide temporary relations of the same name.

    Without any such relation there is nothing that could stand in their place, and a session
    without temporary relations is told by one number.
    """
    return f"""IF pg_my_temp_schema() <> 0 AND (starts_with(tg_table_schema, 'pg_temp')
      OR to_regclass('pg_temp.oplog_old') IS NOT NULL
      OR to_regclass('pg_temp.oplog_new') IS NOT NULL) THEN
    PERFORM {s}.oplog_require_guard(tg_relid, tg_name);
  END IF;"""


def refuse_early(relation: str) -> str:
    """PL/pgSQL that refuses a change which the check of COMMIT did not wait for."""
    return f"""RAISE EXCEPTION USING errcode = '{UNLOGGED}',
    message = concat('oplog: the check of COMMIT came before the change of ',
      {relation}::regclass, ' was counted'),
    hint = CASE current_setting('session_replication_role') WHEN 'replica'
      THEN 'logical replication does not fire statement triggers: take the table out of the '
        'subscription, and write it through a session that is attached to the log'
      ELSE 'SET CONSTRAINTS ALL IMMEDIATE runs this check too early; name your constraints '
        'instead, or write SET CONSTRAINTS ALL DEFERRED after it' END;"""


def _require_armed(s: str, p: str, relation: str) -> str:
    return f"""IF current_setting('{p}.armed', true)
      IS DISTINCT FROM pg_current_xact_id()::text THEN
    PERFORM {s}.oplog_require_guard(tg_relid, tg_name);
    {refuse_early(relation)}
  END IF;"""


def _is_announced(s: str, p: str, relation: str) -> str:
    # Anybody can copy the comment. It counts for a role that can append the record it announces:
    # of any other's statements images are kept, which that role cannot take away again.
    return (
        "pg_trigger_depth() = 1 AND "
        f"strpos(current_query(), concat('/*{p}:', {relation}, '*/')) > 0 AND "
        "has_function_privilege(CASE current_setting('role') WHEN 'none' THEN session_user "
        f"ELSE current_setting('role')::name END, '{_in_literal(s)}.oplog_append'::regproc, "
        "'EXECUTE')"
    )


# -- images -----------------------------------------------------------------------------------


def _kept_columns(s: str) -> str:
    # PL/pgSQL keeps the plan; before PostgreSQL 18 a function in SQL is planned at each call.
    return f"""CREATE FUNCTION {s}.oplog_kept_columns(p_table oid) RETURNS text[]
LANGUAGE plpgsql STABLE AS $oplog_fn$
-- The primary key, and what any aggregate's name is made of: with these the application finds
-- a touched row, and the aggregate that it was in.
DECLARE
  v_schema text;
  v_table text;
  v_templates text;
BEGIN
  SELECT n.nspname, c.relname INTO v_schema, v_table
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = p_table;
  SELECT pg_catalog.string_agg(t.shape->>'aggregate', ' ') INTO v_templates
  FROM {s}.oplog_type t
  WHERE t.shape->>'schema' = v_schema AND t.shape->>'table' = v_table;
  RETURN (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
  FROM pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = a.attrelid AND k.contype = 'p'
  WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND (
    a.attnum = ANY (k.conkey)
    -- Nothing was ever logged for it: any column may be in the name.
    OR v_templates IS NULL
    OR pg_catalog.strpos(v_templates, '{{' || a.attname::text || '}}') > 0));
END $oplog_fn$"""


def _set_text(s: str) -> str:
    write = ", ".join(
        f"set_config('{name}', p_values[{n}], true)" for n, name in enumerate(TEXT_SETTINGS, 1)
    )
    return f"""CREATE FUNCTION {s}.oplog_set_text(p_values text[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Settings that decide what values look like as text; gives back what they were.
DECLARE
  v_before text[] := ARRAY[{_SETTINGS}];
BEGIN
  IF v_before <> p_values THEN PERFORM {write}; END IF;
  RETURN v_before;
END $oplog_fn$"""


def _fix_text(s: str) -> str:
    # Most sessions have these settings anyway: comparing them takes a tenth of the call.
    return f"""IF ARRAY[{_SETTINGS}] <> ARRAY[{_FIXED}] THEN
    v_before := {s}.oplog_set_text(ARRAY[{_FIXED}]);
  END IF;"""


def _set_text_back(s: str) -> str:
    return f"IF v_before IS NOT NULL THEN v_before := {s}.oplog_set_text(v_before); END IF;"


def _tell(p: str, relation: str) -> str:
    """Tell the client, once for each transaction, that images wait to be collected."""
    return f"""IF current_setting('{p}.told', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
    v_set := set_config('{p}.told', pg_current_xact_id()::text, true);
    RAISE INFO USING errcode = '{IMAGES_KEPT}', schema = tg_argv[0],
      message = concat('oplog: ', {relation}::regclass, ' is changed by a statement that no '
        'attached session announced; COMMIT is refused unless the change is logged');
  END IF;"""


def _image(s: str, p: str) -> str:
    image = _in_literal(f"{s}.oplog_image (transaction_id, relation, operation, rows, kept")
    return f"""CREATE FUNCTION {s}.oplog_guard() RETURNS trigger
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Counts the rows of an announced statement. Of any other it leaves the keys of the rows it
-- touched, and which columns it changed in any of them. Values are read from the table itself
-- when the application collects, so the order of nested statements need not be known.
DECLARE
  v_set text;
  v_rows bigint;
  v_kept text[];
  v_list text;
  v_array text;
  v_images text[];
  v_before text[];
BEGIN
  {_refuse_strange(s)}
  IF tg_op = 'DELETE' THEN SELECT count(*) INTO v_rows FROM oplog_old;
  ELSE SELECT count(*) INTO v_rows FROM oplog_new; END IF;
  IF v_rows = 0 THEN RETURN NULL; END IF;
  {_require_armed(s, p, "tg_relid")}
  {_raise_tally(p, f"v_rows * {_weight('tg_relid')}")}
  IF {_is_announced(s, p, "tg_relid")} THEN RETURN NULL; END IF;
  v_set := {s}.oplog_require_guard(tg_relid, tg_name);
  v_kept := {s}.oplog_kept_columns(tg_relid);
  {_fix_text(s)}
  IF tg_op = 'UPDATE' THEN
    EXECUTE {s}.oplog_image_update(tg_relid, v_kept) USING tg_relid, 'U'::"char", v_kept;
  ELSIF v_rows <= {_IMAGE_ROWS} THEN
    {_image_few(s)}
  ELSE
    SELECT string_agg(concat(quote_ident(c), '::text AS c', n), ', '),
           string_agg(concat('r.c', n), ', ')
      INTO v_list, v_array FROM unnest(v_kept) WITH ORDINALITY AS k(c, n);
    EXECUTE concat('INSERT INTO {image}, ',
      CASE tg_op WHEN 'INSERT' THEN 'new_rows' ELSE 'old_rows' END,
      ') SELECT pg_current_xact_id(), $1, $2, count(*), $3, array_agg(ARRAY[', v_array,
      ']) FROM (SELECT (row_number() OVER () - 1) / {_IMAGE_ROWS} AS part, ', v_list, ' FROM ',
      CASE tg_op WHEN 'INSERT' THEN 'oplog_new' ELSE 'oplog_old' END,
      ') r GROUP BY r.part') USING tg_relid, left(tg_op, 1)::"char", v_kept;
  END IF;
  {_set_text_back(s)}
  {_tell(p, "tg_relid")}
  RETURN NULL;
END $oplog_fn$"""


def _image_few(s: str) -> str:
    """Keeps the images of an INSERT or DELETE of few rows.

    What is planned at each call is as little as can be; the rest is planned once.
    """
    return f"""SELECT string_agg(concat('r.', quote_ident(c), '::text'), ', ') INTO v_list
      FROM unnest(v_kept) AS c;
    EXECUTE concat('SELECT array_agg(ARRAY[', v_list, ']) FROM ',
      CASE tg_op WHEN 'INSERT' THEN 'oplog_new' ELSE 'oplog_old' END, ' r') INTO v_images;
    INSERT INTO {s}.oplog_image
      (transaction_id, relation, operation, rows, kept, old_rows, new_rows)
    VALUES (pg_current_xact_id(), tg_relid, left(tg_op, 1)::"char", v_rows, v_kept,
      CASE tg_op WHEN 'DELETE' THEN v_images END, CASE tg_op WHEN 'INSERT' THEN v_images END);"""


def _image_update(s: str) -> str:
    image = _in_literal(f"{s}.oplog_image (transaction_id, relation, operation, rows, kept")
    return f"""CREATE FUNCTION {s}.oplog_image_update(p_table oid, p_kept text[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- The statement that keeps the images of an UPDATE. Both transition tables hold the rows in
-- the order they were updated. Record image operators compare what is stored, for any type.
BEGIN
RETURN (SELECT concat('INSERT INTO {image}, old_rows, new_rows, changed) '
  'SELECT pg_current_xact_id(), $1, $2, count(*), $3, CASE WHEN bool_or(record_image_ne(ROW(',
  string_agg(concat('o.c', a.attnum), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  '), ROW(',
  string_agg(concat('n.c', a.attnum), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  '))) THEN array_agg(ARRAY[',
  string_agg(concat('o.c', a.attnum, '::text'), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  ']) END, array_agg(ARRAY[',
  string_agg(concat('n.c', a.attnum, '::text'), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  ']), array_remove(ARRAY[',
  string_agg(concat('CASE WHEN bool_or(record_image_ne(ROW(o.c', a.attnum, '), ROW(n.c',
    a.attnum, '))) THEN ', quote_literal(a.attname), ' END'), ', ' ORDER BY a.attnum),
  ']::text[], NULL) FROM (SELECT row_number() OVER () AS r, ',
  string_agg(concat(quote_ident(a.attname), ' AS c', a.attnum), ', '),
  ' FROM oplog_old) o FULL JOIN (SELECT row_number() OVER () AS r, ',
  string_agg(concat(quote_ident(a.attname), ' AS c', a.attnum), ', '),
  ' FROM oplog_new) n USING (r) GROUP BY (r - 1) / {_IMAGE_ROWS}')
FROM pg_attribute a, LATERAL (SELECT a.attname::text = ANY (p_kept) AS kept) k
WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '');
END $oplog_fn$"""


def _image_row(s: str, p: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_guard_row() RETURNS trigger
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- The same for one row of a partitioned table, whose statement triggers do not fire for
-- statements aimed at a partition, and whose row triggers are cloned to every partition there
-- is and will be. A row that moves to another one comes as a delete and an insert.
DECLARE
  v_set text;
  v_root oid := pg_partition_root(tg_relid);
  v_kept text[];
  v_before text[];
  v_list text;
  v_old text[];
  v_new text[];
  v_changed text[];
BEGIN
  {_require_armed(s, p, "tg_relid")}
  {_raise_tally(p, _weight("v_root"))}
  IF {_is_announced(s, p, "v_root")} THEN RETURN NULL; END IF;
  v_set := {s}.oplog_require_guard(tg_relid, tg_name);
  v_kept := {s}.oplog_kept_columns(v_root);
  {_fix_text(s)}
  SELECT concat('SELECT ARRAY[', string_agg(concat('($1).', quote_ident(c), '::text'), ', '), ']')
    INTO v_list FROM unnest(v_kept) AS c;
  IF tg_op <> 'INSERT' THEN EXECUTE v_list INTO v_old USING OLD; END IF;
  IF tg_op <> 'DELETE' THEN EXECUTE v_list INTO v_new USING NEW; END IF;
  IF tg_op = 'UPDATE' THEN
    SELECT concat('SELECT array_remove(ARRAY[', string_agg(concat(
      'CASE WHEN record_image_ne(ROW(($1).', quote_ident(a.attname), '), ROW(($2).',
      quote_ident(a.attname), ')) THEN ', quote_literal(a.attname), ' END'), ', '),
      ']::text[], NULL)') INTO v_list
    FROM pg_attribute a
    WHERE a.attrelid = tg_relid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    EXECUTE v_list INTO v_changed USING OLD, NEW;
  END IF;
  INSERT INTO {s}.oplog_image
    (transaction_id, relation, operation, rows, kept, old_rows, new_rows, changed)
  VALUES (pg_current_xact_id(), v_root, left(tg_op, 1)::"char", 1, v_kept,
    CASE WHEN v_old IS DISTINCT FROM v_new AND v_old IS NOT NULL THEN ARRAY[v_old] END,
    CASE WHEN v_new IS NOT NULL THEN ARRAY[v_new] END, v_changed);
  {_set_text_back(s)}
  {_tell(p, "v_root")}
  RETURN NULL;
END $oplog_fn$"""


def _collect_images(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_collect_images() RETURNS SETOF {s}.oplog_image
LANGUAGE sql {DEFINER} AS $oplog_fn$
-- Takes away the images of this transaction, and of no other.
WITH gone AS (DELETE FROM {s}.oplog_image
  WHERE transaction_id = pg_current_xact_id() RETURNING *) SELECT * FROM gone ORDER BY id
$oplog_fn$"""
