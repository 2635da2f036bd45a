"""Functions by which roles make their types and keys known to the log, as DDL.

What is registered is read by everybody who reads the log. So the function compares a type with the
catalog of the database: its table has to be there, with these columns, and the role has to have a
right to write it. Where the columns stand is read from the catalog, not from the caller.
"""

from __future__ import annotations

from oplog.payload.shape import DERIVED, FIRST_RESERVED, LAST_RESERVED
from oplog.schema.touched_keys import DEFINER

MAX_TYPE_NAME_BYTES = 512
MAX_SHAPE_BYTES = 1024 * 1024
MAX_DESCRIPTOR_BYTES = 4 * 1024 * 1024
MAX_TYPES_BYTES = 256 * 1024 * 1024
"""Of all types together: readers hold them in memory. Members of the log's owner may store more."""
_REVISIONS_AHEAD = 1000
"""An application that numbers its revisions may leave so many out."""
_NUMBERS_AHEAD = 2000
"""Field numbers may be so far over the highest known one: of a table with very many columns."""
KEY_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
CHECK_VALUE_BYTES = 32
REPLACED = "replaced"
"""In the reasons that `op.replace_type` is the remedy for."""
NOT_PROVEN = "OP012"
"""SQLSTATE of a type whose table or key was replaced: nobody said what became of its rows."""
_SHAPE_KEYS = "aggregate,columns,excluded,message,schema,table"
_COLUMN_KEYS = "category,field,kind,name,number,pg_type,primary_key"

REGISTERING = ("register_type(text, integer, jsonb, bytea)", "register_key(text, bytea)")
"""Functions to drop, without the prefix of their names."""
REGISTERING_HELPERS = (
    "judge_shape(jsonb)",
    "judge_columns(oid, jsonb)",
    "judge_succession(text, integer, jsonb, oid)",
    "judge_identity(text, jsonb, oid)",
    "store_type(text, integer, jsonb, bytea, oid, jsonb)",
    "replace_type(text, integer, jsonb, bytea)",
)


def create_registering_statements(s: str) -> list[str]:
    """Statements that create the functions in the quoted schema `s`."""
    return [
        _judge_shape(s),
        _judge_columns(s),
        _judge_identity(s),
        _judge_succession(s),
        _store_type(s),
        _register_type(s),
        _replace_type(s),
        _register_key(s),
    ]


def _list_keys(value: str) -> str:
    return (
        "(SELECT string_agg(k.name, ',' ORDER BY k.name COLLATE \"C\") "
        f"FROM jsonb_object_keys({value}) AS k(name))"
    )


def _judge_shape(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_judge_shape(p_shape jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Why this is not the form of a shape; NULL if it is.
BEGIN
  IF jsonb_typeof(p_shape) <> 'object' OR {_list_keys("p_shape")} <> '{_SHAPE_KEYS}' THEN
    RETURN 'its shape does not have the fields of one';
  END IF;
  IF EXISTS (SELECT FROM jsonb_each(p_shape) AS f(name, value) WHERE jsonb_typeof(f.value) <>
      (CASE f.name WHEN 'columns' THEN 'array' WHEN 'excluded' THEN 'object' ELSE 'string' END))
    OR EXISTS (SELECT FROM jsonb_each(p_shape->'excluded') AS e(name, value)
      WHERE jsonb_typeof(e.value) <> 'string')
    OR EXISTS (SELECT FROM jsonb_array_elements(p_shape->'columns') AS c(column_)
      WHERE jsonb_typeof(c.column_) <> 'object') THEN
    RETURN 'a field of its shape has another type';
  END IF;
  IF EXISTS (SELECT FROM jsonb_array_elements(p_shape->'columns') AS c(column_)
      WHERE {_list_keys("c.column_")} IS DISTINCT FROM '{_COLUMN_KEYS}') THEN
    RETURN 'a column of its shape does not have the fields of one';
  END IF;
  IF EXISTS (SELECT FROM jsonb_array_elements(p_shape->'columns') AS c(column_),
      jsonb_each(c.column_) AS f(name, value) WHERE jsonb_typeof(f.value) <>
        CASE f.name WHEN 'number' THEN 'number' WHEN 'primary_key' THEN 'boolean' ELSE 'string' END
      OR f.name = 'number' AND f.value #>> '{{}}' !~ '^[1-9][0-9]{{0,8}}$'
      OR f.name = 'kind' AND f.value #>> '{{}}'
        NOT IN ('bool', 'int', 'float4', 'float8', 'bytes', 'text')
      OR f.name = 'field' AND octet_length(f.value #>> '{{}}') NOT BETWEEN 1 AND 255) THEN
    RETURN 'a field of a column of its shape has another type';
  END IF;
  IF (SELECT count(*) <> count(DISTINCT c.column_->>'name')
        OR count(*) <> count(DISTINCT c.column_->>'field')
        OR count(*) <> count(DISTINCT c.column_->>'number')
        OR count(*) = 0
        OR bool_or((c.column_->>'number')::bigint BETWEEN {FIRST_RESERVED} AND {LAST_RESERVED})
      FROM jsonb_array_elements(p_shape->'columns') AS c(column_)) THEN
    RETURN 'columns of its shape have the same name, field or number, or a reserved one';
  END IF;
  -- Protobuf makes a message of these fields, and refuses two with the same name in JSON.
  IF starts_with(p_shape->>'message', '{DERIVED}.') AND (
      SELECT bool_or(f.name !~ '^[a-z][a-z0-9_]*$') OR count(*) <> count(DISTINCT f.in_json)
      FROM jsonb_array_elements(p_shape->'columns') AS c(column_),
        LATERAL (SELECT c.column_->>'field', string_agg(CASE p.n WHEN 1 THEN p.part
            ELSE concat(upper(left(p.part, 1)), substr(p.part, 2)) END, '' ORDER BY p.n)
          FROM regexp_split_to_table(c.column_->>'field', '_+') WITH ORDINALITY AS p(part, n))
          AS f(name, in_json)) THEN
    RETURN 'its message has fields that no derived message has';
  END IF;
  RETURN NULL;
END $oplog_fn$"""


def _judge_columns(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_judge_columns(p_table oid, p_columns jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Why these are not columns of the table; NULL if they are. Types of domains are those below.
-- The caller may have spelled types of its search path without their schema.
DECLARE
  v_name text;
BEGIN
  WITH RECURSIVE base AS (
    SELECT a.attnum, a.attname, a.atttypid AS type, a.atttypmod AS modifier
    FROM pg_attribute a WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT b.attnum, b.attname, t.typbasetype,
      CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE b.modifier END
    FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'),
  live AS (
    SELECT b.attname::text AS name, format_type(b.type, b.modifier) AS spelled,
      concat(quote_ident(n.nspname), '.') AS prefix,
      CASE t.typtype WHEN 'e' THEN 'E' ELSE '' END AS category,
      EXISTS (SELECT FROM pg_index i WHERE i.indrelid = p_table AND i.indisprimary
        AND b.attnum = ANY (i.indkey::smallint[])) AS primary_key
    FROM base b JOIN pg_type t ON t.oid = b.type AND t.typtype <> 'd'
    JOIN pg_namespace n ON n.oid = t.typnamespace),
  given AS (
    SELECT c.column_->>'name' AS name, c.column_->>'pg_type' AS spelled,
      c.column_->>'category' AS category, (c.column_->>'primary_key')::boolean AS primary_key
    FROM jsonb_array_elements(p_columns) AS c(column_))
  SELECT coalesce(g.name, l.name) INTO v_name
  FROM given g FULL JOIN live l ON l.name = g.name
  WHERE g.name IS NULL AND l.primary_key OR g.name IS NOT NULL AND (
    l.name IS NULL OR g.category <> l.category OR g.primary_key <> l.primary_key
    OR g.spelled <> l.spelled
      AND (NOT starts_with(l.spelled, l.prefix) OR g.spelled <> substr(l.spelled,
        length(l.prefix) + 1)))
  ORDER BY 1 LIMIT 1;
  RETURN CASE WHEN v_name IS NOT NULL
    THEN concat('its column ', quote_ident(v_name), ' is not that of the table') END;
END $oplog_fn$"""


def _judge_succession(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_judge_succession(
  p_type text, p_revision integer, p_shape jsonb, p_table oid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Why this cannot be the next revision of the type; NULL if it can.
DECLARE
  v_newest integer := coalesce((SELECT max(t.revision) FROM {s}.oplog_type t
    WHERE t.type_name = p_type), 0);
  v_other text;
BEGIN
  IF p_revision NOT BETWEEN 1 AND v_newest + (CASE
      WHEN starts_with(p_shape->>'message', '{DERIVED}.') THEN 1 ELSE {_REVISIONS_AHEAD} END) THEN
    RETURN concat('its newest revision is ', v_newest);
  END IF;
  IF (SELECT max((c.column_->>'number')::bigint)
      FROM jsonb_array_elements(p_shape->'columns') AS c(column_)) > {_NUMBERS_AHEAD} + (
      SELECT coalesce(max((c.column_->>'number')::bigint), 0) FROM {s}.oplog_type t,
        jsonb_array_elements(t.shape->'columns') AS c(column_) WHERE t.type_name = p_type)
    AND starts_with(p_shape->>'message', '{DERIVED}.') THEN
    RETURN 'a field number leaves too many out';
  END IF;
  -- Rows of two tables in one type could not be told apart. By oid where this database has had the
  -- type: a table that was renamed or moved is the same.
  SELECT concat(quote_ident(n.nspname), '.', quote_ident(c.relname)) INTO v_other
  FROM {s}.oplog_type t
  LEFT JOIN {s}.oplog_type_numbers k ON k.type_name = t.type_name AND k.revision = t.revision
    AND k.database_id = {s}.oplog_find_database()
  JOIN pg_class c ON CASE WHEN k.table_oid IS NULL THEN c.relname = t.shape->>'table'
    AND c.relnamespace = to_regnamespace(quote_ident(t.shape->>'schema'))
    ELSE c.oid = k.table_oid::oid END
  JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE t.type_name = p_type AND t.revision = v_newest AND c.oid <> p_table;
  IF FOUND THEN
    RETURN concat('it is table ', v_other, ' in the log, which is still there');
  END IF;
  IF v_newest > 0 AND NOT {s}.oplog_is_retired(p_type, v_newest) THEN
    RETURN {s}.oplog_judge_identity(p_type, p_shape, p_table);
  END IF;
  RETURN NULL;
END $oplog_fn$"""


def _judge_identity(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_judge_identity(p_type text, p_shape jsonb, p_table oid)
RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Why rows of this table cannot go on those that the type has; NULL if they can. What the catalog
-- does not prove is for op.replace_type to say.
DECLARE
  v_before {s}.oplog_type;
  v_numbers {s}.oplog_type_numbers;
BEGIN
  SELECT * INTO v_before FROM {s}.oplog_type t WHERE t.type_name = p_type
    ORDER BY t.revision DESC LIMIT 1;
  SELECT * INTO v_numbers FROM {s}.oplog_type_numbers n WHERE n.type_name = p_type
    AND n.revision = v_before.revision AND n.database_id = {s}.oplog_find_database();
  IF v_numbers.table_oid <> p_table::bigint THEN
    RETURN CASE WHEN {s}.oplog_is_filled(p_table)
      THEN 'its table was {REPLACED} by another one of that name, which has rows'
      ELSE 'its table was dropped, and the type is not retired yet' END;
  END IF;
  IF (SELECT array_agg(k.part ORDER BY k.part) FROM
        (SELECT coalesce(v_numbers.columns->>(c.value->>'name'), c.value->>'name') AS part
          FROM jsonb_array_elements(v_before.shape->'columns') AS c(value)
          WHERE (c.value->>'primary_key')::boolean) AS k)
    IS DISTINCT FROM (SELECT array_agg(k.part ORDER BY k.part) FROM
        (SELECT CASE WHEN v_numbers.columns IS NULL THEN a.attname::text
            ELSE a.attnum::text END AS part
          FROM jsonb_array_elements(p_shape->'columns') AS c(value)
          JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.value->>'name'
          WHERE (c.value->>'primary_key')::boolean) AS k) THEN
    RETURN 'its primary key was {REPLACED} by one of other columns';
  END IF;
  RETURN {s}.oplog_judge_numbers(p_type, p_shape, p_table);
END $oplog_fn$"""


def _register_type(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_register_type(
  p_type text, p_revision integer, p_shape jsonb, p_descriptor bytea) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Stores a revision of a type, and where this database keeps its columns; false if both were there.
DECLARE
  v_caller name := CASE current_setting('role') WHEN 'none' THEN session_user
    ELSE current_setting('role') END;
  v_table oid;
  v_why text;
BEGIN
  {_judge_type(s)}
  {_judge_total(s)}
  IF v_why IS NOT NULL THEN
    RAISE EXCEPTION USING
      errcode = CASE WHEN v_why ~ ' was {REPLACED} by ' THEN '{NOT_PROVEN}' ELSE '22023' END,
      message = concat('oplog: type ', quote_literal(left(p_type, 200)), ' is not registered: ',
        v_why),
      hint = CASE WHEN v_why ~ ' was {REPLACED} by ' THEN concat('if its rows are to be logged ',
          'anew, say so in the migration, before it writes them: op.replace_type(',
          quote_literal(p_type), ', reason=...)')
        ELSE 'oplog types sync stores the types of an application, as a role that may' END;
  END IF;
  RETURN {s}.oplog_store_type(p_type, p_revision, p_shape, p_descriptor, v_table,
    {s}.oplog_describe_change(p_type, p_shape, v_table));
END $oplog_fn$"""


def _store_type(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_store_type(p_type text, p_revision integer,
  p_shape jsonb, p_descriptor bytea, p_table oid, p_change jsonb) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_types integer;
  v_numbers integer;
BEGIN
  INSERT INTO {s}.oplog_type (type_name, revision, shape, descriptor, change)
  VALUES (p_type, p_revision, p_shape, p_descriptor, p_change) ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS v_types = ROW_COUNT;
  INSERT INTO {s}.oplog_type_numbers (type_name, revision, database_id, table_oid, columns)
  SELECT t.type_name, t.revision, {s}.oplog_find_database(), p_table,
    (SELECT jsonb_object_agg(a.attname, a.attnum) FROM pg_attribute a
      WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped)
  FROM {s}.oplog_type t
  WHERE t.type_name = p_type AND t.revision = p_revision AND t.shape = p_shape
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS v_numbers = ROW_COUNT;
  IF v_types > 0 OR NOT EXISTS (SELECT FROM {s}.oplog_type_state t WHERE t.type_name = p_type
      AND t.database_id = {s}.oplog_find_database() AND t.table_oid = p_table::bigint) THEN
    PERFORM {s}.oplog_keep_state(p_type, p_table);
  END IF;
  IF v_types > 0 AND (p_change->>'previous')::integer > 0 THEN
    PERFORM {s}.oplog_raise_epoch();
    -- Who may pass unlogged is declared by the name of a table, which was renamed or moved.
    UPDATE {s}.oplog_guard g SET schema_name = p_shape->>'schema', table_name = p_shape->>'table'
    FROM {s}.oplog_type t
    WHERE t.type_name = p_type AND t.revision = (p_change->>'previous')::integer
      AND g.schema_name = t.shape->>'schema' AND g.table_name = t.shape->>'table'
      AND to_regclass(concat(quote_ident(g.schema_name), '.', quote_ident(g.table_name))) IS NULL
      AND NOT EXISTS (SELECT FROM {s}.oplog_guard o WHERE o.schema_name = p_shape->>'schema'
        AND o.table_name = p_shape->>'table');
  END IF;
  RETURN v_types + v_numbers > 0;
END $oplog_fn$"""


def _replace_type(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_replace_type(
  p_type text, p_revision integer, p_shape jsonb, p_descriptor bytea) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Stores a revision of a type whose rows are all logged anew, whatever table or key it had.
DECLARE
  v_table oid := (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = p_shape->>'schema' AND c.relname = p_shape->>'table'
      AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't');
  v_newest integer := (SELECT max(t.revision) FROM {s}.oplog_type t WHERE t.type_name = p_type);
  v_why text := CASE WHEN v_newest IS NULL THEN 'the log does not have it'
    WHEN p_revision <> v_newest + 1 THEN concat('its newest revision is ', v_newest)
    WHEN v_table IS NULL THEN 'its table is not in the database'
    ELSE coalesce({s}.oplog_judge_shape(p_shape),
      {s}.oplog_judge_columns(v_table, p_shape->'columns')) END;
BEGIN
  IF v_why IS NOT NULL THEN
    RAISE EXCEPTION USING errcode = '22023', message = concat('oplog: type ',
      quote_literal(left(p_type, 200)), ' cannot be replaced: ', v_why),
      hint = '`oplog types list` shows the types of the log';
  END IF;
  PERFORM {s}.oplog_store_type(p_type, p_revision, p_shape, p_descriptor, v_table,
    jsonb_build_object('previous', v_newest, 'fills', '{{}}'::jsonb, 'rewritten', '[]'::jsonb,
      'labels', '{{}}'::jsonb, 'readopted', true));
END $oplog_fn$"""


def _judge_total(s: str) -> str:
    """PL/pgSQL that sets `v_why` if readers could not hold the types with one more."""
    return f"""IF v_why IS NULL AND NOT pg_has_role(session_user, current_user, 'MEMBER')
    AND NOT EXISTS (SELECT FROM {s}.oplog_type t
      WHERE t.type_name = p_type AND t.revision = p_revision)
    AND (SELECT sum(octet_length(t.descriptor)::bigint + octet_length(t.shape::text))
      FROM {s}.oplog_type t) > {MAX_TYPES_BYTES} THEN
    v_why := 'the types of the log have {MAX_TYPES_BYTES // 1024 // 1024} MiB already';
  END IF;"""


def _judge_type(s: str) -> str:
    """PL/pgSQL that finds the table, and sets `v_why` if the type cannot be registered."""
    return f"""IF p_type IS NULL OR octet_length(p_type) NOT BETWEEN 1 AND {MAX_TYPE_NAME_BYTES}
    OR p_revision IS NULL OR p_shape IS NULL OR octet_length(p_shape::text) > {MAX_SHAPE_BYTES}
    OR p_descriptor IS NULL OR octet_length(p_descriptor) > {MAX_DESCRIPTOR_BYTES} THEN
    v_why := 'a value is missing or too long';
  ELSE
    v_why := {s}.oplog_judge_shape(p_shape);
  END IF;
  IF v_why IS NULL THEN
    SELECT c.oid INTO v_table FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = p_shape->>'schema' AND c.relname = p_shape->>'table'
      AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't';
    v_why := CASE WHEN v_table IS NULL THEN 'its table is not in the database'
      WHEN NOT (pg_has_role(session_user, current_user, 'MEMBER')
        OR has_table_privilege(v_caller, v_table, 'INSERT, UPDATE, DELETE')
        OR has_any_column_privilege(v_caller, v_table, 'INSERT, UPDATE'))
      THEN concat('role ', quote_ident(v_caller), ' may not write its table')
      ELSE coalesce({s}.oplog_judge_columns(v_table, p_shape->'columns'),
        {s}.oplog_judge_succession(p_type, p_revision, p_shape, v_table)) END;
  END IF;"""


def _register_key(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_register_key(p_key_id text, p_check_value bytea)
RETURNS void LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- The check value tells a wrong key from damaged data, and not what the key is.
BEGIN
  IF p_key_id IS NULL OR p_key_id !~ '{KEY_ID_PATTERN}'
    OR p_check_value IS NULL OR octet_length(p_check_value) <> {CHECK_VALUE_BYTES} THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: this is not a key of a keyring',
      hint = 'an attached session registers the key that it seals with';
  END IF;
  INSERT INTO {s}.oplog_key (key_id, check_value) VALUES (p_key_id, p_check_value)
  ON CONFLICT DO NOTHING;
END $oplog_fn$"""
