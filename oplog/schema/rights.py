"""Which role may do what with the log's tables and functions, as DDL and as a query.

PostgreSQL lets PUBLIC execute every new function, and ALTER DEFAULT PRIVILEGES gives rights on
every new table. So rights beyond these are found in the catalog and revoked one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oplog.postgres.quoting import quote
from oplog.schema.locks import LOCK_TABLES
from oplog.schema.partitions import PARTITION_PATTERN

READER_EXECUTES = ("describe_change", "is_marked", "is_retired")
"""What tells how a table that was migrated reads by the log."""
APPLICATION_EXECUTES = (
    "append",
    "settle",
    "collect_images",
    "read_written",
    "register_type",
    "register_key",
    *READER_EXECUTES,
    "mark_change",
    "renew_state",
    "retire_missing",
    "declare_aborted",
    "save_cursor",
    "claim",
    "lock",
)
"""What writes the log for an application, consuming included."""
CONSUMER_EXECUTES = ("save_cursor", *READER_EXECUTES)
"""What `log.subscribe` saves its place with."""
WORKER_EXECUTES = ("take_epoch", "acknowledge", "lease", *READER_EXECUTES)
"""What publishing keeps its place with."""
GRANTED = tuple(dict.fromkeys((*APPLICATION_EXECUTES, *CONSUMER_EXECUTES, *WORKER_EXECUTES)))
"""Functions that a named role may be given. All others are the owner's."""
CALLED_BY_EVERYBODY = ("arm",)
"""Conditions of guards' triggers, which run with the rights of the role that writes the table."""
FORMER_APPEND = "oplog_append_former"
"""The append function of an earlier definition while a log is upgraded: two of one name could not
be told apart."""
_WRITTEN_BY_APPLICATIONS = {
    "type": ("register_type",),
    "type_numbers": ("register_type",),
    "key": ("register_key",),
    "outcome": ("declare_aborted",),
    "image": ("collect_images",),
}
_WRITTEN_BY_OTHERS = {"consumer": CONSUMER_EXECUTES, "archive": WORKER_EXECUTES}
"""Tables that roles wrote themselves in earlier definitions, and the functions that do it now."""
SEQUENCES = ("oplog_position_seq", "oplog_image_id_seq")
"""Positions of records, and numbers of images. Nobody but the owner moves them."""
_HARMLESS = ("SELECT",)
"""On every table but those of locks: to read these at SERIALIZABLE makes others fail."""

_GRANTED = """granted AS (
  SELECT 'TABLE' AS kind, c.relname::text AS object, pg_catalog.quote_ident(c.relname) AS spelled,
    '' AS part, c.relowner AS owner, x.grantee, x.privilege_type
  FROM log JOIN pg_catalog.pg_class c ON c.relnamespace = log.oid
  CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x WHERE c.relkind IN ('r', 'p')
  UNION SELECT 'TABLE', c.relname, pg_catalog.quote_ident(c.relname), a.attname, c.relowner,
    x.grantee, x.privilege_type
  FROM log JOIN pg_catalog.pg_class c ON c.relnamespace = log.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
  CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) x WHERE c.relkind IN ('r', 'p')
  UNION SELECT 'SEQUENCE', c.relname, pg_catalog.quote_ident(c.relname), '', c.relowner,
    x.grantee, x.privilege_type
  FROM log JOIN pg_catalog.pg_class c ON c.relnamespace = log.oid
  CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x WHERE c.relkind = 'S'
  UNION SELECT 'FUNCTION', p.proname, pg_catalog.concat(pg_catalog.quote_ident(p.proname), '(',
    pg_catalog.pg_get_function_identity_arguments(p.oid), ')'), '', p.proowner,
    x.grantee, x.privilege_type
  FROM log JOIN pg_catalog.pg_proc p ON p.pronamespace = log.oid
  CROSS JOIN LATERAL pg_catalog.aclexplode(
    coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) x),
"""
"""Who has which right on what; `log` is the schema."""


def create_rights_statements(
    s: str, schema: str, *, tables: Sequence[str], functions: Sequence[str], new: bool
) -> list[str]:
    """Statements that leave each role what it needs; tables and functions are the log's.

    Names are unqualified. The statements change nothing when they run again. Of a `new` log no
    role has been given anything on purpose.
    """
    excess = select_excess(schema, objects=[*tables, *functions], executable=() if new else GRANTED)
    return [
        *(f"REVOKE ALL ON FUNCTION {s}.{function} FROM PUBLIC" for function in functions),
        # See there why.
        *(f"GRANT EXECUTE ON FUNCTION {s}.oplog_{f} TO PUBLIC" for f in CALLED_BY_EVERYBODY),
        f"""DO $oplog_do$
-- What default privileges gave, or an earlier definition of the log asked for.
DECLARE
  v_statement text;
BEGIN
  FOR v_statement IN SELECT x.statement FROM ({excess}) x LOOP
    EXECUTE v_statement;
  END LOOP;
END $oplog_do$""",
    ]


def select_excess(
    schema: str, *, objects: Iterable[str], executable: Iterable[str] = GRANTED
) -> str:
    """Rights on the log that no role but its owner should have, and what takes them away.

    `objects` are the names of the log's tables and functions; named roles may execute those of
    `executable`. Columns: object, role, privileges,
    statement. Superusers need no right and are left out.
    """
    name = "'" + schema.replace("'", "''") + "'"
    known = ", ".join(f"'{named}'" for named in (*objects, *SEQUENCES))
    functions = ", ".join(
        f"('oplog_{table}', {by_others}, '{_spell_functions(schema, names)}')"
        for by_others, tables in (("false", _WRITTEN_BY_APPLICATIONS), ("true", _WRITTEN_BY_OTHERS))
        for table, names in tables.items()
    )
    return f"""WITH log AS (
  SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname = {name}),
{_GRANTED}excess AS (
  SELECT g.kind, g.object, g.spelled, coalesce(r.rolname::text, 'PUBLIC') AS role,
    coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC') AS grantee, g.grantee AS grantee_oid,
    pg_catalog.string_agg(DISTINCT g.privilege_type, ', ' ORDER BY g.privilege_type) AS privileges
  FROM granted g LEFT JOIN pg_catalog.pg_roles r ON r.oid = g.grantee
  WHERE g.grantee <> g.owner AND r.rolsuper IS NOT TRUE
    AND (g.object IN ({known}) OR g.object ~ '{PARTITION_PATTERN}')
    AND CASE g.kind
      WHEN 'FUNCTION' THEN NOT (g.object IN ({_list_names(CALLED_BY_EVERYBODY)})
        OR r.oid IS NOT NULL AND g.object = ANY (ARRAY[{_list_names(executable)}]::text[]))
      WHEN 'SEQUENCE' THEN g.privilege_type NOT IN ('SELECT', 'USAGE')
      ELSE g.privilege_type NOT IN ({", ".join(f"'{right}'" for right in _HARMLESS)})
        OR g.object IN ({", ".join(f"'{table}'" for table in LOCK_TABLES)}) END
  GROUP BY 1, 2, 3, 4, 5, 6)
SELECT e.object, e.role, e.privileges, pg_catalog.concat(
  'REVOKE ', e.privileges, ' ON ', e.kind, ' ', pg_catalog.quote_ident(log.nspname), '.',
  e.spelled, ' FROM ', e.grantee, ' CASCADE',
  -- A role goes on doing what it did, by the function that does it now. What default privileges
  -- gave is no sign that it did: they give more, or nothing on the append function.
  CASE WHEN f.functions IS NOT NULL AND CASE WHEN f.by_others THEN e.privileges = 'INSERT, UPDATE'
      ELSE EXISTS (SELECT FROM granted a WHERE a.object IN ('oplog_append', '{FORMER_APPEND}')
        AND a.grantee = e.grantee_oid) END
    THEN pg_catalog.concat('; GRANT EXECUTE ON FUNCTION ', f.functions, ' TO ', e.grantee) END)
  AS statement
FROM excess e CROSS JOIN log
LEFT JOIN (VALUES {functions}) AS f(object, by_others, functions)
  ON f.object = e.object AND e.grantee_oid <> 0::oid
ORDER BY 1, 2"""


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(f"'oplog_{name}'" for name in names)


def _spell_functions(schema: str, names: Iterable[str]) -> str:
    """Qualified names of functions, inside a literal."""
    return ", ".join(f"{quote(schema)}.oplog_{name}" for name in names).replace("'", "''")
