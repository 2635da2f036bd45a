"""SQL of quarantine: the marks that the log has, and writing one."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote, quote_for_driver
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.mark_names import QUARANTINE_AGGREGATE
from oplog.store.quarantined import ROLE, write_metadata
from oplog.store.records import complete_records
from oplog.store.rows import RECORD_COLUMNS, StoredRecord


class QuarantineStore:
    """Quarantine marks of the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._s = quote_for_driver(schema)

    def list_marks(self, connection: Connection) -> list[StoredRecord]:
        """All marks that the connection sees, by rising position."""
        rows = connection.exec_driver_sql(
            f"SELECT {RECORD_COLUMNS} FROM {self._s}.oplog_record r "
            "WHERE r.position = ANY (ARRAY(SELECT x.position "
            f"FROM {self._s}.oplog_entry x WHERE x.aggregate_name = %s)) AND r.format = %s "
            "ORDER BY r.position",
            (QUARANTINE_AGGREGATE, FORMAT_MARK),
        )
        return complete_records(connection, self._s, rows.fetchall())

    def may_mark(self, connection: Connection) -> bool:
        """Whether this role may write marks: that of the log's owner, and its members."""
        return bool(
            connection.exec_driver_sql(
                "SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') "
                "AND pg_catalog.pg_has_role(session_user, p.proowner, 'MEMBER') "
                "FROM pg_catalog.pg_proc p WHERE p.oid = pg_catalog.to_regprocedure(%s)",
                (f"{quote(self._schema)}.oplog_write_mark(text, text[], text[])",),
            ).scalar()
        )

    def write_mark(self, connection: Connection, stored: StoredRecord, *, reason: str) -> None:
        """Say in the log that a record cannot be read."""
        keys, values = write_metadata(stored, reason=reason)
        connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_write_mark(%s, %s::text[] || %s::text, "
            "%s::text[] || session_user::text)",
            (QUARANTINE_AGGREGATE, keys, ROLE, values),
        )
