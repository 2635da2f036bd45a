"""The function that redeems tickets and writes a record, as DDL.

It runs with the rights of the log's owner and sets time, position and transaction id itself: a role
that may call it needs no right to insert and cannot choose where or when a record stands. Every
ticket of a transaction is redeemed before the position is drawn. Otherwise an effect could get a
lower position than its cause, and replay would break foreign keys.

An aggregate that a transaction creates has no competitor but another creator, which the key of
`oplog_entry` finds. So it has no ticket before its second version.
"""

from __future__ import annotations

from oplog.crypto.sql_hashing import hash_body_statements, hash_record_statements
from oplog.postgres.quoting import quote_literal
from oplog.schema.append_checks import list_checks
from oplog.schema.guard import check_and_reset_tally
from oplog.schema.rights import APPLICATION_EXECUTES, FORMER_APPEND
from oplog.schema.touched_keys import DEFINER, PINNED
from oplog.schema.type_changes import refuse_old_types

STALE_TICKET = "OP001"
"""SQLSTATE of a redeem that lost: class OP is free for applications."""
FENCED = "OP006"
"""SQLSTATE of an append that arrives after its transaction was declared aborted."""
SENT_TWICE = "OP008"
"""SQLSTATE of an append under a record id that the log has."""
HEAD_MISSING = "OP009"
"""SQLSTATE of an append to an aggregate whose newest record was removed by hand."""
_CREATED = -1
"""What `oplog.store.rows.CREATED` is in SQL."""
_FEW = 32
"""So many aggregates are looked up one by one."""
_LOOK_AHEAD = 1024
"""One in so many positions looks whether the next partitions are there."""


def create_append_statements(s: str, p: str) -> list[str]:
    """Statements that create it, in the quoted schema `s` with settings' prefix `p`.

    And its like for the log's own marks, which nobody else may execute.
    """
    return [
        _append_function(s, p, name="append", rights=DEFINER, by_anybody=True),
        _append_function(s, p, name="append_mark", rights=PINNED, by_anybody=False),
    ]


_ARGUMENTS = (
    "uuid, text[], bigint[], bytea, integer[], bytea[], smallint, text, text[], text, bigint, "
    "oid[], oid[], bigint, bigint, boolean"
)
"""Types of the present functions' arguments."""


def rename_former_statement(s: str) -> str:
    """The statement that moves the function of an earlier definition aside."""
    name = quote_literal(f"{s}.oplog_append")
    return f"""DO $oplog_do$
DECLARE
  v_former regprocedure;
BEGIN
  FOR v_former IN SELECT p.oid FROM pg_catalog.pg_proc p
    WHERE p.oid IN (pg_catalog.to_regproc({name}), pg_catalog.to_regproc({name} || '_mark'))
      AND pg_catalog.oidvectortypes(p.proargtypes) <> '{_ARGUMENTS}' LOOP
    IF v_former::oid = pg_catalog.to_regproc({name}) THEN
      EXECUTE pg_catalog.concat('ALTER FUNCTION ', v_former, ' RENAME TO {FORMER_APPEND}');
    ELSE
      EXECUTE pg_catalog.concat('DROP FUNCTION ', v_former);
    END IF;
  END LOOP;
END $oplog_do$"""


def replace_former_statement(s: str) -> str:
    """The statement that gives roles which execute that function the present ones, and drops it."""
    functions = ", ".join(f"{s}.oplog_{name}" for name in APPLICATION_EXECUTES)
    return f"""DO $oplog_do$
DECLARE
  v_former regproc := pg_catalog.to_regproc({quote_literal(f"{s}.{FORMER_APPEND}")});
  v_grantee text;
BEGIN
  IF v_former IS NULL THEN RETURN; END IF;
  FOR v_grantee IN SELECT pg_catalog.quote_ident(r.rolname) FROM pg_catalog.pg_proc p
    CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) x
    JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
    WHERE p.oid = v_former AND x.grantee <> p.proowner LOOP
    EXECUTE pg_catalog.concat({quote_literal(f"GRANT EXECUTE ON FUNCTION {functions} TO ")},
      v_grantee);
  END LOOP;
  DROP FUNCTION {s}.{FORMER_APPEND};
END $oplog_do$"""


def _raise_stale(aggregate: str, expected: str, version: str) -> str:
    return f"""RAISE EXCEPTION USING errcode = '{STALE_TICKET}',
        message = pg_catalog.concat('oplog: the ticket of aggregate ',
          pg_catalog.quote_literal({aggregate}), ' was taken at version ', {expected},
          ', it is now at version ', {version}),
        hint = 'run the whole transaction again';"""


def _redeem(s: str, aggregate: str, expected: str) -> str:
    """Raise the version of an aggregate by one, and find its newest record.

    Sets `v_version`, and over 1 `v_hash`, which the next record continues, and `v_before`, where it
    stands. Waiting for the ticket's row lock is the queue of the aggregate's writers.
    """
    return f"""UPDATE {s}.oplog_ticket SET version = version + 1 WHERE aggregate_name = {aggregate}
        RETURNING version INTO v_version;
      IF NOT FOUND THEN
        INSERT INTO {s}.oplog_ticket AS t (aggregate_name, version)
        VALUES ({aggregate}, coalesce((SELECT e.version FROM {s}.oplog_entry e
          WHERE e.aggregate_name = {aggregate} ORDER BY e.version DESC LIMIT 1), 0) + 1)
        ON CONFLICT (aggregate_name) DO UPDATE SET version = t.version + 1
        RETURNING t.version INTO v_version;
      END IF;
      IF {expected} <> v_version - 1 THEN
        {_raise_stale(aggregate, expected, "v_version - 1")}
      END IF;
      IF v_version > 1 THEN
        SELECT e.position INTO v_before FROM {s}.oplog_entry e
          WHERE e.aggregate_name = {aggregate} AND e.version = v_version - 1;
        SELECT r.record_hash INTO v_hash FROM {s}.oplog_record r WHERE r.position = v_before;
        IF v_hash IS NULL THEN
          SELECT t.head_hash INTO v_hash FROM {s}.oplog_ticket t
            WHERE t.aggregate_name = {aggregate} AND t.head_version = v_version - 1;
        END IF;
        IF v_hash IS NULL THEN
          {_refuse_headless(aggregate)}
        END IF;
      END IF;"""


def _refuse_headless(aggregate: str) -> str:
    return f"""RAISE EXCEPTION USING errcode = '{HEAD_MISSING}',
            message = pg_catalog.concat('oplog: version ', v_version - 1, ' of aggregate ',
              pg_catalog.quote_literal({aggregate}), ' is not in the log, and the next one '
              'continues it'),
            hint = 'rows of the log were removed by hand: run oplog verify, and bring them back '
              'from the archive or a backup';"""


def _take_tickets(s: str) -> str:
    """Redeem what may have been written before; `v_hashes` gets the hashes to continue.

    A look-up for each is the cheapest for few aggregates, statements over all of them for many.
    """
    return f"""IF p_expected IS NOT NULL THEN
    IF v_count > {_FEW} AND (SELECT count(*) FROM pg_catalog.unnest(p_expected) AS e(version)
        WHERE e.version IS DISTINCT FROM {_CREATED}) > {_FEW} THEN
      {_redeem_many(s)}
    ELSE
      FOR n IN 1 .. v_count LOOP
        IF p_expected[n] = {_CREATED} THEN
          o_versions[n] := 1;
          CONTINUE;
        END IF;
        {_redeem(s, "p_aggregates[n]", "p_expected[n]")}
        o_versions[n] := v_version;
        IF v_version > 1 THEN v_hashes[n] := v_hash; END IF;
      END LOOP;
    END IF;
    IF v_hashes IS NULL THEN o_versions := NULL; END IF;
  END IF;"""


def _redeem_many(s: str) -> str:
    """`_redeem` for all that are not created, in their order.

    Hashes are read by a later statement than the one that waits for tickets: at READ COMMITTED it
    sees what was committed meanwhile.
    """
    given = "ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_expected))"
    return f"""WITH given AS MATERIALIZED (
        SELECT g.name, g.expected, g.n FROM {given} WITH ORDINALITY AS g(name, expected, n)),
      redeemed AS (
        INSERT INTO {s}.oplog_ticket AS t (aggregate_name, version)
        SELECT g.name, coalesce((SELECT e.version FROM {s}.oplog_entry e
          WHERE e.aggregate_name = g.name ORDER BY e.version DESC LIMIT 1), 0) + 1
        FROM given g WHERE g.expected IS DISTINCT FROM {_CREATED} ORDER BY g.n
        ON CONFLICT (aggregate_name) DO UPDATE SET version = t.version + 1
        RETURNING t.aggregate_name, t.version)
      SELECT pg_catalog.array_agg(coalesce(r.version, 1) ORDER BY g.n) INTO o_versions
      FROM given g LEFT JOIN redeemed r ON r.aggregate_name = g.name;
      FOR n IN 1 .. v_count LOOP
        IF p_expected[n] <> {_CREATED} AND p_expected[n] <> o_versions[n] - 1 THEN
          {_raise_stale("p_aggregates[n]", "p_expected[n]", "o_versions[n] - 1")}
        END IF;
      END LOOP;
      SELECT pg_catalog.array_agg(coalesce(r.record_hash, t.head_hash) ORDER BY w.n),
        count(*) FILTER (WHERE w.version > 1 AND coalesce(r.record_hash, t.head_hash) IS NULL),
        min(w.n) FILTER (WHERE w.version > 1 AND coalesce(r.record_hash, t.head_hash) IS NULL),
        count(*) FILTER (WHERE w.version > 1)
      INTO v_hashes, v_made, v_before, v_version
      FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(o_versions))
        WITH ORDINALITY AS w(name, version, n)
      LEFT JOIN {s}.oplog_entry e ON e.aggregate_name = w.name AND e.version = w.version - 1
      LEFT JOIN {s}.oplog_record r ON r.position = e.position
      LEFT JOIN {s}.oplog_ticket t ON t.aggregate_name = w.name AND t.head_version = w.version - 1;
      IF v_made > 0 THEN
        v_version := o_versions[v_before];
        {_refuse_headless("p_aggregates[v_before]")}
      END IF;
      IF v_version = 0 THEN v_hashes := NULL; END IF;"""


def _insert_outcome(s: str) -> str:
    """Claim the record id. A resolver that declares it aborted waits here, or is waited for."""
    return f"""INSERT INTO {s}.oplog_outcome (record_id, position, idempotency_key)
    VALUES (p_record, v_position, p_idempotency_key) ON CONFLICT (record_id) DO NOTHING;
  IF NOT FOUND THEN
    -- Of a fence that this transaction's snapshot does not show, only that it is no record.
    IF EXISTS (SELECT FROM {s}.oplog_outcome o
        WHERE o.record_id = p_record AND o.position IS NOT NULL) THEN
      RAISE EXCEPTION USING errcode = '{SENT_TWICE}',
        message = 'oplog: a record with this id is in the log already';
    END IF;
    RAISE EXCEPTION USING errcode = '{FENCED}',
      message = 'oplog: this transaction was declared aborted before its record arrived',
      hint = 'run the whole transaction again';
  END IF;"""


def _insert_entries(s: str) -> str:
    """Write the index of entries, and give aggregates that were there after all their version."""
    return f"""IF v_count = 1 THEN
    INSERT INTO {s}.oplog_entry (aggregate_name, version, position)
    VALUES (p_aggregates[1], coalesce(o_versions[1], 1), v_position) ON CONFLICT DO NOTHING;
  ELSIF o_versions IS NULL THEN
    INSERT INTO {s}.oplog_entry (aggregate_name, version, position)
    SELECT a.name, 1, v_position FROM pg_catalog.unnest(p_aggregates) AS a(name)
    ON CONFLICT DO NOTHING;
  ELSE
    INSERT INTO {s}.oplog_entry (aggregate_name, version, position)
    SELECT i.name, i.version, v_position
    FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(o_versions))
      AS i(name, version) ON CONFLICT DO NOTHING;
  END IF;
  GET DIAGNOSTICS v_made = ROW_COUNT;
  IF v_made < v_count THEN
    FOR n IN 1 .. v_count LOOP
      v_version := coalesce(o_versions[n], 1);
      CONTINUE WHEN EXISTS (SELECT FROM {s}.oplog_entry e WHERE e.position = v_position
        AND e.aggregate_name = p_aggregates[n] AND e.version = v_version);
      IF p_expected[n] >= 0 THEN
        {_raise_stale("p_aggregates[n]", "p_expected[n]", "v_version")}
      END IF;
      {_redeem(s, "p_aggregates[n]", "NULL::bigint")}
      -- The position was drawn before this aggregate was waited for.
      IF v_before > v_position THEN
        {_raise_stale("p_aggregates[n]", "0", "v_version - 1")}
      END IF;
      IF o_versions IS NULL THEN
        o_versions := pg_catalog.array_fill(1::bigint, ARRAY[v_count]);
      END IF;
      o_versions[n] := v_version;
      v_hashes[n] := v_hash;
      INSERT INTO {s}.oplog_entry (aggregate_name, version, position)
      VALUES (p_aggregates[n], v_version, v_position);
    END LOOP;
  END IF;"""


def _insert_record(s: str) -> str:
    return f"""INSERT INTO {s}.oplog_record (position, record_id, format, key_id, data, parts,
    aggregates, versions, prev_hashes, metadata, record_hash, created_at, idempotency_key)
  VALUES (v_position, p_record, p_format, p_key_id, p_data,
    1 + coalesce(pg_catalog.cardinality(p_more), 0), p_aggregates, o_versions,
    CASE WHEN o_versions IS NOT NULL THEN v_joined END, p_metadata, o_hash, v_now,
    p_idempotency_key);
  IF p_more IS NOT NULL THEN
    INSERT INTO {s}.oplog_part (position, number, first, data)
    SELECT v_position, i.n, i.first, i.data
    FROM ROWS FROM (pg_catalog.unnest(p_firsts), pg_catalog.unnest(p_more)) WITH ORDINALITY
      AS i(first, data, n);
  END IF;
  -- Of a text that is missing there is no token, and none is refused: metadata are pairs.
  IF p_metadata IS NOT NULL THEN
    INSERT INTO {s}.oplog_token (token, position)
    SELECT {state_token("p_metadata[n]", "p_metadata[n + 1]")}, v_position
    FROM pg_catalog.generate_series(1, pg_catalog.cardinality(p_metadata), 2) AS n;
  END IF;"""


def state_token(key: str, value: str) -> str:
    """What a metadata pair is looked up by, as an expression of type bigint.

    A digest, not the value: a long value in a btree fails the application's transaction.
    """
    return f"""pg_catalog.hashtextextended(({key} || '=' || {value})::text COLLATE "C", 0)"""


def _append_function(s: str, p: str, *, name: str, rights: str, by_anybody: bool) -> str:
    return f"""CREATE FUNCTION {s}.oplog_{name}(
  p_record uuid, p_aggregates text[], p_expected bigint[], p_data bytea,
  p_firsts integer[], p_more bytea[], p_format smallint, p_key_id text, p_metadata text[],
  p_idempotency_key text, p_epoch bigint, p_relations oid[], p_labels oid[], p_form bigint,
  p_tally bigint, p_asynchronous boolean,
  OUT o_versions bigint[], OUT o_hash bytea)
LANGUAGE plpgsql {rights} SET plan_cache_mode = force_generic_plan AS $oplog_fn$
-- A plan for each call would plan the partitioned tables each time: hence the setting.
-- p_aggregates are in "C" order, one lock order for everybody. p_expected has the version of each
-- one's ticket, NULL for any, {_CREATED} for one that this transaction creates; NULL: all are
-- created. o_versions is NULL if all are 1. {STALE_TICKET}: an aggregate was written since.
DECLARE
  v_set text;
  v_count integer := pg_catalog.cardinality(p_aggregates);
  v_texts integer := coalesce(pg_catalog.cardinality(p_metadata), 0);
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_name text;
  v_last text;
  v_reserved text;
  v_size bigint;
  v_epoch bigint; v_form bigint;
  v_position bigint;
  v_version bigint;
  v_before bigint;
  v_made integer;
  v_hash bytea;
  v_hashes bytea[];
  v_bytes bytea;
  v_body bytea;
  v_body_hash bytea;
  v_joined bytea := ''::bytea;
  v_numbers bytea := ''::bytea;
BEGIN
  {list_checks(s, by_anybody=by_anybody)}
  {refuse_old_types(s) if by_anybody else ""}
  IF p_tally IS NOT NULL THEN
  {check_and_reset_tally(p)}
  END IF;
  {hash_body_statements()}
  {_take_tickets(s)}
  v_position := pg_catalog.nextval({_name_sequence(s)});
  IF v_position & {_LOOK_AHEAD - 1} = 0 THEN
    PERFORM {s}.oplog_make_partitions(v_position);
  END IF;
  {_insert_outcome(s)}
  {_insert_entries(s)}
  {hash_record_statements()}
  {_insert_record(s)}
END $oplog_fn$"""


def _name_sequence(s: str) -> str:
    name = f"{s}.oplog_position_seq".replace("'", "''")
    return f"'{name}'"
