"""Reads what an operator asks about a log: server, size, triggers, a row's key.

Triggers are compared with the DDL that creates them. Text from a command line reaches SQL as a
parameter only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, NotSupportedError, ProgrammingError

from oplog.errors import ConfigurationError
from oplog.postgres.live_table import LiveColumn, read_live_tables, require_live_table
from oplog.postgres.quoting import (
    double_percent,
    quote,
)
from oplog.postgres.table_form import is_created_trigger
from oplog.postgres.text_settings import fix_text_settings
from oplog.schema.expected import (
    FoundTrigger,
    FunctionForm,
    find_function_faults,
    find_trigger_faults,
    list_log_functions,
    list_log_triggers,
    normalise_settings,
)
from oplog.schema.row_checks import find_check_faults
from oplog.store.housekeeping import list_row_checks
from oplog.store.partition_store import list_partition_names
from oplog.value import codec_for


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The server of a connection; `log_bytes` is the size of all tables of the log."""

    version: str
    standby: bool
    database: str
    log_bytes: int


def read_server_status(connection: Connection, schema: str) -> ServerStatus:
    """Read version, role and database of the server, and the size of the log in `schema`."""
    row = connection.exec_driver_sql(
        """SELECT pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
  pg_catalog.current_database()::text,
  (SELECT coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint
   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND c.relname LIKE 'oplog\\_%%')""",
        (schema,),
    ).one()
    return ServerStatus(row[0], row[1], row[2], row[3])


def list_guard_problems(connection: Connection, schema: str) -> list[str]:
    """Faults of what keeps the log append-only, of its rows' constraints, and of its functions.

    A trigger is at fault if it is missing, disabled, active in some replication roles only, or
    has other events or another function; a constraint or a function if it is missing or was
    replaced.
    """
    found = list_triggers(connection, schema)
    triggers = list_log_triggers(schema, partitions=list_partition_names(connection, schema))
    problems = [
        f"trigger {fault.name} on {table} {fault.text}"
        for table, expected in triggers.items()
        for fault in find_trigger_faults(schema, expected=expected, found=found.get(table, {}))
    ]
    problems += [
        f"constraint {fault.name} on {fault.table} is {fault.kind}"
        for fault in find_check_faults(list_row_checks(connection, schema))
        if fault.kind != "unchecked"
    ]
    functions = list_functions(connection, schema)
    return problems + [
        f"function {name} is not the one that the log was created with"
        for name in find_function_faults(list_log_functions(schema), functions)
    ]


def list_triggers(connection: Connection, schema: str) -> dict[str, dict[str, FoundTrigger]]:
    """The triggers on tables of `schema`, by table and name."""
    found: dict[str, dict[str, FoundTrigger]] = {}
    for row in connection.exec_driver_sql(
        f"""SELECT c.relname::text, t.tgname::text, t.tgenabled::text,
  pg_catalog.pg_get_triggerdef(t.oid), f.proname::text
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
WHERE n.nspname = %s AND {is_created_trigger("t")}""",
        (schema,),
    ):
        found.setdefault(row[0], {})[row[1]] = FoundTrigger(*row)
    return found


def list_functions(connection: Connection, schema: str) -> dict[str, list[FunctionForm]]:
    """The functions in `schema` by name; several of one name are overloaded."""
    found: dict[str, list[FunctionForm]] = {}
    for name, body, definer, settings in connection.exec_driver_sql(
        "SELECT p.proname::text, p.prosrc, p.prosecdef, coalesce(p.proconfig, '{}') "
        "FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = %s",
        (schema,),
    ):
        form = FunctionForm(body, definer, normalise_settings(settings))
        found.setdefault(name, []).append(form)
    return found


def match_key(texts: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """The text for each column of a primary key, given in order or as `column=text`.

    A text is `column=text` if the part before its first `=` is a column of the key. Raises
    `ConfigurationError` unless each column is given once, all in the same way.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name in columns:
            if name in named:
                raise ConfigurationError(
                    f"key column {name} is given twice", hint="give each column once"
                )
            named[name] = value
    expected = " ".join(columns)
    if not named and len(texts) == len(columns):
        return dict(zip(columns, texts, strict=True))
    if len(named) != len(texts) or len(named) != len(columns):
        raise ConfigurationError(
            f"the primary key is: {expected} ({len(texts)} given)",
            hint="give its values in this order, or each as column=value",
        )
    return named


def read_key(
    connection: Connection, table: sa.Table, *, texts: Mapping[str, str]
) -> dict[str, object]:
    """The primary key that `texts` give by column, as Python values.

    Each text is read by the column's own input function, so that any spelling that Postgres
    takes finds the row ('042', 'A0EE…' for a uuid). Raises `ConfigurationError` for text it
    does not take, `SchemaDriftError` when the table is not in the database.
    """
    live = require_live_table(read_live_tables(connection, [table]), table)
    columns = [column for column in live.columns if column.primary_key]
    return _read_texts(connection, table, columns=columns, texts=texts, what="primary key")


def read_value(connection: Connection, table: sa.Table, *, column: str, text: str) -> object:
    """The value that a text gives for a column, as a Python value; raises as `read_key`."""
    live = require_live_table(read_live_tables(connection, [table]), table)
    columns = [one for one in live.columns if one.name == column]
    if not columns:
        raise ConfigurationError(
            f"table {table.fullname} has no column {column!r:.80}",
            hint=f"its columns are {', '.join(one.name for one in live.columns)}",
        )
    return _read_texts(connection, table, columns=columns, texts={column: text}, what="value")[
        column
    ]


def _read_texts(
    connection: Connection,
    table: sa.Table,
    *,
    columns: Sequence[LiveColumn],
    texts: Mapping[str, str],
    what: str,
) -> dict[str, object]:
    fix_text_settings(connection)
    selected = ", ".join(f"r.{quote(column.name)}::text" for column in columns)
    declared = ", ".join(f"{quote(column.name)} {column.pg_type}" for column in columns)
    try:
        row = connection.exec_driver_sql(
            # Types come from the server itself, names are quoted, texts are a parameter.
            f"SELECT {double_percent(selected)} FROM pg_catalog.jsonb_to_record(%s::jsonb) "
            f"AS r({double_percent(declared)})",
            (json.dumps({column.name: texts[column.name] for column in columns}),),
        ).one()
    except (DataError, NotSupportedError, ProgrammingError) as cause:
        names = ", ".join(f"{column.name} {column.pg_type}" for column in columns)
        raise ConfigurationError(
            f"not a {what.removeprefix('primary ')} of table {table.fullname}: "
            f"{_first_line(str(cause.orig))}",
            hint=f"its {what} is ({names})",
        ) from cause
    return {
        column.name: _to_python(column.pg_type, column.category, text)
        for column, text in zip(columns, row, strict=True)
    }


def _to_python(pg_type: str, category: str, text: str) -> object:
    codec = codec_for(pg_type, category=category)
    return codec.to_python(codec.from_text(text))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
