"""The function that retires a key, as DDL.

A key that may have leaked must not seal any more, in whatever process: the append function refuses
its records from then on. It stays in keyrings, because what it has sealed is read with it.
"""

from __future__ import annotations

from oplog.schema.touched_keys import DEFINER


def create_key_statements(s: str) -> list[str]:
    """Statements that create it in the quoted schema `s`. Only the owner may execute it."""
    return [_retire_key(s)]


def _retire_key(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_retire_key(p_key_id text) RETURNS timestamptz
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Returns when the key was retired, be it now or before. A transaction that has appended with it
-- may still commit; an append that begins after this has committed is refused.
DECLARE
  v_retired timestamptz;
BEGIN
  -- An older snapshot might show a key that has just been retired as the one that is left.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION USING errcode = '25000',
      message = 'oplog: a key is retired in a transaction that is READ COMMITTED';
  END IF;
  -- Of two retirements at once, the second waits. Nobody else does.
  LOCK TABLE {s}.oplog_key IN SHARE UPDATE EXCLUSIVE MODE;
  SELECT k.retired_at INTO v_retired FROM {s}.oplog_key k WHERE k.key_id = p_key_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = concat('oplog: the log does not know the key ', quote_nullable(p_key_id)),
      hint = '`oplog keys list --log` shows those that it knows';
  END IF;
  IF v_retired IS NOT NULL THEN RETURN v_retired; END IF;
  IF NOT EXISTS (SELECT FROM {s}.oplog_key k
      WHERE k.key_id <> p_key_id AND k.retired_at IS NULL) THEN
    RAISE EXCEPTION USING errcode = '55000',
      message = concat('oplog: the key ', quote_literal(p_key_id), ' is the last that may seal'),
      hint = 'rotate the keyring, and register its new key: `oplog keys rotate` and '
        '`oplog types sync`, or the first transaction of a process that has it';
  END IF;
  UPDATE {s}.oplog_key k SET retired_at = clock_timestamp() WHERE k.key_id = p_key_id
    RETURNING k.retired_at INTO v_retired;
  RETURN v_retired;
END $oplog_fn$"""
