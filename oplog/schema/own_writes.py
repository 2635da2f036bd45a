"""The function that reads rows which the transaction itself has written, as DDL.

What a guard saw has to be logged as it is stored, and not as the role of COMMIT may see it: row
security, a setting that was reset or another role hide rows that were written a moment before. So
the log's owner reads them, of guarded tables alone, and nothing but row versions that are this
transaction's own.
"""

from __future__ import annotations

from oplog.schema.touched_keys import DEFINER
from oplog.schema.trusted_tables import refuse_foreign_table


def read_written_function(s: str, p: str) -> str:
    """The function, in the quoted schema `s` with settings' prefix `p`."""
    return f"""CREATE FUNCTION {s}.oplog_read_written(
  p_table oid, p_key text[], p_keys text[], p_columns text[])
RETURNS TABLE (n bigint, texts text[])
LANGUAGE plpgsql {DEFINER} SET row_security = off AS $oplog_fn$
-- Columns, as text, of rows that this transaction wrote. p_key names the columns of the primary
-- key, p_keys has their texts, row by row; n counts these rows. Of others nothing is given, so
-- that a role learns of no row but those that it wrote, and of columns only what it may read or
-- write. If the owner of the log is itself under row security, that is an error.
DECLARE
  v_width int := cardinality(p_key);
  v_columns text;
  v_where text;
  v_found int;
  v_given text;
  v_refused text;
BEGIN
  PERFORM {s}.oplog_require_guard(p_table, '{p}_guard_armed');
  {refuse_foreign_table(s, "p_table")}
  {_refuse_columns()}
  {_find_operators()}
  IF v_found <> v_width OR v_found <> (SELECT i.indnkeyatts FROM pg_index i
      WHERE i.indrelid = p_table AND i.indisprimary) OR mod(cardinality(p_keys), v_width) <> 0 THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = concat('oplog: that is not the primary key of ', p_table::regclass,
        ', or a cast from text to its type is not the owner''s');
  END IF;
  SELECT string_agg(concat('t.', quote_ident(c.name),
      CASE WHEN a.atttypid = 'xml'::regtype THEN '::text::xml' END, '::text'), ', ' ORDER BY c.n)
    INTO v_columns
  FROM unnest(p_columns) WITH ORDINALITY AS c(name, n)
  LEFT JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.name;
  IF v_width = 1 THEN
    v_given := 'unnest($1) WITH ORDINALITY AS k(k1, n)';
  ELSE
    SELECT concat('(SELECT (u.e - 1) / ', v_width, ' + 1 AS n, ', string_agg(concat(
        'max(u.v) FILTER (WHERE mod(u.e - 1, ', v_width, ') = ', g - 1, ') AS k', g), ', '),
        ' FROM unnest($1) WITH ORDINALITY AS u(v, e) GROUP BY 1) k')
      INTO v_given FROM generate_series(1, v_width) g;
  END IF;
  -- A row that is seen and whose writer is in progress is the transaction's own, also if a
  -- savepoint wrote it. OFFSET 0 has the key looked up for each row.
  RETURN QUERY EXECUTE concat('SELECT k.n, r.texts FROM ', v_given, ' CROSS JOIN LATERAL '
    '(SELECT ARRAY[', v_columns, ']::text[] AS texts, t.xmin AS writer FROM ', p_table::regclass,
    ' t WHERE ', v_where, ' OFFSET 0) r '
    'WHERE pg_xact_status(($2 - (($2 - r.writer::text::bigint) & 4294967295))::text::xid8) '
    '= ''in progress''')
  USING p_keys, pg_current_xact_id()::text::bigint + 2147483647;
END $oplog_fn$"""


def _refuse_columns() -> str:
    """Raise for a column that the caller may neither read nor write.

    The caller is the login, as any role that it may take on: which one wrote is not known any more.
    A name that is no column's would be a function's.
    """
    return """SELECT c.name INTO v_refused FROM unnest(p_columns) AS c(name)
  LEFT JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.name
    AND a.attnum > 0 AND NOT a.attisdropped
  WHERE a.attnum IS NULL OR NOT EXISTS (SELECT FROM pg_roles r
    WHERE pg_has_role(session_user, r.oid, 'MEMBER')
      AND has_column_privilege(r.oid, p_table, a.attnum, 'SELECT, INSERT, UPDATE')) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION USING errcode = '42501',
      message = concat('oplog: permission denied for column ', quote_ident(v_refused),
        ' of table ', p_table::regclass),
      hint = 'what a transaction wrote is read for the log: grant SELECT on the column to the role';
  END IF;"""


def _find_operators() -> str:
    """The condition that finds a row by its key, of operators by their names in full.

    Those of an extension's types are in another schema. A cast from text that is not the owner's
    would run with its rights, and so would the CHECK of a domain: hence its base type.
    """
    return """SELECT count(DISTINCT a.attnum), string_agg(concat('t.', quote_ident(a.attname),
      CASE WHEN b.type <> a.atttypid THEN concat('::', b.spelled) END,
      ' OPERATOR(', quote_ident(s.nspname), '.', o.oprname, ') k.k', c.n, '::',
      b.spelled), ' AND ' ORDER BY c.n)
    INTO v_found, v_where
  FROM unnest(p_key) WITH ORDINALITY AS c(name, n)
  JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = c.name AND NOT a.attisdropped
  JOIN pg_index i ON i.indrelid = p_table AND i.indisprimary
  CROSS JOIN LATERAL (
    WITH RECURSIVE typed AS (
      SELECT a.atttypid AS type, a.atttypmod AS modifier, 0 AS depth
      UNION ALL SELECT d.typbasetype, -1, y.depth + 1
      FROM typed y JOIN pg_type d ON d.oid = y.type AND d.typtype = 'd')
    SELECT y.type, format_type(y.type, y.modifier) AS spelled
    FROM typed y ORDER BY y.depth DESC LIMIT 1) b
  CROSS JOIN LATERAL ROWS FROM (unnest(i.indkey::smallint[]), unnest(i.indclass::oid[]))
    AS x(attnum, class)
  JOIN pg_opclass f ON f.oid = x.class
  JOIN pg_amop m ON m.amopfamily = f.opcfamily AND m.amopstrategy = 3
    AND m.amoplefttype = f.opcintype AND m.amoprighttype = f.opcintype
  JOIN pg_operator o ON o.oid = m.amopopr
  JOIN pg_namespace s ON s.oid = o.oprnamespace
  WHERE x.attnum = a.attnum AND NOT EXISTS (
    WITH RECURSIVE typed AS (
      SELECT a.atttypid AS type UNION SELECT d.typbasetype
      FROM typed JOIN pg_type d ON d.oid = typed.type AND d.typtype = 'd')
    SELECT FROM typed JOIN pg_cast y ON y.casttarget = typed.type
    JOIN pg_proc z ON z.oid = y.castfunc
    WHERE y.castsource = 'text'::regtype
      AND NOT pg_has_role(z.proowner, current_user, 'MEMBER'));"""
