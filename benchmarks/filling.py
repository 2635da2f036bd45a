"""A log with many records, made by SQL: sealed parts of random bytes that nobody opens.

Every record leaves all that a transaction leaves: its row with its hash, an entry of an aggregate
of its own, its id and one pair of metadata, in all indexes. Each has a transaction id of its own,
as the planner would expect of records that transactions wrote.
"""

from __future__ import annotations

from sqlalchemy.engine import Engine

CHUNK_RECORDS = 50_000
_USE_IDS = """DO $do$ BEGIN
  SET synchronous_commit = off;
  FOR n IN 1 .. {count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP;
END $do$"""
"""Transactions that do nothing, so that their ids are those of the past."""
_MAKE = """CREATE TEMPORARY TABLE made ON COMMIT DROP AS
SELECT n AS position, 'filled/' || n AS aggregate, 'clerk ' || mod(n, 1000) AS clerk,
  (%s::bigint + n)::text::xid8 AS transaction_id,
  -- Rises with the position and is random behind that, as ids of records are.
  (lpad(to_hex(n), 12, '0') || substr(md5(n::text), 13))::uuid AS record_id,
  sha256(('a' || n)::bytea) || sha256(('b' || n)::bytea) || sha256(('c' || n)::bytea) AS data,
  clock_timestamp() AS created_at
FROM generate_series(%s::bigint, %s::bigint) n"""


def _frame(text: str) -> str:
    return f"int4send(octet_length({text})) || convert_to({text}, 'UTF8')"


_HASH = f"""sha256('oplog/v1/record'::bytea || '\\x00'::bytea || sha256(
  'oplog/v1/record-body'::bytea || '\\x00'::bytea || int4send(1) || uuid_send(record_id)
  || {_frame("'key'")} || int4send(1) || {_frame("'actor'")} || {_frame("clerk")} || '\\x00'::bytea
  || int4send(1) || {_frame("aggregate")} || int4send(1) || int4send(0) || sha256(data))
  || int8send(position) || timestamptz_send(created_at))"""
"""Hash of such a record: the worker publishes none that does not match."""
_INSERTS = (
    f"""INSERT INTO oplog.oplog_record (position, record_id, transaction_id, format, key_id, data,
  parts, aggregates, metadata, record_hash, created_at)
SELECT position, record_id, transaction_id, 1, 'key', data, 1, ARRAY[aggregate],
  ARRAY['actor', clerk], {_HASH}, created_at
FROM made ORDER BY position""",  # noqa: S608 - no text of anybody else's
    """INSERT INTO oplog.oplog_entry (aggregate_name, version, position)
SELECT aggregate, 1, position FROM made""",
    """INSERT INTO oplog.oplog_outcome (record_id, position)
SELECT record_id, position FROM made ORDER BY position""",
    """INSERT INTO oplog.oplog_token (token, position)
SELECT hashtextextended(('actor=' || clerk) COLLATE "C", 0), position FROM made""",
)


def fill_records(engine: Engine, count: int) -> None:
    """Add so many records behind those that are there, and tidy up as autovacuum would."""
    with engine.connect() as connection:
        begin = connection.exec_driver_sql(
            "SELECT coalesce(max(position), 0) + 1 FROM oplog.oplog_record"
        ).scalar_one()
    end = begin + count
    for first in range(begin, end, CHUNK_RECORDS):
        last = min(end, first + CHUNK_RECORDS) - 1
        used = _use_ids(engine, last - first + 1)
        with engine.begin() as connection:
            # The partition of `last` is this chunk's, or the next one, and both are made.
            connection.exec_driver_sql("SELECT oplog.oplog_make_partitions(%s)", (first,))
            connection.exec_driver_sql(_MAKE, (used - first, first, last))
            for statement in _INSERTS:
                connection.exec_driver_sql(statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SELECT setval('oplog.oplog_position_seq', %s)", (end - 1,))
        # As an append does at these positions, for the records that come next.
        connection.exec_driver_sql("SELECT oplog.oplog_make_partitions(%s)", (end,))
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")


def _use_ids(engine: Engine, count: int) -> int:
    """Use up so many transaction ids; the first of them."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = connection.exec_driver_sql(
            "SELECT pg_current_xact_id()::text::bigint"
        ).scalar_one()
        connection.exec_driver_sql(_USE_IDS.format(count=count))
        connection.exec_driver_sql("RESET synchronous_commit")
    return int(before) + 1
