"""The check that a guard's function was called by a whole guard of the log's own, as DDL.

Guards' functions run with the rights of the log's owner. A trigger that calls one and that the log
did not make could have it read a relation of the caller's instead of the changed rows, and a cast
of the caller's would run in it. Nobody may make such a trigger now; those that were made before
PUBLIC lost EXECUTE still stand.
"""

from __future__ import annotations

UNGUARDED = "OP007"
"""SQLSTATE of a guard's function that is called where the log's own guard does not stand."""
_FIRST_OWN_OID = 16384
"""What the server itself brings has lower oids."""


def require_guard_function(s: str, p: str) -> str:
    """The function, in the quoted schema `s` with settings' prefix `p`."""
    check = f"{s}.oplog_guard_check()".replace("'", "''")
    return f"""CREATE FUNCTION {s}.oplog_require_guard(p_table oid, p_trigger name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Refuses a call that does not come from a trigger of the log's own, in a guard that is whole.
DECLARE
  v_temporary boolean;
  v_part boolean;
  v_armed boolean;
  v_column name;
  v_why text;
BEGIN
  SELECT c.relpersistence = 't', starts_with(g.tgname, '{p}_guard_')
      AND (g.tgoldtable, g.tgnewtable) IS NOT DISTINCT FROM (
        CASE WHEN g.tgname IN ('{p}_guard_update', '{p}_guard_delete') THEN 'oplog_old' END::name,
        CASE WHEN g.tgname IN ('{p}_guard_update', '{p}_guard_insert') THEN 'oplog_new' END::name),
      a.tgrelid IS NOT NULL
    INTO v_temporary, v_part, v_armed
  FROM pg_class c
  LEFT JOIN pg_trigger g ON g.tgrelid = c.oid AND g.tgname = p_trigger
  LEFT JOIN pg_trigger a ON a.tgrelid = c.oid
    AND a.tgname = '{p}_guard_armed' AND a.tgdeferrable AND a.tgenabled <> 'D'
    AND a.tgfoid = '{check}'::regprocedure
  WHERE c.oid = p_table;
  IF v_temporary THEN
    v_why := 'it is temporary';
  ELSIF v_part IS NOT TRUE THEN
    v_why := concat('trigger ', quote_ident(p_trigger), ' is not one of a guard');
  ELSIF NOT v_armed THEN
    v_why := 'the trigger {p}_guard_armed is missing or disabled';
  ELSIF {_has_no_own_cast()} THEN
    RETURN;
  ELSE
    {_find_foreign_cast()}
    IF NOT FOUND THEN RETURN; END IF;
    v_why := concat('the type of column ', quote_ident(v_column),
      ' has a cast to text that the owner of the log does not own');
  END IF;
  RAISE EXCEPTION USING errcode = '{UNGUARDED}',
    message = concat('oplog: the log does not guard ', p_table::regclass, ': ', v_why),
    hint = 'op.track_tables puts a whole guard on a table, as the role that owns the log; '
      'drop triggers that call functions of the log and are not part of one';
END $oplog_fn$"""


def _has_no_own_cast() -> str:
    """Most databases have no cast to text but those that the server brings."""
    return f"""NOT EXISTS (SELECT FROM pg_cast x WHERE x.oid >= {_FIRST_OWN_OID}
      AND x.casttarget = 'text'::regtype AND x.castfunc <> 0::oid)"""


def _find_foreign_cast() -> str:
    """A column whose cast is not the owner's, or of a role that may become one: those are harmless.

    Domains are looked through.
    """
    return """WITH RECURSIVE typed AS (
      SELECT a.attname, a.atttypid AS type FROM pg_attribute a
      WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
      UNION SELECT d.attname, t.typbasetype FROM typed d
      JOIN pg_type t ON t.oid = d.type AND t.typtype = 'd')
    SELECT d.attname INTO v_column
    FROM typed d JOIN pg_cast x ON x.castsource = d.type AND x.casttarget = 'text'::regtype
    JOIN pg_proc f ON f.oid = x.castfunc
    WHERE NOT pg_has_role(f.proowner, current_user, 'MEMBER') LIMIT 1;"""
