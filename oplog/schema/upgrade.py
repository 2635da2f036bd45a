"""Statements that bring a log of an earlier definition to the present one, as often as they run.

How old a log is, is not recorded: each statement looks for what it would add, and changes nothing
if it is there.
"""

from __future__ import annotations

import re

from oplog.errors import SchemaVersionError
from oplog.schema.progress_tables import PROGRESS_TABLES

FIRST_TABLES = (
    "log",
    "type",
    "type_numbers",
    "key",
    "record",
    "part",
    "token",
    "entry",
    "ticket",
    "outcome",
    "pruned",
    *PROGRESS_TABLES,
    "guard",
    "image",
)
"""What every log of schema version 1 has."""

_REPEATABLE = (
    (r"CREATE ((?:UNLOGGED )?TABLE|SEQUENCE|(?:UNIQUE )?INDEX) ", r"CREATE \1 IF NOT EXISTS "),
    (r"CREATE (FUNCTION|TRIGGER) ", r"CREATE OR REPLACE \1 "),
    (r"(ALTER (?:TABLE|SEQUENCE) )", r"\1"),
    # The function looks for what is there.
    (r"(SELECT .*oplog_make_partitions)", r"\1"),
)
"""How each kind of statement begins, and how it begins where it may run again."""


def require_first(s: str, comment: str) -> str:
    """A statement that raises unless a log with this comment, a literal, is whole in schema `s`.

    A table that was lost must not come back empty, as if nothing had been in it.
    """
    q = _in_literal(s)
    tables = ", ".join(f"'{q}.oplog_{table}'" for table in FIRST_TABLES)
    return f"""DO $oplog_do$
DECLARE
  v_missing text;
BEGIN
  IF pg_catalog.obj_description(pg_catalog.to_regclass('{q}.oplog_record'), 'pg_class')
    IS DISTINCT FROM {comment} THEN
    RAISE EXCEPTION USING errcode = '55000',
      message = 'oplog: schema {q} does not hold a log of this version',
      hint = 'op.create_oplog creates one; a restore that is under way has to end first';
  END IF;
  SELECT t.name INTO v_missing FROM pg_catalog.unnest(ARRAY[{tables}]) AS t(name)
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


def _in_literal(text: str) -> str:
    return text.replace("'", "''")
