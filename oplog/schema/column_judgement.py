"""Functions that compare a table with what a type's newest revision says of it, as DDL.

A column is the same as long as its number in the catalog is. Whether rows are what they were is
told by the files that hold them, by defaults that are kept beside the table, and by the transaction
that last altered a column.
"""

from __future__ import annotations

from oplog.schema.touched_keys import DEFINER
from oplog.value import TEXT_SETTINGS

PINNED = "SET search_path = pg_catalog, pg_temp"
_TEXT = " ".join(f"SET {name} = '{value}'" for name, value in TEXT_SETTINGS.items())


def _pair_columns() -> str:
    """CTEs: `pair` has each column of `p_shape` with what it was in the newest revision."""
    return """given AS (
    SELECT (c.value->>'number')::integer AS number, c.value->>'name' AS name,
      c.value->>'pg_type' AS spelled, c.value->>'kind' AS kind,
      (c.value->>'primary_key')::boolean AS key, a.attnum, m.missing IS NOT NULL AS atthasmissing,
      m.missing[1] AS missing, a.xmin::text AS altered, a.atttypid::bigint AS type
    FROM jsonb_array_elements(p_shape->'columns') AS c(value)
    JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.value->>'name'
      AND a.attnum > 0 AND NOT a.attisdropped
    -- A partitioned table has no rows of its own: its partitions keep the default of theirs.
    LEFT JOIN LATERAL (SELECT l.attmissingval::text::text[] AS missing
      FROM (SELECT p_table AS relid UNION SELECT t.relid FROM pg_partition_tree(p_table) t) r
      JOIN pg_attribute l ON l.attrelid = r.relid AND l.attname = a.attname
        AND l.atthasmissing AND NOT l.attisdropped LIMIT 1) m ON true),
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


def judge_numbers(s: str) -> str:
    """The function that compares field numbers with those of earlier revisions."""
    return f"""CREATE FUNCTION {s}.oplog_judge_numbers(p_type text, p_shape jsonb, p_table oid)
RETURNS text LANGUAGE plpgsql STABLE {PINNED} AS $oplog_fn$
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


def describe_change(s: str) -> str:
    """The function that says what became of a type's rows."""
    return f"""CREATE FUNCTION {s}.oplog_describe_change(p_type text, p_shape jsonb, p_table oid)
RETURNS jsonb LANGUAGE plpgsql STABLE {DEFINER} {_TEXT} AS $oplog_fn$
-- What became of rows of the newest revision if the table has this shape now.
DECLARE
  v_before {s}.oplog_type;
  v_numbers jsonb;
  v_state {s}.oplog_type_state;
  v_files jsonb := {s}.oplog_list_files(p_table);
  v_kept boolean;
  v_parts boolean;
  v_part regclass;
  v_change jsonb;
BEGIN
  IF p_type IS NULL OR p_table IS NULL OR p_shape IS NULL
    OR {s}.oplog_judge_shape(p_shape) IS NOT NULL THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = 'oplog: what is to be described is not the shape of a type',
      hint = 'log.check_types compares the types of an application with its tables';
  END IF;
  {_find_before(s)}
  IF v_before.revision IS NULL OR {s}.oplog_is_retired(p_type, v_before.revision) THEN
    RETURN jsonb_build_object('previous', 0, 'fills', '{{}}'::jsonb, 'rewritten', '[]'::jsonb,
      'labels', '{{}}'::jsonb, 'readopted', false);
  END IF;
  SELECT * INTO v_state FROM {s}.oplog_type_state t WHERE t.type_name = p_type
    AND t.database_id = {s}.oplog_find_database() AND t.table_oid = p_table;
  {_compare_files(s)}
  WITH {_pair_columns()},
  judged AS ({_judge_pairs(s)})
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


def _compare_files(s: str) -> str:
    """PL/pgSQL: whether rows are where they were, and whether partitions brought or took some."""
    return f"""-- Whether every file that was there is: nothing has rewritten rows then.
  v_kept := v_state.files IS NOT NULL AND NOT EXISTS (
    SELECT FROM jsonb_each(v_files) AS f(relation, file)
    WHERE v_state.files->f.relation <> f.file);
  -- Rows of a partition come and go with it, past every trigger. One that was created as such was
  -- empty: its columns are as old as its place in the tree, or of an earlier command of that
  -- transaction; ATTACH writes them anew.
  v_parts := v_state.files IS NOT NULL AND EXISTS (
    SELECT FROM jsonb_object_keys(v_state.files) AS f(relation) WHERE NOT v_files ? f.relation);
  FOR v_part IN SELECT DISTINCT f.relation::oid::regclass
    FROM jsonb_object_keys(v_files) AS f(relation)
    CROSS JOIN pg_partition_ancestors(f.relation::oid::regclass) AS r(relid)
    JOIN pg_inherits h ON h.inhrelid = r.relid
    JOIN pg_attribute a ON a.attrelid = r.relid AND a.attnum = -1
    WHERE v_state.files IS NOT NULL AND NOT v_parts AND NOT v_state.files ? f.relation
      AND NOT EXISTS (SELECT FROM pg_partition_tree(r.relid) t
        WHERE v_state.files ? t.relid::oid::text)
      AND (a.xmin <> h.xmin OR NOT EXISTS (SELECT FROM pg_attribute u
        WHERE u.attrelid = r.relid AND u.attnum > 0 AND u.xmin = h.xmin
          AND u.cmin::text::bigint < h.cmin::text::bigint))
  LOOP
    -- An empty one brought nothing.
    v_parts := {s}.oplog_is_filled(v_part);
    EXIT WHEN v_parts;
  END LOOP;"""


def _judge_made(s: str) -> str:
    """A condition: of what the column's type is made reads otherwise in every row that has it."""
    return f"""EXISTS (SELECT FROM jsonb_each(CASE jsonb_typeof(p.seen->'made') WHEN 'object'
        THEN p.seen->'made' ELSE '{{}}' END) AS o(name, value)
      FULL JOIN jsonb_each(coalesce({s}.oplog_list_made(p.type::oid), '{{}}')) AS n(name, value)
        ON o.name = n.name
      -- A label that was added is in no row.
      WHERE CASE WHEN starts_with(coalesce(o.name, n.name), 'label ') THEN o.value <> n.value
        ELSE o.value IS DISTINCT FROM n.value END)"""


def _judge_pairs(s: str) -> str:
    """The query: of each column, whether its values were rewritten, and labels renamed."""
    bare, was_bare = (
        f"regexp_replace({column}, '[(][0-9, -]*[)]', '')"
        for column in ("p.spelled", "p.was_spelled")
    )
    return f"""SELECT p.*, CASE
      WHEN p.was_left_out THEN true
      WHEN p.was_number IS NULL THEN NOT (p.atthasmissing OR v_kept)
      WHEN p.was_kind <> p.kind THEN true
      WHEN (p.seen->'type')::bigint = p.type AND p.seen ? 'made' AND {_judge_made(s)} THEN true
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
    FROM pair p"""
