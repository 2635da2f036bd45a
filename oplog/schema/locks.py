"""Locks that only roles which may call the log's functions can hold, as DDL.

Everybody may take an advisory lock with any number, and `pg_locks` shows the numbers that are in
use. So what must not be stopped by a stranger waits for rows here: a lock is a row that a
transaction inserts or locks, and ends with the transaction, however that ends. No role needs a
right on the tables. A reader at SERIALIZABLE would even cause serialization failures.
"""

from __future__ import annotations

from oplog.postgres.quoting import quote_literal
from oplog.schema.touched_keys import DEFINER

LOCK_TABLES = ("oplog_claim", "oplog_lock")
"""Tables without content, which nobody reads."""
CLAIM_INDEX = "oplog_claim_pkey"
"""Unique, so that no key is held twice."""
PARTITIONS_LOCK = "partitions"
"""Held by the transaction that makes partitions, and by a restore."""
PRUNE_LOCK = "prune"
"""Held while pruning."""
RESTORE_LOCK = "restore"
"""Held by what fills a database from an archive."""
KEPT_LOCKS = (PARTITIONS_LOCK, PRUNE_LOCK, RESTORE_LOCK)
"""Locks whose rows are never removed, as those of archives: who tries for one must get it."""
WAITED_FOR = ("claim", "lock", "lease")
"""Functions with which named roles hold what others wait for, without the prefix."""
LOCK_FUNCTIONS = (
    "claim(text)",
    "lock(text[])",
    "lease(uuid)",
    "try_lock(text)",
    "hold(text)",
)
"""Functions to drop, without the prefix of their names."""
_KEY_MARK = "oplog key"
_PATIENCE = "10ms"
"""How long a lock is waited for by who does not want to wait: PostgreSQL has no shorter way."""


def create_lock_statements(s: str, schema: str) -> list[str]:
    """The tables and functions, in the schema with this name, quoted `s`."""
    return [
        # Logged: a prepared transaction outlives a crash and a failover, and so does its claim.
        # Else the key would be answered ABORTED while its transaction may yet commit.
        f"""CREATE TABLE {s}.oplog_claim (
  name bytea PRIMARY KEY)""",
        # Unlogged: what is held here ends with a crash, or another check finds the conflict. Rows
        # stay, so that a lock leaves no dead row: all waiters would have to read all of those
        # while any old snapshot is open. `oplog maintain` removes those of aggregates that nobody
        # holds. No truncation, which would be taken for a holder.
        f"""CREATE UNLOGGED TABLE {s}.oplog_lock (
  name bytea PRIMARY KEY) WITH (vacuum_truncate = off)""",
        _claim(s, schema),
        _hold(s),
        _try_lock(s),
        _lock(s),
        _lease(s),
    ]


def name_key_mark(schema: str) -> str:
    """What precedes a key in the text whose hash marks who holds the key."""
    return f"{_KEY_MARK} {schema}/"


def _claim(s: str, schema: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_claim(p_key text) RETURNS void
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Holds an idempotency key until the transaction ends, and waits for another transaction that
-- does. The row is found by the unique index whatever the snapshot, and is gone at COMMIT.
DECLARE
  v_row tid;
BEGIN
  IF p_key IS NULL THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: there is no key to hold',
      hint = 'give an idempotency key';
  END IF;
  INSERT INTO {s}.oplog_claim (name) VALUES (sha256(convert_to(p_key, 'UTF8')))
    RETURNING ctid INTO v_row;
  -- By its place: a look-up in the index would conflict with other claims at SERIALIZABLE.
  DELETE FROM {s}.oplog_claim WHERE ctid = v_row;
  -- Only a mark, by which the holder is named. Who takes its number first hides it, and stops
  -- nobody.
  PERFORM pg_try_advisory_xact_lock_shared(
    hashtextextended(concat('{_KEY_MARK} ', {quote_literal(schema)}, '/', p_key), 0));
END $oplog_fn$"""


def _hold(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_hold(p_name text) RETURNS void
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Holds a lock until the transaction ends; waits in line for it. A row that is there is locked and
-- not changed: no dead row, and no conflict at SERIALIZABLE.
BEGIN
  INSERT INTO {s}.oplog_lock (name) VALUES (sha256(convert_to(p_name, 'UTF8')))
    ON CONFLICT (name) DO UPDATE SET name = excluded.name WHERE false;
END $oplog_fn$"""


def _try_lock(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_try_lock(p_name text) RETURNS boolean
LANGUAGE plpgsql {DEFINER} SET lock_timeout = '{_PATIENCE}' AS $oplog_fn$
-- Holds a lock until the transaction ends, unless another transaction holds it.
BEGIN
  PERFORM {s}.oplog_hold(p_name);
  RETURN true;
EXCEPTION
  WHEN lock_not_available THEN RETURN false;
  -- Held for the first time, and given back, after this transaction's snapshot.
  WHEN serialization_failure THEN RETURN false;
END $oplog_fn$"""


def _lock(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_lock(p_aggregates text[]) RETURNS void
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Holds aggregates until the transaction ends, taken one after the other in the order given.
DECLARE
  v_name text;
BEGIN
  IF p_aggregates IS NULL OR array_ndims(p_aggregates) > 1 THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: there is nothing to lock',
      hint = 'give the names of aggregates as a list';
  END IF;
  FOREACH v_name IN ARRAY p_aggregates LOOP
    PERFORM {s}.oplog_hold(concat('aggregate/', v_name));
  END LOOP;
END $oplog_fn$"""


def _lease(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_lease(p_archive uuid) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Holds the right to publish to an archive until the transaction ends, unless another has it. NULL
-- if it is held, and the archive's row was written after this transaction's snapshot: this one
-- could publish and not write the receipt.
BEGIN
  IF NOT {s}.oplog_try_lock(concat('archive/', p_archive)) THEN
    RETURN false;
  END IF;
  BEGIN
    PERFORM FROM {s}.oplog_archive WHERE archive_id = p_archive FOR SHARE;
    -- Gives the row back: who takes this transaction for dead must be able to write it.
    RAISE EXCEPTION 'oplog: the row is as the snapshot has it';
  EXCEPTION
    WHEN raise_exception THEN RETURN true;
    WHEN serialization_failure THEN RETURN NULL;
  END;
END $oplog_fn$"""
