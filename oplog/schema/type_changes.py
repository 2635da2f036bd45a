"""Functions that work out from the catalog what became of a type's table, as DDL.

PostgreSQL itself knows what a migration did: a column keeps its number and a table its oid through
a renaming, a default that is the same for all rows is kept beside the table, and whatever rewrites
rows gives the table another file. What was last seen of that is kept in `oplog_type_state`.
"""

from __future__ import annotations

from oplog.schema.guard import (
    ADOPTION_PREFIX,
    RETIRED,
    RETIRED_REVISION,
    SCHEMA_CHANGE,
    SCHEMA_REVISION,
)
from oplog.schema.touched_keys import DEFINER
from oplog.value import TEXT_SETTINGS

TYPES_CHANGED = "OP011"
"""SQLSTATE of an append by a process that knows the types of before a schema change."""

CHANGE_TABLES = ("type_state", "epoch")
CHANGE_FUNCTIONS = (
    "mark_change(text, integer, text)",
    "retire_missing()",
    "renew_state(text)",
    "keep_state(text, oid)",
    "raise_epoch()",
    "describe_change(text, jsonb, oid)",
    "judge_numbers(text, jsonb, oid)",
    "list_files(oid)",
    "list_columns(oid)",
    "is_marked(text, integer)",
    "is_retired(text, integer)",
    "find_database()",
)
"""Functions to drop, without the prefix of their names."""
_PINNED = "SET search_path = pg_catalog, pg_temp"
_TEXT = " ".join(f"SET {name} = '{value}'" for name, value in TEXT_SETTINGS.items())


def create_change_tables(s: str) -> list[str]:
    """The tables in the quoted schema `s`."""
    return [
        # Of this database only: after a restore it says nothing, and is kept anew.
        f"""CREATE TABLE {s}.oplog_type_state (
  type_name text COLLATE "C" PRIMARY KEY,
  database_id text COLLATE "C" NOT NULL,
  table_oid bigint NOT NULL,
  files jsonb NOT NULL,
  columns jsonb NOT NULL)""",
        f"""CREATE TABLE {s}.oplog_epoch (
  epoch bigint NOT NULL)""",
        f"INSERT INTO {s}.oplog_epoch SELECT 0 WHERE NOT EXISTS (SELECT FROM {s}.oplog_epoch)",
    ]


def create_change_functions(s: str) -> list[str]:
    """The functions, in an order in which each finds those that it calls."""
    return [
        _find_database(s),
        _is_retired(s),
        _is_marked(s),
        _list_files(s),
        _list_columns(s),
        _judge_numbers(s),
        _describe_change(s),
        _keep_state(s),
        _renew_state(s),
        _raise_epoch(s),
        _mark_change(s),
        _retire_missing(s),
    ]


def refuse_old_types(s: str) -> str:
    """PL/pgSQL that raises unless `p_epoch` is the number of schema changes, or NULL.

    A transaction whose snapshot is older than a change sees the number of before: locking the row
    raises 40001 then.
    """
    read = f"SELECT e.epoch INTO v_epoch FROM {s}.oplog_epoch e"
    return f"""IF p_epoch IS NOT NULL THEN
    IF pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
      {read};
    ELSE
      {read} FOR SHARE;
    END IF;
    IF p_epoch <> v_epoch THEN
      RAISE EXCEPTION USING errcode = '{TYPES_CHANGED}',
        message = 'oplog: tables were changed since this process looked at them',
        hint = 'run the whole transaction again: the next one knows the tables of now';
    END IF;
  END IF;"""


# -- what is there ----------------------------------------------------------------------------


def _find_database(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_find_database() RETURNS text
LANGUAGE sql STABLE {_PINNED} AS $oplog_fn$
SELECT concat(i.system_identifier, '/', d.oid) FROM pg_control_system() i, pg_database d
WHERE d.datname = current_database()
$oplog_fn$"""


def _is_retired(s: str) -> str:
    said = f"""'{RETIRED}' = ANY (m.metadata) AND EXISTS (
    SELECT FROM generate_series(1, cardinality(m.metadata), 2) AS n
    WHERE m.metadata[n] = '{RETIRED_REVISION}' AND m.metadata[n + 1] = p_revision::text)"""
    return f"""CREATE FUNCTION {s}.oplog_is_retired(p_type text, p_revision integer)
RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $oplog_fn$
-- Whether the type was retired when this revision was its newest.
SELECT EXISTS (SELECT FROM {s}.oplog_entry e JOIN {s}.oplog_record m ON m.position = e.position
    WHERE e.aggregate_name = concat('{ADOPTION_PREFIX}', p_type) AND {said})
  OR EXISTS (SELECT FROM {s}.oplog_outcome m
    WHERE m.aggregates IS NOT NULL AND concat('{ADOPTION_PREFIX}', p_type) = ANY (m.aggregates)
      AND {said})
$oplog_fn$"""


def _is_marked(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_is_marked(p_type text, p_revision integer)
RETURNS boolean LANGUAGE plpgsql STABLE {DEFINER} AS $oplog_fn$
-- Whether the log says from where on the table has the shape of this revision. It need not of the
-- first one.
DECLARE
  v_aggregate text := concat('{ADOPTION_PREFIX}', p_type);
  v_metadata text[] := ARRAY['{SCHEMA_CHANGE}', p_type, '{SCHEMA_REVISION}', p_revision::text];
BEGIN
  RETURN p_revision = (SELECT min(t.revision) FROM {s}.oplog_type t WHERE t.type_name = p_type)
    OR EXISTS (SELECT FROM {s}.oplog_entry e JOIN {s}.oplog_record r ON r.position = e.position
      WHERE e.aggregate_name = v_aggregate AND r.metadata[1:4] = v_metadata)
    OR EXISTS (SELECT FROM {s}.oplog_outcome o WHERE o.aggregates IS NOT NULL
      AND v_aggregate = ANY (o.aggregates) AND o.metadata[1:4] = v_metadata);
END $oplog_fn$"""


def _list_files(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_list_files(p_table oid) RETURNS jsonb
LANGUAGE sql STABLE {_PINNED} AS $oplog_fn$
-- The files that hold the table's rows, by the oid of the table or partition.
SELECT coalesce(jsonb_object_agg(c.oid, c.relfilenode::bigint), '{{}}')
FROM (SELECT p_table AS relid UNION SELECT t.relid FROM pg_partition_tree(p_table) t) r
JOIN pg_class c ON c.oid = r.relid WHERE c.relkind = 'r'
$oplog_fn$"""


def _list_columns(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_list_columns(p_table oid) RETURNS jsonb
LANGUAGE sql STABLE {_PINNED} AS $oplog_fn$
-- By number: the type, the transaction that last altered the column, and labels of an enum by oid.
SELECT coalesce(jsonb_object_agg(a.attnum, jsonb_build_object('type', a.atttypid::bigint,
  'altered', a.xmin::text, 'labels', (SELECT jsonb_object_agg(l.oid, l.enumlabel)
    FROM pg_enum l WHERE l.enumtypid = a.atttypid))), '{{}}')
FROM pg_attribute a WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
$oplog_fn$"""


# -- what a new revision is -------------------------------------------------------------------


def _pair_columns() -> str:
    """CTEs: `pair` has each column of `p_shape` with what it was in the newest revision."""
    return """given AS (
    SELECT (c.value->>'number')::integer AS number, c.value->>'name' AS name,
      c.value->>'pg_type' AS spelled, c.value->>'kind' AS kind,
      (c.value->>'primary_key')::boolean AS key, a.attnum, a.atthasmissing,
      CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END AS missing,
      a.xmin::text AS altered, a.atttypid::bigint AS type
    FROM jsonb_array_elements(p_shape->'columns') AS c(value)
    JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.value->>'name'
      AND a.attnum > 0 AND NOT a.attisdropped),
  earlier AS (
    SELECT (c.value->>'number')::integer AS number, c.value->>'name' AS name,
      c.value->>'pg_type' AS spelled, c.value->>'kind' AS kind,
      (v_numbers->>(c.value->>'name'))::smallint AS attnum
    FROM jsonb_array_elements(v_before.shape->'columns') AS c(value)),
  pair AS (
    SELECT g.*, e.number AS was_number, e.spelled AS was_spelled, e.kind AS was_kind,
      e.number IS NULL AND v_numbers IS NOT NULL AND EXISTS (SELECT FROM jsonb_each_text(v_numbers)
        AS n(name, attnum) WHERE n.attnum::smallint = g.attnum) AS was_left_out,
      v_state.columns->(g.attnum::text) AS seen
    FROM given g LEFT JOIN earlier e
      ON CASE WHEN v_numbers IS NULL THEN e.name = g.name ELSE e.attnum = g.attnum END)"""


def _find_before(s: str) -> str:
    """PL/pgSQL: the newest revision, its numbers and the state of this very table."""
    return f"""SELECT * INTO v_before FROM {s}.oplog_type t WHERE t.type_name = p_type
    ORDER BY t.revision DESC LIMIT 1;
  SELECT n.columns INTO v_numbers FROM {s}.oplog_type_numbers n
    WHERE n.type_name = p_type AND n.revision = v_before.revision
      AND n.database_id = {s}.oplog_find_database() AND n.table_oid = p_table;"""


def _judge_numbers(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_judge_numbers(p_type text, p_shape jsonb, p_table oid)
RETURNS text LANGUAGE plpgsql STABLE {_PINNED} AS $oplog_fn$
-- Why columns of the shape do not have the field numbers that they have had; NULL if they do.
-- Rows of earlier revisions are read by number: another one would make them another column's.
DECLARE
  v_before {s}.oplog_type;
  v_numbers jsonb;
  v_state {s}.oplog_type_state;
  v_name text;
BEGIN
  {_find_before(s)}
  IF v_before.revision IS NULL OR {s}.oplog_is_retired(p_type, v_before.revision) THEN
    RETURN NULL;
  END IF;
  WITH {_pair_columns()},
  used AS (
    SELECT (c.value->>'number')::integer AS number, c.value->>'name' AS name,
      c.value->>'kind' AS kind, (n.columns->>(c.value->>'name'))::smallint AS attnum
    FROM {s}.oplog_type t CROSS JOIN jsonb_array_elements(t.shape->'columns') AS c(value)
    LEFT JOIN {s}.oplog_type_numbers n ON n.type_name = t.type_name AND n.revision = t.revision
      AND n.database_id = {s}.oplog_find_database() AND n.table_oid = p_table
    WHERE t.type_name = p_type)
  SELECT p.name INTO v_name FROM pair p
  WHERE p.was_kind = p.kind AND p.was_number <> p.number
    OR p.was_kind IS DISTINCT FROM p.kind AND EXISTS (
      SELECT FROM used u WHERE u.number = p.number)
    AND NOT EXISTS (SELECT FROM used u WHERE u.number = p.number AND u.kind = p.kind
      AND CASE WHEN v_numbers IS NULL THEN u.name = p.name ELSE u.attnum = p.attnum END)
  ORDER BY 1 LIMIT 1;
  RETURN CASE WHEN v_name IS NOT NULL THEN concat('its column ', quote_ident(v_name),
    ' does not have the field number of that column in earlier revisions') END;
END $oplog_fn$"""


_TEXTS = "('text', 'character varying')"


def _describe_change(s: str) -> str:
    bare, was_bare = (
        f"regexp_replace({column}, '[(][0-9, -]*[)]', '')"
        for column in ("p.spelled", "p.was_spelled")
    )
    return f"""CREATE FUNCTION {s}.oplog_describe_change(p_type text, p_shape jsonb, p_table oid)
RETURNS jsonb LANGUAGE plpgsql STABLE {DEFINER} {_TEXT} AS $oplog_fn$
-- What became of rows of the newest revision if the table has this shape now.
DECLARE
  v_before {s}.oplog_type;
  v_numbers jsonb;
  v_state {s}.oplog_type_state;
  v_kept boolean;
  v_parts boolean;
  v_change jsonb;
BEGIN
  {_find_before(s)}
  IF v_before.revision IS NULL OR {s}.oplog_is_retired(p_type, v_before.revision) THEN
    RETURN jsonb_build_object('previous', 0, 'fills', '{{}}'::jsonb, 'rewritten', '[]'::jsonb,
      'labels', '{{}}'::jsonb, 'readopted', false);
  END IF;
  SELECT * INTO v_state FROM {s}.oplog_type_state t WHERE t.type_name = p_type
    AND t.database_id = {s}.oplog_find_database() AND t.table_oid = p_table;
  -- Whether every file that was there is: nothing has rewritten rows then.
  v_kept := v_state.files IS NOT NULL AND NOT EXISTS (
    SELECT FROM jsonb_each({s}.oplog_list_files(p_table)) AS f(relation, file)
    WHERE v_state.files->f.relation <> f.file);
  -- Rows of a partition come and go with it, past every trigger. One that was created as such was
  -- empty: its columns are as old as its place in the tree.
  v_parts := v_state.files IS NOT NULL AND (
    EXISTS (SELECT FROM jsonb_object_keys(v_state.files) AS f(relation)
      WHERE NOT {s}.oplog_list_files(p_table) ? f.relation)
    OR EXISTS (SELECT FROM jsonb_object_keys({s}.oplog_list_files(p_table)) AS f(relation)
      JOIN pg_inherits h ON h.inhrelid = f.relation::oid
      JOIN pg_attribute a ON a.attrelid = h.inhrelid AND a.attnum = -1 AND a.xmin <> h.xmin
      WHERE NOT v_state.files ? f.relation));
  WITH {_pair_columns()},
  judged AS (
    SELECT p.*, CASE
      WHEN p.was_left_out THEN true
      WHEN p.was_number IS NULL THEN NOT (p.atthasmissing OR v_kept)
      WHEN p.was_kind <> p.kind THEN true
      WHEN v_kept AND (p.seen->'type')::bigint = p.type THEN false
      WHEN p.spelled <> p.was_spelled AND NOT right(p.spelled, length(p.was_spelled) + 1)
          = concat('.', p.was_spelled) AND NOT right(p.was_spelled, length(p.spelled) + 1)
          = concat('.', p.spelled)
        THEN NOT (v_kept AND ({bare} = {was_bare}
          OR {bare} IN {_TEXTS} AND {was_bare} IN {_TEXTS}))
      -- A conversion to the same type; other commands that write rows anew alter no column.
      ELSE NOT v_kept AND p.seen IS NOT NULL AND p.seen->>'altered' <> p.altered END AS rewritten,
      CASE WHEN (p.seen->'type')::bigint = p.type THEN (
        SELECT jsonb_object_agg(o.label, l.enumlabel)
        FROM jsonb_each_text(CASE jsonb_typeof(p.seen->'labels') WHEN 'object'
          THEN p.seen->'labels' ELSE '{{}}' END) AS o(id, label)
        JOIN pg_enum l ON l.oid = o.id::oid AND l.enumlabel <> o.label) END AS labels
    FROM pair p)
  SELECT jsonb_build_object('previous', v_before.revision,
      'fills', coalesce(jsonb_object_agg(j.number, j.missing)
        FILTER (WHERE j.was_number IS NULL AND NOT j.rewritten), '{{}}'),
      'rewritten', coalesce(jsonb_agg(j.number ORDER BY j.number) FILTER (WHERE j.rewritten),
        '[]'),
      'labels', coalesce(jsonb_object_agg(j.number, j.labels)
        FILTER (WHERE j.labels IS NOT NULL AND NOT j.rewritten), '{{}}'),
      'readopted', v_parts OR bool_or(j.key AND j.rewritten))
    INTO v_change FROM judged j;
  RETURN v_change;
END $oplog_fn$"""


# -- keeping it -------------------------------------------------------------------------------


def _keep_state(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_keep_state(p_type text, p_table oid) RETURNS void
LANGUAGE sql {_PINNED} AS $oplog_fn$
-- Keeps what the next change is compared with.
INSERT INTO {s}.oplog_type_state (type_name, database_id, table_oid, files, columns)
VALUES (p_type, {s}.oplog_find_database(), p_table, {s}.oplog_list_files(p_table),
  {s}.oplog_list_columns(p_table))
ON CONFLICT (type_name) DO UPDATE SET database_id = excluded.database_id,
  table_oid = excluded.table_oid, files = excluded.files, columns = excluded.columns
$oplog_fn$"""


def _renew_state(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_renew_state(p_type text) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Compares the next change with what the table is now, if nothing became of its rows: a table may
-- have been written anew without any change, and that is not to be taken for one later.
DECLARE
  v_newest {s}.oplog_type;
  v_table oid;
BEGIN
  SELECT * INTO v_newest FROM {s}.oplog_type t WHERE t.type_name = p_type
    ORDER BY t.revision DESC LIMIT 1;
  SELECT n.table_oid::oid INTO v_table FROM {s}.oplog_type_numbers n WHERE n.type_name = p_type
    AND n.revision = v_newest.revision AND n.database_id = {s}.oplog_find_database();
  IF v_table IS NULL OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = v_table)
    OR {s}.oplog_judge_columns(v_table, v_newest.shape->'columns') IS NOT NULL
    OR {s}.oplog_describe_change(p_type, v_newest.shape, v_table) - 'previous' <>
      '{{"fills": {{}}, "rewritten": [], "labels": {{}}, "readopted": false}}' THEN
    RETURN false;
  END IF;
  PERFORM {s}.oplog_keep_state(p_type, v_table);
  RETURN true;
END $oplog_fn$"""


def _raise_epoch(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_raise_epoch() RETURNS void
LANGUAGE sql {_PINNED} AS $oplog_fn$
-- From the COMMIT on, appends of processes that know the types of before are refused.
UPDATE {s}.oplog_epoch SET epoch = epoch + 1
$oplog_fn$"""


def _mark_change(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_mark_change(p_type text, p_revision integer, p_reason text)
RETURNS boolean LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Says in the log that from here on the type's table has the shape of this revision; false if that
-- was said, or if nothing was before it.
BEGIN
  IF p_revision IS DISTINCT FROM (SELECT max(t.revision) FROM {s}.oplog_type t
      WHERE t.type_name = p_type) THEN
    RAISE EXCEPTION USING errcode = '22023', message = concat('oplog: revision ', p_revision,
      ' is not the newest of type ', quote_nullable(p_type)),
      hint = 'oplog types sync stores the types of an application, and says so';
  END IF;
  IF {s}.oplog_is_marked(p_type, p_revision) THEN RETURN false; END IF;
  PERFORM {s}.oplog_write_mark(concat('{ADOPTION_PREFIX}', p_type),
    ARRAY['{SCHEMA_CHANGE}', '{SCHEMA_REVISION}', 'oplog.role', 'oplog.reason'],
    ARRAY[p_type, p_revision::text, session_user::text, left(coalesce(p_reason, ''), 250)]);
  RETURN true;
END $oplog_fn$"""


def _retire_missing(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_retire_missing() RETURNS text[]
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Retires the types whose tables this database had and has no more; their names. Where another
-- table with rows has the name, what became of the type's rows is for op.replace_type to say.
DECLARE
  v_type text;
  v_other regclass;
  v_filled boolean;
  v_retired text[] := '{{}}';
BEGIN
  FOR v_type, v_other IN SELECT t.type_name, to_regclass(concat(quote_ident(k.shape->>'schema'), '.',
      quote_ident(k.shape->>'table')))
    FROM (SELECT n.type_name, max(n.revision) AS revision FROM {s}.oplog_type n GROUP BY 1) t
    JOIN {s}.oplog_type k ON k.type_name = t.type_name AND k.revision = t.revision
    JOIN {s}.oplog_type_numbers n ON n.type_name = t.type_name AND n.revision = t.revision
      AND n.database_id = {s}.oplog_find_database()
    WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = n.table_oid::oid)
      AND NOT {s}.oplog_is_retired(t.type_name, t.revision) ORDER BY 1
  LOOP
    IF v_other IS NOT NULL THEN
      EXECUTE concat('SELECT EXISTS (SELECT FROM ', v_other, ')') INTO v_filled;
      CONTINUE WHEN v_filled;
    END IF;
    PERFORM {s}.oplog_retire_type(v_type, 'its table was dropped');
    v_retired := v_retired || v_type;
  END LOOP;
  IF v_retired <> '{{}}' THEN PERFORM {s}.oplog_raise_epoch(); END IF;
  RETURN v_retired;
END $oplog_fn$"""
