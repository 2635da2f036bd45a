"""Functions that work out from the catalog what became of a type's table, as DDL.

PostgreSQL itself knows what a migration did: a column keeps its number and a table its oid through
a renaming, a default that is the same for all rows is kept beside the table, and whatever rewrites
rows gives the table another file. What was last seen of that is kept in `oplog_type_state`.
"""

from __future__ import annotations

from oplog.postgres.table_form import hash_labels, hash_relations
from oplog.schema.column_judgement import PINNED, describe_change, judge_numbers
from oplog.schema.mark_names import (
    ADOPTION_PREFIX,
    RETIRED,
    RETIRED_REVISION,
    SCHEMA_CHANGE,
    SCHEMA_REVISION,
)
from oplog.schema.touched_keys import DEFINER

TYPES_CHANGED = "OP011"
"""SQLSTATE of an append by a process that knows the types of before a schema change."""

CHANGE_TABLES = ("type_state", "epoch")
CHANGE_FUNCTIONS = (
    "mark_change(text, integer, text)",
    "retire_missing()",
    "renew_state(text)",
    "keep_state(text, oid)",
    "raise_epoch()",
    "describe_change(text, jsonb, oid)",
    "judge_numbers(text, jsonb, oid)",
    "list_files(oid)",
    "list_columns(oid)",
    "list_made(oid)",
    "is_marked(text, integer)",
    "is_retired(text, integer)",
    "find_database()",
)
"""Functions to drop, without the prefix of their names."""


def create_change_tables(s: str) -> list[str]:
    """The tables in the quoted schema `s`."""
    return [
        # Of this database only: after a restore it says nothing, and is kept anew.
        f"""CREATE TABLE {s}.oplog_type_state (
  type_name text COLLATE "C" PRIMARY KEY,
  database_id text COLLATE "C" NOT NULL,
  table_oid bigint NOT NULL,
  files jsonb NOT NULL,
  columns jsonb NOT NULL)""",
        f"""CREATE TABLE {s}.oplog_epoch (
  epoch bigint NOT NULL)""",
        f"INSERT INTO {s}.oplog_epoch SELECT 0 WHERE NOT EXISTS (SELECT FROM {s}.oplog_epoch)",
    ]


def create_change_functions(s: str) -> list[str]:
    """The functions, in an order in which each finds those that it calls."""
    return [
        _find_database(s),
        _is_retired(s),
        _is_marked(s),
        _list_files(s),
        _list_made(s),
        _list_columns(s),
        judge_numbers(s),
        describe_change(s),
        _keep_state(s),
        _renew_state(s),
        _raise_epoch(s),
        _mark_change(s),
        _retire_missing(s),
    ]


def refuse_old_types(s: str) -> str:
    """PL/pgSQL that raises if tables were changed since the writer looked at them.

    `p_epoch` is the number of schema changes that were noted then; NULL asks for nothing.
    `p_relations` are the written tables, and the composite types in them, `p_labels` the labels of
    enum types, and `p_form` is what they were: there may be a change that nobody noted yet.

    A transaction whose snapshot is older than a change sees the number of before: locking the row
    raises 40001 then.
    """
    read = (
        f"SELECT e.epoch, ({hash_relations('p_relations')}) INTO v_epoch, v_form "
        f"FROM {s}.oplog_epoch e"
    )
    return f"""IF p_epoch IS NOT NULL THEN
    IF pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
      {read};
    ELSE
      {read} FOR SHARE;
    END IF;
    IF p_labels IS NOT NULL THEN
      v_form := v_form # ({hash_labels("p_labels")});
    END IF;
    IF p_epoch <> v_epoch OR p_form <> v_form THEN
      RAISE EXCEPTION USING errcode = '{TYPES_CHANGED}',
        message = 'oplog: tables were changed since this process looked at them',
        hint = 'run the whole transaction again: the next one knows the tables of now';
    END IF;
  END IF;"""


# -- what is there ----------------------------------------------------------------------------


def _find_database(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_find_database() RETURNS text
LANGUAGE sql STABLE {PINNED} AS $oplog_fn$
SELECT concat(i.system_identifier, '/', d.oid) FROM pg_control_system() i, pg_database d
WHERE d.datname = current_database()
$oplog_fn$"""


def _is_retired(s: str) -> str:
    said = f"""'{RETIRED}' = ANY (m.metadata) AND EXISTS (
    SELECT FROM generate_series(1, cardinality(m.metadata), 2) AS n
    WHERE m.metadata[n] = '{RETIRED_REVISION}' AND m.metadata[n + 1] = p_revision::text)"""
    return f"""CREATE FUNCTION {s}.oplog_is_retired(p_type text, p_revision integer)
RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $oplog_fn$
-- Whether the type was retired when this revision was its newest.
SELECT EXISTS (SELECT FROM {s}.oplog_entry e JOIN {s}.oplog_record m ON m.position = e.position
    WHERE e.aggregate_name = concat('{ADOPTION_PREFIX}', p_type) AND {said})
  OR EXISTS (SELECT FROM {s}.oplog_outcome m
    WHERE m.aggregates IS NOT NULL AND concat('{ADOPTION_PREFIX}', p_type) = ANY (m.aggregates)
      AND {said})
$oplog_fn$"""


def _is_marked(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_is_marked(p_type text, p_revision integer)
RETURNS boolean LANGUAGE plpgsql STABLE {DEFINER} AS $oplog_fn$
-- Whether the log says from where on the table has the shape of this revision. It need not of the
-- first one.
DECLARE
  v_aggregate text := concat('{ADOPTION_PREFIX}', p_type);
  v_metadata text[] := ARRAY['{SCHEMA_CHANGE}', p_type, '{SCHEMA_REVISION}', p_revision::text];
BEGIN
  RETURN p_revision = (SELECT min(t.revision) FROM {s}.oplog_type t WHERE t.type_name = p_type)
    OR EXISTS (SELECT FROM {s}.oplog_entry e JOIN {s}.oplog_record r ON r.position = e.position
      WHERE e.aggregate_name = v_aggregate AND r.metadata[1:4] = v_metadata)
    OR EXISTS (SELECT FROM {s}.oplog_outcome o WHERE o.aggregates IS NOT NULL
      AND v_aggregate = ANY (o.aggregates) AND o.metadata[1:4] = v_metadata);
END $oplog_fn$"""


def _list_files(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_list_files(p_table oid) RETURNS jsonb
LANGUAGE sql STABLE {PINNED} AS $oplog_fn$
-- The files that hold the table's rows, by the oid of the table or partition.
SELECT coalesce(jsonb_object_agg(c.oid, c.relfilenode::bigint), '{{}}')
FROM (SELECT p_table AS relid UNION SELECT t.relid FROM pg_partition_tree(p_table) t) r
JOIN pg_class c ON c.oid = r.relid WHERE c.relkind = 'r'
$oplog_fn$"""


def _list_made(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_list_made(p_type oid) RETURNS jsonb
LANGUAGE sql STABLE {PINNED} AS $oplog_fn$
-- Of what an array, a domain, a range or a composite type is made: by oid the labels of enums, and
-- by type and number the fields' types. The text of a value has those labels and fields.
WITH RECURSIVE part(oid) AS (
  SELECT t.oid FROM pg_type t WHERE t.oid = p_type AND (t.typtype <> 'b' OR t.typelem <> 0::oid)
  UNION SELECT i.oid FROM part JOIN pg_type p ON p.oid = part.oid CROSS JOIN LATERAL (
    SELECT p.typelem WHERE p.typelem <> 0::oid
    UNION ALL SELECT p.typbasetype WHERE p.typtype = 'd'
    UNION ALL SELECT e.atttypid FROM pg_attribute e
      WHERE e.attrelid = p.typrelid AND e.attnum > 0 AND NOT e.attisdropped
    UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE p.oid IN (r.rngtypid, r.rngmultitypid))
    i(oid))
SELECT jsonb_object_agg(m.key, m.value) FROM (
  SELECT concat('label ', l.oid) AS key, l.enumlabel::text AS value FROM part
  JOIN pg_enum l ON l.enumtypid = part.oid WHERE part.oid <> p_type
  UNION ALL SELECT concat('field ', p.oid, ' ', e.attnum), e.atttypid::bigint::text FROM part
  JOIN pg_type p ON p.oid = part.oid
  JOIN pg_attribute e ON e.attrelid = p.typrelid AND e.attnum > 0 AND NOT e.attisdropped) m
$oplog_fn$"""


def _list_columns(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_list_columns(p_table oid) RETURNS jsonb
LANGUAGE sql STABLE {PINNED} AS $oplog_fn$
-- By number: the type, the transaction that last altered the column, labels of an enum by oid, and
-- of what another type is made.
SELECT coalesce(jsonb_object_agg(a.attnum, jsonb_build_object('type', a.atttypid::bigint,
  'altered', a.xmin::text, 'labels', (SELECT jsonb_object_agg(l.oid, l.enumlabel)
    FROM pg_enum l WHERE l.enumtypid = a.atttypid),
  'made', {s}.oplog_list_made(a.atttypid))), '{{}}')
FROM pg_attribute a WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
$oplog_fn$"""


# -- keeping it -------------------------------------------------------------------------------


def _keep_state(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_keep_state(p_type text, p_table oid) RETURNS void
LANGUAGE sql {PINNED} AS $oplog_fn$
-- Keeps what the next change is compared with.
INSERT INTO {s}.oplog_type_state (type_name, database_id, table_oid, files, columns)
VALUES (p_type, {s}.oplog_find_database(), p_table, {s}.oplog_list_files(p_table),
  {s}.oplog_list_columns(p_table))
ON CONFLICT (type_name) DO UPDATE SET database_id = excluded.database_id,
  table_oid = excluded.table_oid, files = excluded.files, columns = excluded.columns
$oplog_fn$"""


def _renew_state(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_renew_state(p_type text) RETURNS boolean
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Compares the next change with what the table is now, if nothing became of its rows: a table may
-- have been written anew without any change, and that is not to be taken for one later.
DECLARE
  v_newest {s}.oplog_type;
  v_table oid;
BEGIN
  SELECT * INTO v_newest FROM {s}.oplog_type t WHERE t.type_name = p_type
    ORDER BY t.revision DESC LIMIT 1;
  SELECT n.table_oid::oid INTO v_table FROM {s}.oplog_type_numbers n WHERE n.type_name = p_type
    AND n.revision = v_newest.revision AND n.database_id = {s}.oplog_find_database();
  IF v_table IS NULL OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = v_table)
    OR {s}.oplog_judge_columns(v_table, v_newest.shape->'columns') IS NOT NULL
    OR {s}.oplog_describe_change(p_type, v_newest.shape, v_table) - 'previous' <>
      '{{"fills": {{}}, "rewritten": [], "labels": {{}}, "readopted": false}}' THEN
    RETURN false;
  END IF;
  PERFORM {s}.oplog_keep_state(p_type, v_table);
  RETURN true;
END $oplog_fn$"""


def _raise_epoch(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_raise_epoch() RETURNS void
LANGUAGE sql {PINNED} AS $oplog_fn$
-- From the COMMIT on, appends of processes that know the types of before are refused.
UPDATE {s}.oplog_epoch SET epoch = epoch + 1
$oplog_fn$"""


def _mark_change(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_mark_change(p_type text, p_revision integer, p_reason text)
RETURNS boolean LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Says in the log that from here on the type's table has the shape of this revision; false if that
-- was said, or if nothing was before it.
BEGIN
  IF p_revision IS DISTINCT FROM (SELECT max(t.revision) FROM {s}.oplog_type t
      WHERE t.type_name = p_type) THEN
    RAISE EXCEPTION USING errcode = '22023', message = concat('oplog: revision ', p_revision,
      ' is not the newest of type ', quote_nullable(p_type)),
      hint = 'oplog types sync stores the types of an application, and says so';
  END IF;
  IF {s}.oplog_is_marked(p_type, p_revision) THEN RETURN false; END IF;
  PERFORM {s}.oplog_write_mark(concat('{ADOPTION_PREFIX}', p_type),
    ARRAY['{SCHEMA_CHANGE}', '{SCHEMA_REVISION}', 'oplog.role', 'oplog.reason'],
    ARRAY[p_type, p_revision::text, session_user::text, left(coalesce(p_reason, ''), 250)]);
  RETURN true;
END $oplog_fn$"""


def _retire_missing(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_retire_missing() RETURNS text[]
LANGUAGE plpgsql {DEFINER} AS $oplog_fn$
-- Retires the types whose tables this database had and has no more; their names. Where another
-- table with rows has the name, what became of the type's rows is for op.replace_type to say.
DECLARE
  v_type text;
  v_other regclass;
  v_retired text[] := '{{}}';
BEGIN
  FOR v_type, v_other IN SELECT t.type_name, to_regclass(concat(
      quote_ident(k.shape->>'schema'), '.', quote_ident(k.shape->>'table')))
    FROM (SELECT n.type_name, max(n.revision) AS revision FROM {s}.oplog_type n GROUP BY 1) t
    JOIN {s}.oplog_type k ON k.type_name = t.type_name AND k.revision = t.revision
    JOIN {s}.oplog_type_numbers n ON n.type_name = t.type_name AND n.revision = t.revision
      AND n.database_id = {s}.oplog_find_database()
    WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = n.table_oid::oid)
      AND NOT {s}.oplog_is_retired(t.type_name, t.revision) ORDER BY 1
  LOOP
    -- One that was renamed is known by another type.
    CONTINUE WHEN v_other IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.oplog_type_numbers n
        WHERE n.database_id = {s}.oplog_find_database() AND n.table_oid = v_other::oid)
      AND {s}.oplog_is_filled(v_other);
    PERFORM {s}.oplog_retire_type(v_type, 'its table was dropped');
    v_retired := v_retired || v_type;
  END LOOP;
  IF v_retired <> '{{}}' THEN PERFORM {s}.oplog_raise_epoch(); END IF;
  RETURN v_retired;
END $oplog_fn$"""
