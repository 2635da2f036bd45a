"""Functions by which roles save how far they came, as DDL.

Each writes one table, under the condition on which its readers rely. No role but the owner has a
right to write the tables themselves.
"""

from __future__ import annotations

from oplog.schema.touched_keys import DEFINER

PROGRESS_FUNCTIONS = (
    "declare_aborted(uuid)",
    "save_cursor(text, jsonb, jsonb, bigint)",
    "take_epoch(jsonb)",
    "acknowledge(jsonb, bigint)",
)
"""Functions to drop, without the prefix of their names."""
MAX_CONSUMER_BYTES = 1024
MAX_CURSOR_BYTES = 1024 * 1024
ARCHIVE_COLUMNS = (
    "archive_id, url, epoch, generation, sequence, chain, head, cursor, "
    "origin_server, origin_database, owner_server, owner_database"
)
"""What publishing writes of `oplog_archive`."""


def create_progress_functions(s: str) -> list[str]:
    """Statements that create the functions in the quoted schema `s`."""
    return [_declare_aborted(s), _save_cursor(s), _take_epoch(s), _acknowledge(s)]


def _declare_aborted(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_declare_aborted(p_record uuid) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Refuses a record for ever, unless it is there; whether that is so now. Waits for a session that
-- appends the record.
BEGIN
  IF p_record IS NULL THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: no record has no id',
      hint = 'give the id of a receipt';
  END IF;
  INSERT INTO {s}.oplog_outcome (record_id) VALUES (p_record) ON CONFLICT DO NOTHING;
  RETURN (SELECT o.position IS NULL FROM {s}.oplog_outcome o WHERE o.record_id = p_record);
END $oplog_fn$"""


def _save_cursor(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_save_cursor(
  p_name text, p_before jsonb, p_cursor jsonb, p_position bigint) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Saves a consumer's cursor; false if the saved one is not p_before any more.
BEGIN
  IF p_name IS NULL OR octet_length(p_name) NOT BETWEEN 1 AND {MAX_CONSUMER_BYTES}
    OR p_cursor IS NULL OR jsonb_typeof(p_cursor) <> 'object' OR p_position IS NULL
    OR octet_length(p_cursor::text) > {MAX_CURSOR_BYTES} THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: this is not a consumer''s cursor',
      hint = 'name a consumer with 1 to {MAX_CONSUMER_BYTES} bytes; log.subscribe saves its cursor';
  END IF;
  IF p_before IS NULL THEN
    INSERT INTO {s}.oplog_consumer (name, cursor, position)
    VALUES (p_name, p_cursor, p_position) ON CONFLICT DO NOTHING;
  ELSE
    UPDATE {s}.oplog_consumer SET cursor = p_cursor, position = p_position,
      updated_at = clock_timestamp() WHERE name = p_name AND cursor = p_before;
  END IF;
  RETURN FOUND;
END $oplog_fn$"""


def _take_epoch(s: str) -> str:
    given = f"jsonb_populate_record(NULL::{s}.oplog_archive, p_row)"
    return f"""CREATE FUNCTION {s}.oplog_take_epoch(p_row jsonb) RETURNS {s}.oplog_archive
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Raises the epoch of an archive over the stored one and the one given. The row that is given is
-- what to begin with if there is none.
DECLARE
  v_row {s}.oplog_archive;
BEGIN
  INSERT INTO {s}.oplog_archive AS a ({ARCHIVE_COLUMNS})
  SELECT {ARCHIVE_COLUMNS.replace(" epoch,", " epoch + 1,")} FROM {given}
  ON CONFLICT (archive_id) DO UPDATE SET epoch = greatest(a.epoch, excluded.epoch - 1) + 1,
    updated_at = clock_timestamp() RETURNING * INTO v_row;
  RETURN v_row;
END $oplog_fn$"""


def _acknowledge(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_acknowledge(p_row jsonb, p_position bigint) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Says what is published; false if the epoch of the archive is not the one given any more.
BEGIN
  UPDATE {s}.oplog_archive a SET ({ARCHIVE_COLUMNS}) = (
      SELECT {ARCHIVE_COLUMNS} FROM jsonb_populate_record(NULL::{s}.oplog_archive, p_row)),
    position = p_position, updated_at = clock_timestamp()
  WHERE a.archive_id = (p_row->>'archive_id')::uuid AND a.epoch = (p_row->>'epoch')::bigint;
  RETURN FOUND;
END $oplog_fn$"""
