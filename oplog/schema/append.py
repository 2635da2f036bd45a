"""The two functions that redeem tickets and write entries, as DDL.

They run with the rights of the log's owner and set time, position and transaction id themselves: a
role that may call them needs no right to insert and cannot choose where or when an entry stands.
Every ticket of a transaction is redeemed before the first entry id is drawn. Otherwise an effect
could get a lower position than its cause, and replay would break foreign keys.
"""

from __future__ import annotations

from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED
from oplog.schema.guard import ADOPTION_PREFIX, FORMAT_MARK, check_and_reset_tally
from oplog.schema.touched_keys import DEFINER

STALE_TICKET = "OP001"
"""SQLSTATE of a redeem that lost: class OP is free for applications."""
ASYNCHRONOUS_COMMIT = "OP005"
"""SQLSTATE of an append in a transaction that would not wait for its own durability."""
FENCED = "OP006"
"""SQLSTATE of an append that arrives after its transaction was declared aborted."""


def create_append_statements(s: str, p: str) -> list[str]:
    """Statements that create both, in the quoted schema `s` with settings' prefix `p`."""
    return [_append_one_function(s, p), _append_function(s, p)]


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


def _refuse_asynchronous() -> str:
    # Off, a crash loses transactions that were acknowledged; nothing in the log would say so.
    return f"""IF NOT p_asynchronous
      AND pg_catalog.current_setting('synchronous_commit') = 'off' THEN
    RAISE EXCEPTION USING errcode = '{ASYNCHRONOUS_COMMIT}',
      message = 'oplog: synchronous_commit is off: a crash would lose acknowledged transactions',
      hint = 'SET synchronous_commit = on, or say Oplog(asynchronous_commit=True)';
  END IF;"""


def _refuse_format() -> str:
    # What pruning leaves has a format too: readers pass it over, so nobody may append it.
    known = f"{FORMAT_SEALED}, {FORMAT_PLAIN}, {FORMAT_MARK}"
    return f"""IF p_format IS NULL OR p_format NOT IN ({known}) THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = pg_catalog.concat('oplog: an entry of format ', p_format, ' cannot be appended');
  END IF;"""


_AMONG_MANY = (
    "EXISTS (SELECT FROM pg_catalog.unnest(p_aggregates) a(name) "
    "WHERE pg_catalog.starts_with(a.name, {0}))"
)


def _refuse_retirement(condition: str) -> str:
    # A mark there says that all rows of a type are gone: replay and restore go by it.
    return f"""IF p_format = {FORMAT_MARK} AND {condition.format(f"'{ADOPTION_PREFIX}'")}
    AND NOT pg_catalog.pg_has_role(session_user, current_user, 'MEMBER') THEN
    RAISE EXCEPTION USING errcode = '42501',
      message = 'oplog: only the owner of the log says that a type is gone',
      hint = 'op.retire_type in a migration';
  END IF;"""


def _refuse_fenced(s: str, among: str) -> str:
    """After redeeming: a fencing session holds the ticket, so that one of both sees the other."""
    return f"""IF EXISTS (SELECT FROM {s}.oplog_fence f WHERE f.entry_id {among}) THEN
    RAISE EXCEPTION USING errcode = '{FENCED}',
      message = 'oplog: this transaction was declared aborted before its entry arrived',
      hint = 'run the whole transaction again';
  END IF;"""


def _append_one_function(s: str, p: str) -> str:
    sequence = _name_sequence(s)
    source = f"VALUES (p_aggregate, 1, {_ZERO}, {_first_hash('p_body')}, p_body)"
    return f"""CREATE FUNCTION {s}.oplog_append_one(
  p_aggregate text, p_expected bigint, p_entry_id uuid, p_body bytea, p_data bytea,
  p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  p_asynchronous boolean,
  OUT o_version bigint, OUT o_hash bytea)
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- oplog_append for the usual transaction, which writes one aggregate: the same steps in the
-- same order, without arrays, at half the cost.
DECLARE
  v_set text;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_prev bytea;
  v_position bigint;
BEGIN
  {_refuse_format()}
  {_refuse_retirement("pg_catalog.starts_with(p_aggregate, {0})")}
  {_refuse_asynchronous()}
  IF p_tally IS NOT NULL THEN
  {check_and_reset_tally(p)}
  END IF;
  {_redeem(s, source, "p_body")}
  RETURNING t.version, t.prev_hash, t.head_hash INTO o_version, v_prev, o_hash;
  IF p_expected <> o_version - 1 THEN
    {_raise_stale("p_aggregate", "p_expected", "o_version")}
  END IF;
  {_refuse_fenced(s, "= p_entry_id")}
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
    sequence = _name_sequence(s)
    source = f"""SELECT i.aggregate, 1, {_ZERO}, {_first_hash("i.body")}, i.body
  FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_bodies))
       AS i(aggregate, body)
  ORDER BY i.aggregate COLLATE \"C\""""
    return f"""CREATE FUNCTION {s}.oplog_append(
  p_aggregates text[], p_expected bigint[], p_entry_ids uuid[], p_bodies bytea[],
  p_data bytea[], p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  p_asynchronous boolean,
  OUT versions bigint[], OUT hashes bytea[])
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
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
  {_refuse_format()}
  {_refuse_retirement(_AMONG_MANY)}
  {_refuse_asynchronous()}
  IF p_tally IS NOT NULL THEN
  {check_and_reset_tally(p)}
  END IF;
  WITH redeemed AS (
  {_redeem(s, source, "excluded.body_hash")}
  RETURNING t.aggregate_name, t.version, t.prev_hash, t.head_hash)
  SELECT pg_catalog.array_agg(r.version ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.prev_hash ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.head_hash ORDER BY r.aggregate_name)
    INTO versions, v_prev, hashes FROM redeemed r;
  {_compare_tickets()}
  {_refuse_fenced(s, "= ANY (p_entry_ids)")}
  v_first := pg_catalog.nextval({sequence});
  {_INSERT_MANY.format(s=s, sequence=sequence)}
  IF p_metadata_keys IS NOT NULL THEN
    {_METADATA.format(s=s, position="v_first")}
  END IF;
END $oplog_fn$"""


def _compare_tickets() -> str:
    return f"""FOR n IN 1 .. v_count LOOP
    IF n > 1 AND p_aggregates[n] <= p_aggregates[n - 1] COLLATE "C" THEN
      RAISE EXCEPTION USING errcode = '22023',
        message = 'oplog: aggregates are not sorted or not distinct';
    END IF;
    IF p_expected[n] <> versions[n] - 1 THEN
      {_raise_stale("p_aggregates[n]", "p_expected[n]", "versions[n]")}
    END IF;
  END LOOP;"""


def _name_sequence(s: str) -> str:
    name = f"{s}.oplog_entry_id_seq".replace("'", "''")
    return f"'{name}'"
