"""Which role may do what with the log's tables and functions, as DDL and as a query.

PostgreSQL lets PUBLIC execute every new function, and ALTER DEFAULT PRIVILEGES gives rights on
every new table. So rights beyond these are found in the catalog and revoked one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oplog.schema.partitions import PARTITION_PATTERN

CALLED_BY_APPLICATIONS = ("append", "settle")
"""Functions that write the log for a role which may not. Any named role may be given them."""
CALLED_BY_EVERYBODY = ("arm",)
"""Conditions of guards' triggers, which run with the rights of the role that writes the table."""

CONSUMER_WRITES: dict[str, tuple[str, ...]] = {"consumer": ("INSERT", "UPDATE")}
"""What `log.subscribe` writes."""
WORKER_WRITES: dict[str, tuple[str, ...]] = {"archive": ("INSERT", "UPDATE")}
"""What publishing writes."""
APPLICATION_WRITES: dict[str, tuple[str, ...]] = {
    **CONSUMER_WRITES,
    "adoption": ("INSERT", "UPDATE"),
    "type": ("INSERT",),
    "type_numbers": ("INSERT",),
    # When a key was registered and retired is not for those to say who seal with it.
    "key": ("INSERT (key_id, check_value)",),
    # To declare a transaction aborted whose COMMIT got no answer. The other columns, which say that
    # it is not, are the append function's.
    "outcome": ("INSERT (record_id)",),
    "image": ("DELETE",),
}
"""What applications write themselves, consuming and adopting included."""
_WRITES = {**APPLICATION_WRITES, **WORKER_WRITES}
"""What any role may be given; all other tables are written by functions and the owner."""
SEQUENCES = ("oplog_position_seq", "oplog_image_id_seq")
"""Positions of records, and numbers of images. Nobody but the owner moves them."""
_HARMLESS = ("SELECT", "MAINTAIN")
_SOME_COLUMNS = ("outcome", "key")
"""Tables of which applications may insert some columns: a right on all is narrowed to these."""

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
    s: str, schema: str, *, tables: Sequence[str], functions: Sequence[str]
) -> list[str]:
    """Statements that leave each role what it needs; tables and functions are the log's.

    Names are unqualified. The statements change nothing when they run again.
    """
    excess = select_excess(schema, objects=[*tables, *functions])
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


def select_excess(schema: str, *, objects: Iterable[str]) -> str:
    """Rights on the log that no role but its owner should have, and what takes them away.

    `objects` are the names of the log's tables and functions. Columns: object, role, privileges,
    statement. Superusers need no right and are left out.
    """
    name = "'" + schema.replace("'", "''") + "'"
    known = ", ".join(f"'{named}'" for named in (*objects, *SEQUENCES))
    tables = [
        (f"oplog_{table}", column, right.partition(" ")[0])
        for table, rights in _WRITES.items()
        for right in rights
        for column in right.partition(" (")[2].rstrip(")").split(", ")
    ]
    narrowed = " ".join(f"WHEN 'oplog_{t}' THEN '{_WRITES[t][0]}'" for t in _SOME_COLUMNS)
    writes = ", ".join(f"('{table}', '{column}', '{right}')" for table, column, right in tables)
    return f"""WITH log AS (
  SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname = {name}),
{_GRANTED}excess AS (
  SELECT g.kind, g.object, g.spelled, coalesce(r.rolname::text, 'PUBLIC') AS role,
    coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC') AS grantee,
    pg_catalog.string_agg(DISTINCT g.privilege_type, ', ' ORDER BY g.privilege_type) AS privileges,
    coalesce(bool_or(g.privilege_type = 'INSERT' AND g.object IN ({_list_names(_SOME_COLUMNS)})
      AND r.oid IS NOT NULL), false) AS inserting
  FROM granted g LEFT JOIN pg_catalog.pg_roles r ON r.oid = g.grantee
  WHERE g.grantee <> g.owner AND r.rolsuper IS NOT TRUE
    AND (g.object IN ({known}) OR g.object ~ '{PARTITION_PATTERN}')
    AND CASE g.kind
      WHEN 'FUNCTION' THEN NOT (g.object IN ({_list_names(CALLED_BY_EVERYBODY)})
        OR r.oid IS NOT NULL AND g.object IN ({_list_names(CALLED_BY_APPLICATIONS)}))
      WHEN 'SEQUENCE' THEN g.privilege_type NOT IN ('SELECT', 'USAGE')
      ELSE g.privilege_type NOT IN ({", ".join(f"'{right}'" for right in _HARMLESS)})
        AND (r.oid IS NULL OR NOT EXISTS (SELECT FROM (VALUES {writes})
          AS w(object, part, privilege) WHERE w.object = g.object
          AND w.privilege = g.privilege_type AND w.part IN ('', g.part))) END
  GROUP BY 1, 2, 3, 4, 5)
SELECT e.object, e.role, e.privileges, pg_catalog.concat(
  'REVOKE ', e.privileges, ' ON ', e.kind, ' ', pg_catalog.quote_ident(log.nspname), '.',
  e.spelled, ' FROM ', e.grantee, ' CASCADE',
  CASE WHEN e.inserting THEN pg_catalog.concat('; GRANT ', CASE e.object {narrowed} END, ' ON ',
    pg_catalog.quote_ident(log.nspname), '.', e.spelled, ' TO ', e.grantee) END) AS statement
FROM excess e CROSS JOIN log ORDER BY 1, 2"""


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(f"'oplog_{name}'" for name in names)
