"""What is new is found without reading the log, whatever transaction ids its records have."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Connection, Engine

from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.feed import Feed
from oplog.store.intake import RESTORED_ID

pytestmark = pytest.mark.postgres

RECORDS = 20_000


def fill(connection: Connection) -> None:
    """Records as a restore leaves them: all with one transaction id."""
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_record (position, record_id, transaction_id, format, key_id, "
        "data, parts, aggregates, record_hash, created_at) SELECT n, gen_random_uuid(), %s, 1, "
        "'key', '\\x00', 1, ARRAY['a/' || n], sha256(n::text::bytea), now() "
        "FROM generate_series(1, %s) n",
        (RESTORED_ID, RECORDS),
    )
    connection.exec_driver_sql("ANALYZE oplog.oplog_record")


def count_scanned(connection: Connection) -> int:
    """Rows of records that this transaction has read without an index."""
    return int(
        connection.exec_driver_sql(
            "SELECT sum(seq_tup_read) FROM pg_stat_xact_all_tables "
            "WHERE schemaname = 'oplog' AND relname ~ '^oplog_record_p'"
        ).scalar_one()
    )


def test_news_of_a_restored_log_are_found_by_an_index(engine: Engine) -> None:
    feed = Feed("oplog")
    with engine.begin() as connection:
        fill(connection)
        assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record").scalar()
        scanned = count_scanned(connection)
        assert scanned >= RECORDS
        identifier, timeline = feed.read_origin(connection)
        cursor = Cursor(identifier, timeline, feed.read_snapshot(connection))
        snapshot = feed.read_snapshot(connection)
        assert feed.find_news(connection, cursor, snapshot=snapshot) is None
        lag = ExportStore("oplog").measure_lag(connection, cursor, most=RECORDS)
        assert lag == (0, 0.0)
        assert count_scanned(connection) == scanned
