"""The present definition of a schema version, for a log that was created with an earlier one.

Text like `tables`, for `tables` alone. Must not know a connection. The statements run again and
again, and on logs of which nobody knows how old they are: each looks for what is there, and
changes nothing where all of it is.
"""

from __future__ import annotations

import re

from oplog.errors import SchemaVersionError
from oplog.schema.progress_tables import OLD_TABLE, PROGRESS_TABLES, split_old_table

ENTRY_ID_INDEX = "oplog_entry_entry_id"
"""Unique, so that no entry is appended a second time."""
HIGHEST_POSITION = 1 << 62
"""No entry has this position or a higher one: half of what the type holds stays free."""

FIRST_TABLES = (
    "log",
    "type",
    "key",
    "ticket",
    "fence",
    "entry",
    "metadata",
    "pruned",
    "guard",
    "image",
)
"""What every log of schema version 1 has had from its first day, and has still."""

_REPEATABLE = (
    (r"CREATE ((?:UNLOGGED )?TABLE|SEQUENCE|(?:UNIQUE )?INDEX) ", r"CREATE \1 IF NOT EXISTS "),
    (r"CREATE (FUNCTION|TRIGGER) ", r"CREATE OR REPLACE \1 "),
    (r"(ALTER (?:TABLE|SEQUENCE) )", r"\1"),
)
"""How each kind of statement begins, and how it begins where it may run again."""


def require_first(s: str, comment: str) -> str:
    """A statement that raises unless a log with this comment, a literal, is whole in schema `s`.

    A table that was lost must not come back empty, as if nothing had been in it.
    """
    q = _in_literal(s)
    tables = ", ".join(f"'{q}.oplog_{table}'" for table in FIRST_TABLES)
    later = ", ".join(f"'{q}.oplog_{table}'" for table in PROGRESS_TABLES)
    return f"""DO $oplog_do$
DECLARE
  v_missing text;
BEGIN
  IF pg_catalog.obj_description(pg_catalog.to_regclass('{q}.oplog_entry'), 'pg_class')
    IS DISTINCT FROM {comment} THEN
    RAISE EXCEPTION USING errcode = '55000',
      message = 'oplog: schema {q} does not hold a log of this version',
      hint = 'op.create_oplog creates one; a restore that is under way has to end first';
  END IF;
  SELECT t.name INTO v_missing FROM pg_catalog.unnest(ARRAY[{tables}] || CASE
    WHEN pg_catalog.to_regclass('{q}.{OLD_TABLE}') IS NULL THEN ARRAY[{later}]
    ELSE ARRAY[]::text[] END) AS t(name)
  WHERE pg_catalog.to_regclass(t.name) IS NULL LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION USING errcode = '55000',
      message = pg_catalog.concat('oplog: table ', v_missing, ' is gone'),
      hint = 'restore it from a backup';
  END IF;
END $oplog_do$"""


def make_repeatable(statement: str, s: str) -> str:
    """The statement as one that changes nothing where its object is there; `s` is the schema."""
    if statement == f"INSERT INTO {s}.oplog_log DEFAULT VALUES":
        return f"INSERT INTO {s}.oplog_log SELECT WHERE NOT EXISTS (SELECT FROM {s}.oplog_log)"
    for pattern, beginning in _REPEATABLE:
        match = re.match(pattern, statement)
        if match is not None:
            return match.expand(beginning) + statement[match.end() :]
    raise SchemaVersionError(
        f"it is not known how to run this statement again: {statement[:60]!r}",
        hint="add its kind to those that are known",
    )


def list_changes(s: str) -> list[str]:
    """What was added to tables since they were first created, in the quoted schema `s`.

    Run after every creation, too, so that both ways lead to the same tables. A new column goes
    here, as ALTER TABLE ... ADD COLUMN IF NOT EXISTS.
    """
    name = f"'{_in_literal(s)}.oplog_entry'"
    return [
        # Positions have room on both sides, so that no entry uses up those after it; a time that
        # is not finite would be before or after all others.
        f"""DO $oplog_do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint
      WHERE conrelid = {name}::regclass AND conname = 'oplog_entry_bounds') THEN
    ALTER TABLE {s}.oplog_entry ADD CONSTRAINT oplog_entry_bounds CHECK (
      id < {HIGHEST_POSITION} AND transaction_position > 0 AND transaction_position <= id
      AND transaction_size > 0 AND version > 0 AND pg_catalog.isfinite(created_at));
  END IF;
END $oplog_do$""",
        # A sealed entry opens wherever its aggregate goes on. It is accepted once.
        f"""DO $oplog_do$ BEGIN
  CREATE UNIQUE INDEX IF NOT EXISTS {ENTRY_ID_INDEX} ON {s}.oplog_entry (entry_id);
EXCEPTION WHEN unique_violation THEN
  RAISE EXCEPTION USING errcode = '23505',
    message = 'oplog: an entry is in the log twice: an old one was appended once more',
    hint = 'SELECT entry_id FROM {_in_literal(s)}.oplog_entry GROUP BY 1 HAVING count(*) > 1 '
      'finds it; the later one of both tells what nobody did';
END $oplog_do$""",
    ]


def list_fillings(s: str) -> list[str]:
    """What a log that is older than a table puts into it, in the quoted schema `s`."""
    return [
        _share_rights(s),
        _number_types(s),
        split_old_table(s, f"{_in_literal(s)}.{OLD_TABLE}"),
    ]


def _share_rights(s: str) -> str:
    """A statement that lets who reads and stores types do so with their numbers.

    A table that is new to a log is nobody's yet: applications at work would be refused.
    """
    name = f"'{_in_literal(s)}.oplog_type'"
    return f"""DO $oplog_do$
DECLARE
  v_right record;
BEGIN
  FOR v_right IN
    SELECT x.privilege_type, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC') AS grantee
    FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
    WHERE c.oid = {name}::regclass AND x.grantee <> c.relowner
      AND x.privilege_type IN ('SELECT', 'INSERT')
  LOOP
    EXECUTE pg_catalog.concat('GRANT ', v_right.privilege_type,
      ' ON {_in_literal(s)}.oplog_type_numbers TO ', v_right.grantee);
  END LOOP;
END $oplog_do$"""


def _number_types(s: str) -> str:
    """A statement that stores the numbers of tables as they are, of the newest revisions.

    A log that was created without them learns which columns they are, and tells later renames.
    """
    return f"""INSERT INTO {s}.oplog_type_numbers
  (type_name, revision, database_id, table_oid, columns)
SELECT t.type_name, t.revision, pg_catalog.concat(i.system_identifier, '/', d.oid), c.oid::bigint,
  (SELECT pg_catalog.jsonb_object_agg(a.attname, a.attnum) FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM {s}.oplog_type t
JOIN pg_catalog.pg_namespace n ON n.nspname = t.shape->>'schema'
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.shape->>'table'
  AND c.relkind IN ('r', 'p')
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
CROSS JOIN pg_catalog.pg_control_system() i
WHERE t.revision = (SELECT pg_catalog.max(o.revision) FROM {s}.oplog_type o
                    WHERE o.type_name = t.type_name)
  AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(t.shape->'columns') k
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
      AND a.attname = k.value->>'name' AND NOT a.attisdropped))
ON CONFLICT DO NOTHING"""


def _in_literal(text: str) -> str:
    return text.replace("'", "''")
