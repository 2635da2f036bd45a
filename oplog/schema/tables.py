"""The log's tables and triggers, as DDL: creating, upgrading and dropping a schema version.

Statements are text, so that they run online and print with `--sql`. They hold no percent sign,
which a driver would take for a parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from oplog.errors import SchemaVersionError
from oplog.payload.schema_change import FIRST
from oplog.postgres.quoting import quote, quote_literal
from oplog.schema.append import (
    create_append_statements,
    rename_former_statement,
    replace_former_statement,
)
from oplog.schema.append_only import create_append_only_statements
from oplog.schema.guard import (
    create_guard_statements,
    drop_guard_statements,
    make_prefix,
)
from oplog.schema.key_retirement import create_key_statements
from oplog.schema.locks import LOCK_FUNCTIONS, LOCK_TABLES, create_lock_statements
from oplog.schema.partitions import (
    PARTITIONED,
    create_partition_statements,
    protect_statement,
)
from oplog.schema.progress_functions import PROGRESS_FUNCTIONS, create_progress_functions
from oplog.schema.progress_tables import PROGRESS_TABLES, create_progress_tables
from oplog.schema.registering import (
    REGISTERING,
    REGISTERING_HELPERS,
    create_registering_statements,
)
from oplog.schema.rights import create_rights_statements
from oplog.schema.row_checks import create_row_checks
from oplog.schema.type_changes import (
    CHANGE_FUNCTIONS,
    CHANGE_TABLES,
    create_change_functions,
    create_change_tables,
)
from oplog.schema.upgrade import make_repeatable, require_first, require_free, restore_keys

FIRST_CHANGE = json.dumps(FIRST.to_json())
VERSION = 1
"""Newest schema version this library knows."""

IDEMPOTENCY_INDEX = "oplog_outcome_idempotency"
RECORD_ID_INDEX = "oplog_outcome_pkey"
"""Unique, so that no record is appended a second time."""
ENTRY_INDEX = "oplog_entry_pkey"
"""Unique, so that no aggregate is created a second time."""
COMMENT_PREFIX = "oplog schema version "
BEING_RESTORED = ", being restored"
"""Ends the comment with the version while a restore is under way, or was given up."""
SCHEMA_COMMENT = "created for oplog"
HOME_PREFIX = "oplog home: "
"""Begins the comment that says which server's transaction ids the records have."""

_CATALOG_TABLES = ("type", "type_numbers", "key", "log")


def create_statements(schema: str = "oplog", version: int = VERSION) -> list[str]:
    """Statements that create schema `version` of the log in `schema`, in order."""
    check_version(version)
    s = quote(schema)
    if "$oplog_" in schema:
        raise SchemaVersionError(
            f"schema name {schema!r} ends the quoting of a function body",
            hint="name the schema without $oplog_",
        )
    definition = _define(s, schema)
    return [
        require_free(s),
        # IF NOT EXISTS asks for the right to create schemas even where there is one already.
        f"""DO $oplog_do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {quote_literal(schema)})
  THEN CREATE SCHEMA {s}; COMMENT ON SCHEMA {s} IS {quote_literal(SCHEMA_COMMENT)}; END IF;
END $oplog_do$""",
        *definition,
        *_list_rights(s, schema, definition=definition, new=True),
        home_statement(schema),
        f"COMMENT ON TABLE {s}.oplog_record IS {quote_literal(f'{COMMENT_PREFIX}{version}')}",
    ]


def list_table_names() -> list[str]:
    """Names of the log's tables, in the order in which they are created."""
    pattern = re.compile(r"CREATE (?:UNLOGGED )?TABLE oplog\.(oplog_\w+)")
    found = (pattern.match(statement) for statement in _define("oplog", "oplog"))
    return [match[1] for match in found if match is not None]


def upgrade_statements(schema: str = "oplog", version: int = VERSION) -> list[str]:
    """Statements that bring a log of schema `version` in `schema` to its present definition.

    Each of them changes nothing when it runs again, and none touches a table of an application:
    the triggers of a guard call functions by name, and those are replaced.
    """
    check_version(version)
    s = quote(schema)
    definition = _define(s, schema)
    return [
        require_first(s, quote_literal(f"{COMMENT_PREFIX}{version}")),
        rename_former_statement(s),
        *(make_repeatable(statement, s) for statement in definition),
        restore_keys(definition, s),
        protect_statement(s, schema),
        *_list_rights(s, schema, definition=definition, new=False),
        # After rights, which go by who was an application.
        replace_former_statement(s),
        home_statement(schema),
    ]


def home_statement(schema: str = "oplog", *, anew: bool = False) -> str:
    """The statement that makes this database the home of the log in `schema`.

    A log that has a home keeps it, unless `anew`. A comment, and no row: it travels with the
    table in a dump of everything, and not in one of rows alone, which a log with a home of its
    own is given; everybody may read it; and only the owner can change it. `row` tells rows that
    were written here from rows that were copied here.
    """
    table = f"{quote(schema)}.oplog_log"
    begun = quote_literal(f"COMMENT ON TABLE {table} IS ")
    kept = f"pg_catalog.obj_description({quote_literal(table)}::pg_catalog.regclass, 'pg_class')"
    return f"""DO $oplog_do$ BEGIN
  IF {"true" if anew else f"{kept} IS NULL"} THEN
    EXECUTE (SELECT {begun} || pg_catalog.quote_literal(pg_catalog.concat('{HOME_PREFIX}server ',
      c.system_identifier, ', database ', d.oid, ', row ', (SELECT l.xmin FROM {table} l LIMIT 1)))
      FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
      WHERE d.datname = pg_catalog.current_database());
  END IF;
END $oplog_do$"""


def drop_statements(schema: str = "oplog") -> list[str]:
    """Statements that remove the log and everything in it, and the schema if that empties it."""
    s = quote(schema)
    name = quote_literal(schema)
    kept = (*PARTITIONED, "entry", "ticket", "outcome", *_CATALOG_TABLES, "pruned")
    functions = (*PROGRESS_FUNCTIONS, *REGISTERING, *REGISTERING_HELPERS, *CHANGE_FUNCTIONS)
    return [
        *drop_guard_statements(s),
        *(f"DROP FUNCTION {s}.oplog_{function}" for function in functions),
        *(f"DROP TABLE {s}.oplog_{table}" for table in (*kept, *PROGRESS_TABLES, *CHANGE_TABLES)),
        *(f"DROP TABLE {s}.{table}" for table in LOCK_TABLES),
        *(f"DROP FUNCTION {s}.oplog_{function}" for function in LOCK_FUNCTIONS),
        f"DROP FUNCTION {s}.oplog_append",
        f"DROP FUNCTION {s}.oplog_append_mark",
        f"DROP FUNCTION {s}.oplog_retire_key(text)",
        f"DROP FUNCTION {s}.oplog_make_partitions",
        f"DROP FUNCTION {s}.oplog_refuse_change()",
        # A schema that was there before (public, say) or is shared by now must survive.
        f"""DO $oplog_do$ BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE nspname = {name}
      AND pg_catalog.obj_description(oid, 'pg_namespace') = {quote_literal(SCHEMA_COMMENT)}
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refobjid = n.oid
                      AND refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass))
  THEN DROP SCHEMA {s}; END IF;
END $oplog_do$""",
    ]


def track_statements(
    names: Iterable[str], *, bypass_role: str | None = None, schema: str = "oplog"
) -> list[str]:
    """Statements that guard tables, given by quoted names, for the log in `schema`."""
    role = "NULL" if bypass_role is None else quote_literal(bypass_role)
    return [
        f"SELECT {quote(schema)}.oplog_track_table({quote_literal(name)}::regclass, {role})"
        for name in names
    ]


def untrack_statements(names: Iterable[str], *, reason: str, schema: str = "oplog") -> list[str]:
    """Statements that take the guards away again, and keep the reason."""
    return [
        f"SELECT {quote(schema)}.oplog_untrack_table({quote_literal(name)}::regclass, "
        f"{quote_literal(reason)})"
        for name in names
    ]


def retire_statement(type_name: str, *, reason: str, schema: str = "oplog") -> str:
    """The statement that says in the log that the table of a type is gone."""
    return (
        f"SELECT {quote(schema)}.oplog_retire_type({quote_literal(type_name)}, "
        f"{quote_literal(reason)})"
    )


def check_version(version: int) -> None:
    """Raise `SchemaVersionError` unless `version` is one this library can create."""
    if version != VERSION:
        raise SchemaVersionError(
            f"schema version {version} is not known to this library, which knows {VERSION}",
            hint=f"write op.create_oplog(version={VERSION}), or upgrade the oplog package",
        )


def _define(s: str, schema: str) -> list[str]:
    """The tables, triggers and functions of a log, each with its own statement.

    A new table, index, trigger or function goes here, and existing databases get it by
    `upgrade_statements`.
    """
    return [
        *_catalog_tables(s),
        *_record_tables(s),
        create_row_checks(s),
        *create_change_tables(s),
        *_indexes(s),
        *create_append_only_statements(s),
        *create_lock_statements(s, schema),
        *create_partition_statements(s),
        *create_append_statements(s, make_prefix(schema)),
        *create_key_statements(s),
        *create_guard_statements(s, schema),
        *create_change_functions(s),
        *create_registering_statements(s),
        *create_progress_functions(s),
    ]


def _list_rights(s: str, schema: str, *, definition: Iterable[str], new: bool) -> list[str]:
    pattern = re.compile(rf"CREATE (?:UNLOGGED )?(TABLE|FUNCTION) {re.escape(s)}\.(oplog_\w+)")
    found = [match for statement in definition if (match := pattern.match(statement))]
    return create_rights_statements(
        s,
        schema,
        tables=[match[2] for match in found if match[1] == "TABLE"],
        functions=[match[2] for match in found if match[1] == "FUNCTION"],
        new=new,
    )


def _catalog_tables(s: str) -> list[str]:
    return [
        f"""CREATE TABLE {s}.oplog_log (
  log_id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
  created_at timestamptz NOT NULL DEFAULT pg_catalog.now())""",
        f"INSERT INTO {s}.oplog_log DEFAULT VALUES",
        f"""CREATE TABLE {s}.oplog_type (
  type_name text COLLATE "C" NOT NULL,
  revision integer NOT NULL,
  shape jsonb NOT NULL,
  descriptor bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (type_name, revision))""",
        # Not above, as with keys: of revisions of an earlier definition it is not known.
        f"""ALTER TABLE {s}.oplog_type ADD COLUMN IF NOT EXISTS change jsonb NOT NULL DEFAULT '{
            FIRST_CHANGE
        }'""",
        # Columns by their numbers in the catalog: a name may come to mean another column.
        f"""CREATE TABLE {s}.oplog_type_numbers (
  type_name text COLLATE "C" NOT NULL,
  revision integer NOT NULL,
  database_id text COLLATE "C" NOT NULL,
  table_oid bigint NOT NULL,
  columns jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (type_name, revision, database_id))""",
        f"""CREATE TABLE {s}.oplog_key (
  key_id text COLLATE "C" PRIMARY KEY,
  check_value bytea NOT NULL,
  wrapped bytea,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())""",
        # Not above: logs that have the table already get the column by the same statement.
        f"ALTER TABLE {s}.oplog_key ADD COLUMN IF NOT EXISTS retired_at timestamptz",
    ]


def _record_tables(s: str) -> list[str]:
    return [
        f"CREATE SEQUENCE {s}.oplog_position_seq AS bigint",
        f"""CREATE TABLE {s}.oplog_record (
  position bigint PRIMARY KEY,
  record_id uuid NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  format smallint NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  data bytea NOT NULL,
  parts integer NOT NULL,
  aggregates text[] COLLATE "C" NOT NULL,
  versions bigint[],
  prev_hashes bytea,
  metadata text[] COLLATE "C",
  record_hash bytea NOT NULL,
  created_at timestamptz NOT NULL,
  idempotency_key text COLLATE "C") PARTITION BY RANGE (position)""",
        f"ALTER SEQUENCE {s}.oplog_position_seq OWNED BY {s}.oplog_record.position",
        # Sealed bytes do not compress; trying costs time on every insert.
        f"ALTER TABLE {s}.oplog_record ALTER COLUMN data SET STORAGE EXTERNAL",
        f"""CREATE TABLE {s}.oplog_part (
  position bigint NOT NULL,
  number integer NOT NULL,
  first integer NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (position, number)) PARTITION BY RANGE (position)""",
        f"ALTER TABLE {s}.oplog_part ALTER COLUMN data SET STORAGE EXTERNAL",
        f"""CREATE TABLE {s}.oplog_token (
  token bigint NOT NULL,
  position bigint NOT NULL) PARTITION BY RANGE (position)""",
        *_index_tables(s),
        *create_progress_tables(s),
        _pruned_table(s),
    ]


def _index_tables(s: str) -> list[str]:
    """Tables that say where a record is, by aggregate and by id."""
    return [
        # Which record is a version of an aggregate: an index, whose content the records have. The
        # first version stays when its record is pruned, with position 0, and is there without
        # one if the record is in a snapshot only: nobody creates the aggregate a second time.
        f"""CREATE TABLE {s}.oplog_entry (
  aggregate_name text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  position bigint NOT NULL,
  PRIMARY KEY (aggregate_name, version))""",
        # Updated in place by every record: room on the page keeps the updates HOT. The head is the
        # newest record of an aggregate that has none here any more.
        f"""CREATE TABLE {s}.oplog_ticket (
  aggregate_name text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL,
  head_version bigint,
  head_hash bytea) WITH (fillfactor = 80)""",
        # Every record id that was ever used. Without a position it was declared aborted while its
        # COMMIT might still have been on its way. The last four columns are what has to be known
        # for ever of a record that was pruned.
        f"""CREATE TABLE {s}.oplog_outcome (
  record_id uuid PRIMARY KEY,
  position bigint,
  idempotency_key text COLLATE "C",
  aggregates text[] COLLATE "C",
  versions bigint[],
  record_hash bytea,
  metadata text[] COLLATE "C")""",
    ]


def _pruned_table(s: str) -> str:
    """What is in an archive only: each row says how far, and lets its own transaction delete."""
    return f"""CREATE TABLE {s}.oplog_pruned (
  number bigint PRIMARY KEY,
  archive_id uuid NOT NULL,
  url text NOT NULL,
  generation bigint NOT NULL,
  sequence bigint NOT NULL,
  chain bytea NOT NULL,
  position bigint NOT NULL,
  entries bigint NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  pruned_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())"""


def _indexes(s: str) -> list[str]:
    return [
        # Guards look for the types of a table at each statement that was not announced.
        f"CREATE INDEX oplog_type_table ON {s}.oplog_type ((shape->>'schema'), (shape->>'table'))",
        # "What is new since this cursor" in time proportional to what is new.
        f"CREATE INDEX oplog_record_transaction ON {s}.oplog_record (transaction_id, position)",
        f"CREATE INDEX oplog_record_created ON {s}.oplog_record USING brin (created_at)",
        f"CREATE INDEX oplog_token_token ON {s}.oplog_token (token, position)",
        f"""CREATE UNIQUE INDEX {IDEMPOTENCY_INDEX} ON {s}.oplog_outcome (idempotency_key)
  WHERE idempotency_key IS NOT NULL""",
        f"""CREATE INDEX oplog_outcome_kept ON {s}.oplog_outcome (position)
  WHERE aggregates IS NOT NULL""",
    ]
