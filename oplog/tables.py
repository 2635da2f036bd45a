"""The log's tables, triggers and its two functions, as DDL.

Holds the SQL that creates and drops a schema version. Must not know Alembic, SQLAlchemy or
any connection: statements are text, so that they run online and print with `--sql`; they
hold no percent sign, which a driver would take for a parameter. The hard thing is the order
inside `oplog_append`: every ticket of a transaction is redeemed before the first entry id is
drawn. Drawn earlier, an effect could get a lower position than its cause and replay would
break foreign keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from oplog.errors import SchemaVersionError
from oplog.guard import (
    create_guard_statements,
    drop_guard_statements,
    make_prefix,
    settle,
)

VERSION = 1
"""Newest schema version this library knows."""

COMMENT_PREFIX = "oplog schema version "
SCHEMA_COMMENT = "created for oplog"

STALE_TICKET = "OP001"
"""SQLSTATE of a redeem that lost: class OP is free for applications."""
APPEND_ONLY = "OP002"
"""SQLSTATE of an attempt to change or remove what the log holds."""


def quote(identifier: str) -> str:
    """`identifier` as a quoted SQL identifier. Names are data, whatever they contain."""
    if not identifier or "\x00" in identifier:
        raise SchemaVersionError(
            f"{identifier!r} cannot name a schema", hint="give a non-empty name without NUL"
        )
    return '"' + identifier.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """`text` as an SQL string literal, for DDL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


def create_statements(schema: str = "oplog", version: int = VERSION) -> list[str]:
    """Statements that create schema `version` of the log in `schema`, in order."""
    check_version(version)
    s = quote(schema)
    if "$oplog_" in schema:
        raise SchemaVersionError(
            f"schema name {schema!r} ends the quoting of a function body",
            hint="name the schema without $oplog_",
        )
    return [
        # IF NOT EXISTS asks for the right to create schemas even where there is one already.
        f"""DO $oplog_do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {quote_literal(schema)})
  THEN CREATE SCHEMA {s}; COMMENT ON SCHEMA {s} IS {quote_literal(SCHEMA_COMMENT)}; END IF;
END $oplog_do$""",
        *_catalog_tables(s),
        *_entry_tables(s),
        *_indexes(s),
        *_append_only(s),
        _append_one_function(s, make_prefix(schema)),
        _append_function(s, make_prefix(schema)),
        *create_guard_statements(s, schema),
        f"COMMENT ON TABLE {s}.oplog_entry IS {quote_literal(f'{COMMENT_PREFIX}{version}')}",
    ]


def drop_statements(schema: str = "oplog") -> list[str]:
    """Statements that remove the log and everything in it, and the schema if that empties it."""
    s = quote(schema)
    name = quote_literal(schema)
    tables = ("entry", "metadata", "ticket", "type", "key", "checkpoint", "log")
    return [
        *drop_guard_statements(s),
        *(f"DROP TABLE {s}.oplog_{table}" for table in tables),
        f"DROP FUNCTION {s}.oplog_append_one",
        f"DROP FUNCTION {s}.oplog_append",
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


def qualify(tables: Iterable[str], schema: str | None) -> list[str]:
    """Quoted names of tables, in `schema` or where the search path finds them."""
    return [quote(t) if schema is None else f"{quote(schema)}.{quote(t)}" for t in tables]


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


def check_version(version: int) -> None:
    """Raise `SchemaVersionError` unless `version` is one this library can create."""
    if version != VERSION:
        raise SchemaVersionError(
            f"schema version {version} is not known to this library, which knows {VERSION}",
            hint=f"write op.create_oplog(version={VERSION}), or upgrade the oplog package",
        )


def _catalog_tables(s: str) -> list[str]:
    return [
        f"""CREATE TABLE {s}.oplog_log (
  log_id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
  created_at timestamptz NOT NULL DEFAULT pg_catalog.now())""",
        f"INSERT INTO {s}.oplog_log DEFAULT VALUES",
        f"""CREATE TABLE {s}.oplog_type (
  type_name text COLLATE "C" NOT NULL,
  revision integer NOT NULL CHECK (revision > 0),
  shape jsonb NOT NULL,
  descriptor bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (type_name, revision))""",
        f"""CREATE TABLE {s}.oplog_key (
  key_id text COLLATE "C" PRIMARY KEY,
  check_value bytea NOT NULL,
  wrapped bytea,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())""",
    ]


def _entry_tables(s: str) -> list[str]:
    return [
        # Updated in place by every entry: room on the page keeps the updates HOT.
        f"""CREATE TABLE {s}.oplog_ticket (
  aggregate_name text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL CHECK (version > 0),
  prev_hash bytea NOT NULL,
  head_hash bytea NOT NULL,
  body_hash bytea NOT NULL) WITH (fillfactor = 50)""",
        f"CREATE SEQUENCE {s}.oplog_entry_id_seq AS bigint",
        f"""CREATE TABLE {s}.oplog_entry (
  id bigint PRIMARY KEY,
  entry_id uuid NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  transaction_position bigint NOT NULL,
  transaction_size integer NOT NULL,
  aggregate_name text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  format smallint NOT NULL,
  data bytea NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  metadata_hash bytea NOT NULL,
  prev_hash bytea NOT NULL,
  entry_hash bytea NOT NULL,
  created_at timestamptz NOT NULL,
  idempotency_key text COLLATE "C",
  UNIQUE (aggregate_name, version))""",
        f"ALTER SEQUENCE {s}.oplog_entry_id_seq OWNED BY {s}.oplog_entry.id",
        # Sealed bytes do not compress; trying costs time on every insert.
        f"ALTER TABLE {s}.oplog_entry ALTER COLUMN data SET STORAGE EXTERNAL",
        f"""CREATE TABLE {s}.oplog_metadata (
  transaction_position bigint NOT NULL,
  ordinal integer NOT NULL,
  key text COLLATE "C" NOT NULL,
  value text COLLATE "C" NOT NULL,
  PRIMARY KEY (transaction_position, ordinal))""",
        f"""CREATE TABLE {s}.oplog_checkpoint (
  name text COLLATE "C" PRIMARY KEY,
  cursor jsonb NOT NULL,
  position bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())""",
    ]


def _indexes(s: str) -> list[str]:
    return [
        # "What is new since this cursor" in time proportional to what is new.
        f"CREATE INDEX oplog_entry_transaction ON {s}.oplog_entry (transaction_id, id)",
        f"CREATE INDEX oplog_entry_created ON {s}.oplog_entry USING brin (created_at)",
        f"""CREATE UNIQUE INDEX oplog_entry_idempotency ON {s}.oplog_entry (idempotency_key)
  WHERE idempotency_key IS NOT NULL""",
        # A digest, not the value: a long value in a btree fails the application's transaction.
        f"""CREATE INDEX oplog_metadata_value
  ON {s}.oplog_metadata (key, pg_catalog.hashtextextended(value, 0))""",
    ]


def _append_only(s: str) -> list[str]:
    statements = [
        f"""CREATE FUNCTION {s}.oplog_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $oplog_fn$
BEGIN
  RAISE EXCEPTION USING errcode = '{APPEND_ONLY}',
    message = pg_catalog.concat('oplog: ', tg_op, ' on ', pg_catalog.quote_ident(tg_table_schema),
      '.', pg_catalog.quote_ident(tg_table_name), ' is refused: the log is append-only'),
    hint = 'what was written stays; record a correction as a new change';
END $oplog_fn$"""
    ]
    for table in ("entry", "metadata", "type", "log"):
        statements += _always(
            s, table, f"BEFORE UPDATE OR DELETE OR TRUNCATE ON {s}.oplog_{table} FOR EACH STATEMENT"
        )
    for table in ("ticket", "key"):
        statements += _always(
            s, table, f"BEFORE DELETE OR TRUNCATE ON {s}.oplog_{table} FOR EACH STATEMENT"
        )
    # A ticket only moves forward by one, linked to where it was; a key only gets re-wrapped.
    # WHEN is evaluated without calling the function, so the ordinary redeem pays nothing.
    statements += _always(
        s,
        "ticket",
        f"""BEFORE UPDATE ON {s}.oplog_ticket FOR EACH ROW
  WHEN (NEW.aggregate_name IS DISTINCT FROM OLD.aggregate_name
    OR NEW.version IS DISTINCT FROM OLD.version + 1
    OR NEW.prev_hash IS DISTINCT FROM OLD.head_hash)""",
        suffix="_step",
    )
    statements += _always(
        s,
        "key",
        f"""BEFORE UPDATE ON {s}.oplog_key FOR EACH ROW
  WHEN (NEW.key_id IS DISTINCT FROM OLD.key_id
    OR NEW.check_value IS DISTINCT FROM OLD.check_value
    OR NEW.created_at IS DISTINCT FROM OLD.created_at)""",
        suffix="_rewrap",
    )
    return statements


def _always(s: str, table: str, definition: str, *, suffix: str = "") -> list[str]:
    name = f"oplog_append_only{suffix}"
    return [
        f"CREATE TRIGGER {name} {definition} EXECUTE FUNCTION {s}.oplog_refuse_change()",
        # ALWAYS: session_replication_role = replica would switch an ordinary trigger off.
        f"ALTER TABLE {s}.oplog_{table} ENABLE ALWAYS TRIGGER {name}",
    ]


_HEAD = "pg_catalog.sha256('oplog/v1/entry'::bytea || '\\x00'::bytea"
_ZERO = "'\\x" + "00" * 32 + "'::bytea"


def _redeem(s: str, source: str, body: str) -> str:
    """Raise the version of one ticket, or of many in the order `source` gives them.

    A conflict means that the aggregate was written before; waiting for its row lock is the
    queue of its writers.
    """
    return f"""INSERT INTO {s}.oplog_ticket AS t
    (aggregate_name, version, prev_hash, head_hash, body_hash)
  {source}
  ON CONFLICT (aggregate_name) DO UPDATE SET
    version = t.version + 1, prev_hash = t.head_hash, body_hash = excluded.body_hash,
    head_hash = {_HEAD} || t.head_hash || pg_catalog.int8send(t.version + 1)
                        || pg_catalog.timestamptz_send(v_now) || {body})"""


def _first_hash(body: str) -> str:
    return (
        f"{_HEAD} || {_ZERO} || pg_catalog.int8send(1) "
        f"|| pg_catalog.timestamptz_send(v_now) || {body})"
    )


def _raise_stale(aggregate: str, expected: str, version: str) -> str:
    return f"""RAISE EXCEPTION USING errcode = '{STALE_TICKET}',
        message = pg_catalog.concat('oplog: the ticket of aggregate ',
          pg_catalog.quote_literal({aggregate}), ' was taken at version ', {expected},
          ', it is now at version ', {version} - 1),
        hint = 'run the whole transaction again';"""


_METADATA = """INSERT INTO {s}.oplog_metadata (transaction_position, ordinal, key, value)
    SELECT {position}, m.n, m.key, m.value
    FROM ROWS FROM (pg_catalog.unnest(p_metadata_keys), pg_catalog.unnest(p_metadata_values))
         WITH ORDINALITY AS m(key, value, n);"""


_INSERT_MANY = """INSERT INTO {s}.oplog_entry (id, entry_id, transaction_position, transaction_size,
    aggregate_name, version, format, data, key_id, metadata_hash, prev_hash, entry_hash,
    created_at, idempotency_key)
  SELECT CASE i.n WHEN 1 THEN v_first ELSE pg_catalog.nextval({sequence}) END,
    i.entry_id, v_first, v_count, i.aggregate, i.version, p_format, i.data, p_key_id,
    p_metadata_hash, i.prev_hash, i.entry_hash, v_now,
    CASE i.n WHEN 1 THEN p_idempotency_key END
  FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_entry_ids),
                  pg_catalog.unnest(p_data), pg_catalog.unnest(versions),
                  pg_catalog.unnest(v_prev), pg_catalog.unnest(hashes))
       WITH ORDINALITY AS i(aggregate, entry_id, data, version, prev_hash, entry_hash, n);"""


def _append_one_function(s: str, p: str) -> str:
    sequence = quote_literal(f"{s}.oplog_entry_id_seq")
    source = f"VALUES (p_aggregate, 1, {_ZERO}, {_first_hash('p_body')}, p_body)"
    return f"""CREATE FUNCTION {s}.oplog_append_one(
  p_aggregate text, p_expected bigint, p_entry_id uuid, p_body bytea, p_data bytea,
  p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  OUT o_version bigint, OUT o_hash bytea)
LANGUAGE plpgsql AS $oplog_fn$
-- oplog_append for the usual transaction, which writes one aggregate: the same steps in the
-- same order, without arrays, at half the cost.
DECLARE
  v_set text;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_prev bytea;
  v_position bigint;
BEGIN
  IF p_tally IS NOT NULL THEN
  {settle(p)}
  END IF;
  {_redeem(s, source, "p_body")}
  RETURNING t.version, t.prev_hash, t.head_hash INTO o_version, v_prev, o_hash;
  IF p_expected <> o_version - 1 THEN
    {_raise_stale("p_aggregate", "p_expected", "o_version")}
  END IF;
  v_position := pg_catalog.nextval({sequence});
  INSERT INTO {s}.oplog_entry (id, entry_id, transaction_position, transaction_size,
    aggregate_name, version, format, data, key_id, metadata_hash, prev_hash, entry_hash,
    created_at, idempotency_key)
  VALUES (v_position, p_entry_id, v_position, 1, p_aggregate, o_version, p_format, p_data,
    p_key_id, p_metadata_hash, v_prev, o_hash, v_now, p_idempotency_key);
  IF p_metadata_keys IS NOT NULL THEN
    {_METADATA.format(s=s, position="v_position")}
  END IF;
END $oplog_fn$"""


def _append_function(s: str, p: str) -> str:
    sequence = quote_literal(f"{s}.oplog_entry_id_seq")
    source = f"""SELECT i.aggregate, 1, {_ZERO}, {_first_hash("i.body")}, i.body
  FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_bodies))
       AS i(aggregate, body)
  ORDER BY i.aggregate COLLATE \"C\""""
    return f"""CREATE FUNCTION {s}.oplog_append(
  p_aggregates text[], p_expected bigint[], p_entry_ids uuid[], p_bodies bytea[],
  p_data bytea[], p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  OUT versions bigint[], OUT hashes bytea[])
LANGUAGE plpgsql AS $oplog_fn$
-- Redeems the tickets of all aggregates (given in "C" order, one lock order for everybody),
-- then draws the ids, then writes the entries and the metadata. Raises {STALE_TICKET} when a
-- ticket was redeemed by somebody else since the version in p_expected (NULL is any version).
DECLARE
  v_set text;
  v_count integer := pg_catalog.cardinality(p_aggregates);
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_prev bytea[];
  v_first bigint;
BEGIN
  IF p_tally IS NOT NULL THEN
  {settle(p)}
  END IF;
  WITH redeemed AS (
  {_redeem(s, source, "excluded.body_hash")}
  RETURNING t.aggregate_name, t.version, t.prev_hash, t.head_hash)
  SELECT pg_catalog.array_agg(r.version ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.prev_hash ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.head_hash ORDER BY r.aggregate_name)
    INTO versions, v_prev, hashes FROM redeemed r;
  FOR n IN 1 .. v_count LOOP
    IF n > 1 AND p_aggregates[n] <= p_aggregates[n - 1] COLLATE "C" THEN
      RAISE EXCEPTION USING errcode = '22023',
        message = 'oplog: aggregates are not sorted or not distinct';
    END IF;
    IF p_expected[n] <> versions[n] - 1 THEN
      {_raise_stale("p_aggregates[n]", "p_expected[n]", "versions[n]")}
    END IF;
  END LOOP;
  v_first := pg_catalog.nextval({sequence});
  {_INSERT_MANY.format(s=s, sequence=sequence)}
  IF p_metadata_keys IS NOT NULL THEN
    {_METADATA.format(s=s, position="v_first")}
  END IF;
END $oplog_fn$"""
