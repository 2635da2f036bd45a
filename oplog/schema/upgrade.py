"""Statements that bring a log to the present definition of its version, as often as they run.

How old a log is, is not recorded: each statement looks for what it would add, and changes nothing
if it is there. Tables of another definition are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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

OTHER_DEFINITION = "a log as a development version of this library created it"
"""What a table `oplog_entry` with hashes belongs to."""
OTHER_REMEDY = (
    "leave them as they are, and work on with that version; or give op.create_oplog another schema"
)
"""What to do about such tables; what is in them stays."""

_REPEATABLE = (
    (r"CREATE ((?:UNLOGGED )?TABLE|SEQUENCE|(?:UNIQUE )?INDEX) ", r"CREATE \1 IF NOT EXISTS "),
    (r"CREATE (FUNCTION|TRIGGER) ", r"CREATE OR REPLACE \1 "),
    (r"(ALTER (?:TABLE|SEQUENCE) )", r"\1"),
    # Its row is there once.
    (r"(INSERT INTO [^;]* SELECT 0 WHERE NOT EXISTS )", r"\1"),
    # These look for what is there.
    (r"(DO \$oplog_do\$)", r"\1"),
    (r"(SELECT .*oplog_make_partitions)", r"\1"),
)
"""How each kind of statement begins, and how it begins where it may run again."""
_ROW_INSERTED = 5
"""`pg_trigger.tgtype` of AFTER INSERT FOR EACH ROW."""


def require_free(s: str) -> str:
    """A statement that raises if there are tables of a log in schema `s`."""
    q = _in_literal(s)
    return f"""DO $oplog_do$ BEGIN
  {_refuse_other(q)}
  IF pg_catalog.to_regclass('{q}.oplog_record') IS NOT NULL THEN
    RAISE EXCEPTION USING errcode = '55000', message = 'oplog: schema {q} has a log already',
      hint = 'op.upgrade_oplog brings it to its present definition';
  END IF;
END $oplog_do$"""


def require_first(s: str, comment: str) -> str:
    """A statement that raises unless a log with this comment, a literal, is whole in schema `s`.

    A table that was lost must not come back empty, as if nothing had been in it, and positions
    must not begin again.
    """
    q = _in_literal(s)
    tables = ", ".join(f"'{q}.oplog_{table}'" for table in (*FIRST_TABLES, "position_seq"))
    return f"""DO $oplog_do$
DECLARE
  v_missing text;
BEGIN
  {_refuse_other(q)}
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
      message = pg_catalog.concat('oplog: ', v_missing, ' is gone'),
      hint = 'restore it from a backup';
  END IF;
END $oplog_do$"""


def restore_keys(definition: Iterable[str], s: str) -> str:
    """A statement that makes the primary keys of `definition` that are missing in schema `s`.

    Without one a table that is there would stay without it, and take a row twice.
    """
    table = re.compile(rf"CREATE (?:UNLOGGED )?TABLE {re.escape(s)}\.(oplog_\w+)")
    lines = []
    for statement in definition:
        key = _find_key(statement)
        if key and (match := table.match(statement)):
            name = f"{s}.{match[1]}"
            lines.append(
                "IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.contype = 'p' "
                f"AND c.conrelid = '{_in_literal(name)}'::pg_catalog.regclass) THEN\n    "
                f"ALTER TABLE {name} ADD CONSTRAINT {match[1]}_pkey PRIMARY KEY ({key}); END IF;"
            )
    return "DO $oplog_do$ BEGIN\n  {}\nEND $oplog_do$".format("\n  ".join(lines))


def _find_key(statement: str) -> str:
    """The columns of the primary key that a CREATE TABLE declares; empty for none."""
    several = re.search(r"^  PRIMARY KEY \((.*?)\)", statement, re.MULTILINE)
    one = re.search(r"^  (\w+) .*PRIMARY KEY", statement, re.MULTILINE)
    found = several or one
    return "" if found is None else found[1]


def has_other_definition(name: str) -> str:
    """An expression: whether the table with this name, an expression, is of another definition."""
    return (
        "EXISTS (SELECT FROM pg_catalog.pg_attribute a "
        f"WHERE a.attrelid = pg_catalog.to_regclass({name}) AND a.attname = 'entry_hash')"
    )


def _refuse_other(q: str) -> str:
    return f"""IF {has_other_definition(f"'{q}.oplog_entry'")} THEN
    RAISE EXCEPTION USING errcode = '55000',
      message = 'oplog: schema {q} has the tables of {OTHER_DEFINITION}',
      hint = '{OTHER_REMEDY}';
  END IF;"""


def make_repeatable(statement: str, s: str) -> str:
    """The statement as one that changes nothing where its object is there; `s` is the schema."""
    if statement == f"INSERT INTO {s}.oplog_log DEFAULT VALUES":
        return f"INSERT INTO {s}.oplog_log SELECT WHERE NOT EXISTS (SELECT FROM {s}.oplog_log)"
    table = rf"{re.escape(s)}\.\w+"
    checking = re.match(rf"CREATE CONSTRAINT TRIGGER (\w+) .*? ON ({table})\s", statement)
    if checking is not None:
        return _replace_trigger(statement, name=checking[1], table=checking[2])
    for pattern, beginning in _REPEATABLE:
        match = re.match(pattern, statement)
        if match is not None:
            return match.expand(beginning) + statement[match.end() :]
    raise SchemaVersionError(
        f"it is not known how to run this statement again: {statement[:60]!r}",
        hint="add its kind to those that are known",
    )


def _replace_trigger(statement: str, *, name: str, table: str) -> str:
    """PostgreSQL replaces no constraint trigger. One that is whole stays: dropping it waits."""
    function = statement.rpartition(" EXECUTE FUNCTION ")[2]
    return f"""DO $oplog_do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g
    WHERE g.tgrelid = '{_in_literal(table)}'::pg_catalog.regclass AND g.tgname = '{name}'
      AND g.tgfoid = '{_in_literal(function)}'::pg_catalog.regprocedure
      AND g.tgdeferrable AND g.tginitdeferred AND g.tgtype = {_ROW_INSERTED}
      AND g.tgqual IS NULL) THEN
    DROP TRIGGER IF EXISTS {name} ON {table};
    {statement};
  END IF;
END $oplog_do$"""


def _in_literal(text: str) -> str:
    return text.replace("'", "''")
