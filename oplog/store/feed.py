"""The SQL of consumers: what is new since a cursor, and where each consumer is.

A page costs what is new, whatever the log's size and however long a transaction stays open.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.schema.progress_functions import MAX_CONSUMER_BYTES
from oplog.store.cursor import Cursor
from oplog.store.new_transactions import read_new_rows
from oplog.store.records import PAGE_BYTES, complete_records
from oplog.store.rows import RECORD_COLUMNS, StoredRecord
from oplog.store.seen import EVERYTHING, VISIBLE


def check_consumer_name(name: str) -> None:
    """Raise `ConfigurationError` for a name that PostgreSQL cannot store; any other will do."""
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_CONSUMER_BYTES or "\x00" in name:
        raise ConfigurationError(
            f"{name[:80]!r} cannot name a consumer",
            hint=f"give a name of 1 to {MAX_CONSUMER_BYTES} bytes without NUL",
        )


class News(NamedTuple):
    """What a snapshot shows that the cursor has not seen."""

    first_position: int
    newest_transaction: int


class Page(NamedTuple):
    """Records in causal order; `last` is where the next page begins, None at the target."""

    records: list[StoredRecord]
    last: int | None


class Feed:
    """The log in one schema, as consumers read it."""

    def __init__(self, schema: str) -> None:
        self._s = quote_for_driver(schema)

    def read_origin(self, connection: Connection) -> tuple[str, int]:
        """System identifier and timeline; `ConfigurationError` on a standby.

        A standby's snapshot does not list who is running: a cursor made of it would skip
        entries that commit late.
        """
        # Not pg_control_checkpoint(): it still says the old timeline right after a promotion.
        identifier, wal_file = connection.exec_driver_sql(
            "SELECT system_identifier::text, CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN "
            "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END "
            "FROM pg_catalog.pg_control_system()"
        ).one()
        if wal_file is None:
            raise ConfigurationError(
                "a consumer cannot read from a standby: its snapshots do not say which "
                "transactions are still running",
                hint="give subscribe() an engine of the primary",
            )
        return str(identifier), int(wal_file[:8], 16)

    def read_identifier(self, connection: Connection) -> str:
        """The system identifier, which a standby has from its primary."""
        found = connection.exec_driver_sql(
            "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
        )
        return str(found.scalar_one())

    def read_snapshot(self, connection: Connection) -> str:
        """The statement's snapshot as text."""
        return str(
            connection.exec_driver_sql("SELECT pg_catalog.pg_current_snapshot()::text").scalar()
        )

    def find_news(self, connection: Connection, cursor: Cursor, *, snapshot: str) -> News | None:
        """Where what `snapshot` shows beyond the cursor begins; None when there is nothing."""
        old = cursor.snapshot or EVERYTHING
        select = (
            f"SELECT r.position, r.transaction_id FROM {self._s}.oplog_record r WHERE {VISIBLE}"
        )
        first, newest = connection.exec_driver_sql(
            "SELECT min(n.position), max(n.transaction_id::text::bigint) FROM ("
            f"{select} AND r.transaction_id >= pg_catalog.pg_snapshot_xmax(%s::pg_snapshot) "
            "AND r.transaction_id < pg_catalog.pg_snapshot_xmax(%s::pg_snapshot) "
            # Records of a restored log share one id. By the bounds the planner sees that those
            # that are asked for are others, and does not read the whole log.
            f"UNION ALL {select} AND r.transaction_id = "
            "ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%s::pg_snapshot))) "
            "AND r.transaction_id >= pg_catalog.pg_snapshot_xmin(%s::pg_snapshot) "
            "AND r.transaction_id < pg_catalog.pg_snapshot_xmax(%s::pg_snapshot)) n",
            (snapshot, old, snapshot, snapshot, old, old, old),
        ).one()
        return None if first is None else News(first, newest)

    def read_page(self, connection: Connection, cursor: Cursor, *, limit: int) -> Page:
        """The next records on the cursor's way to its target.

        About `limit` entries and `PAGE_BYTES` of sealed bytes, more only for a single larger
        record.
        """
        rows, last = read_new_rows(
            connection,
            cursor,
            s=self._s,
            columns=RECORD_COLUMNS,
            limit=limit,
            most_bytes=PAGE_BYTES,
        )
        return Page(complete_records(connection, self._s, rows), last)

    # -- checkpoints ----------------------------------------------------------------------

    def read_checkpoint(self, connection: Connection, name: str) -> str | None:
        """A consumer's saved cursor; None if it never saved one."""
        found = connection.exec_driver_sql(
            f"SELECT cursor::text FROM {self._s}.oplog_consumer WHERE name = %s", (name,)
        ).scalar()
        return None if found is None else str(found)

    def write_checkpoint(
        self, connection: Connection, name: str, *, before: str | None, cursor: str, position: int
    ) -> bool:
        """Save a consumer's cursor; False if the saved one is no longer `before`."""
        saved = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_save_cursor(%s, %s::jsonb, %s::jsonb, %s)",
            (name, before, cursor, position),
        )
        return bool(saved.scalar_one())
