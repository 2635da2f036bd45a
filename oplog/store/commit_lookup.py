"""SQL that finds what became of a transaction, and locks for idempotency keys and aggregates.

An append travels together with its COMMIT: a session whose answer was lost may not have begun it,
so looking is not enough. A record's id is claimed by what comes first, append or resolver: the
unique key makes each wait for the other at every isolation level, and none is given up by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.outcome import Blocker
from oplog.postgres.quoting import (
    quote,
    quote_for_driver,
)
from oplog.postgres.standby import is_standby
from oplog.receipt import Receipt
from oplog.schema.locks import name_key_mark

REQUEST = "oplog.request"
"""Metadata key of what an idempotency key stood for, as a hash in hexadecimal."""

# The same numbers stand for other things in every database.
_HERE = (
    "l.database = (SELECT d.oid FROM pg_catalog.pg_database d "
    "WHERE d.datname = pg_catalog.current_database())"
)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """The transaction that an idempotency key stands for."""

    receipts: tuple[Receipt, ...]
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is known of a committed record."""

    record_id: UUID
    aggregates: tuple[str, ...]
    versions: tuple[int, ...]
    record_hash: bytes
    metadata: tuple[tuple[str, str], ...]

    def make_receipts(self) -> tuple[Receipt, ...]:
        """One for each aggregate."""
        versions = dict(zip(self.aggregates, self.versions, strict=True))
        return tuple(
            Receipt(self.record_id, name, version, self.record_hash, versions=versions)
            for name, version in versions.items()
        )


class OutcomeStore:
    """The part of one log's schema that tells outcomes."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._s = quote_for_driver(schema)

    # -- locks ----------------------------------------------------------------------------

    def lock_key(self, connection: Connection, key: str) -> None:
        """Hold an idempotency key until the transaction ends."""
        connection.exec_driver_sql(f"SELECT {self._s}.oplog_claim(%s)", (key,))

    def lock_aggregates(self, connection: Connection, aggregates: Sequence[str]) -> None:
        """Hold aggregates until the transaction ends, taken in the order given."""
        if aggregates:
            connection.exec_driver_sql(
                f"SELECT {self._s}.oplog_lock(%s::text[])", (list(aggregates),)
            )

    def limit_wait(self, connection: Connection, seconds: float) -> str:
        """Let statements of this transaction wait so long for locks; the limit before."""
        return str(
            connection.exec_driver_sql(
                "SELECT pg_catalog.current_setting('lock_timeout') || "
                "left(pg_catalog.set_config('lock_timeout', %s, true), 0)",
                # 0 would be for ever.
                (f"{max(1, round(seconds * 1000))}ms",),
            ).scalar_one()
        )

    def restore_wait(self, connection: Connection, before: str) -> None:
        """Put the limit back."""
        connection.exec_driver_sql(
            "SELECT pg_catalog.set_config('lock_timeout', %s, true)", (before,)
        )

    # -- looking --------------------------------------------------------------------------

    def is_standby(self, connection: Connection) -> bool:
        """Whether the server recovers, and so shows a past."""
        return is_standby(connection)

    def is_under_way(
        self, connection: Connection, process_id: int, *, pause_seconds: float
    ) -> bool:
        """Whether a server process is seen in a transaction; it is looked at after a pause."""
        # The server sleeps, not this thread, which may have an event loop to serve.
        connection.exec_driver_sql("SELECT pg_catalog.pg_sleep(%s)", (pause_seconds,)).close()
        return bool(
            connection.exec_driver_sql(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = %s "
                "AND pid <> pg_catalog.pg_backend_pid() AND xact_start IS NOT NULL "
                "AND datname = pg_catalog.current_database() "
                "AND backend_type = 'client backend')",
                (process_id,),
            ).scalar()
        )

    def find_request(self, connection: Connection, key: str) -> LoggedRequest | None:
        """The transaction that was logged under an idempotency key."""
        record_id = connection.exec_driver_sql(
            f"SELECT record_id FROM {self._s}.oplog_outcome WHERE idempotency_key = %s", (key,)
        ).scalar()
        if record_id is None:
            return None
        found = self._read_record(connection, record_id)
        fingerprint = dict(found.metadata).get(REQUEST)
        return LoggedRequest(found.make_receipts(), fingerprint)

    def list_receipts(self, connection: Connection, record_id: UUID) -> tuple[Receipt, ...]:
        """Receipts of a committed record, by aggregate; empty if it was pruned."""
        return self._read_record(connection, record_id).make_receipts()

    def _read_record(self, connection: Connection, record_id: UUID) -> _Kept:
        """What is known of a record: all of it, or what was kept when it was pruned."""
        found = connection.exec_driver_sql(
            "SELECT coalesce(r.aggregates, o.aggregates), CASE WHEN r.position IS NULL "
            "THEN o.versions ELSE r.versions END, coalesce(r.record_hash, o.record_hash), "
            "CASE WHEN r.position IS NULL THEN o.metadata ELSE r.metadata END "
            f"FROM {self._s}.oplog_outcome o LEFT JOIN {self._s}.oplog_record r "
            "ON r.position = o.position WHERE o.record_id = %s",
            (record_id,),
        ).one()
        aggregates, versions, record_hash, metadata = found
        names = tuple(aggregates or ())
        flat = metadata or []
        return _Kept(
            record_id,
            names,
            (1,) * len(names) if versions is None else tuple(versions),
            record_hash=bytes(record_hash or b""),
            metadata=tuple(zip(flat[::2], flat[1::2], strict=True)),
        )

    # -- deciding -------------------------------------------------------------------------

    def declare_aborted(self, connection: Connection, record_id: UUID) -> bool:
        """Refuse a record for ever, unless it is there; whether that is so now.

        Waits for a session that appends the record.
        """
        found = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_declare_aborted(%s)", (record_id,)
        )
        return bool(found.scalar_one())

    # -- who is in the way ----------------------------------------------------------------

    def list_append_blockers(self, connection: Connection) -> list[Blocker]:
        """Backends that have appended a record, and not ended their transaction."""
        return self._list_blockers(
            connection,
            f"l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND {_HERE} "
            "AND l.relation = pg_catalog.to_regclass(%s)",
            (f"{quote(self.schema)}.oplog_outcome",),
        )

    def list_key_blockers(self, connection: Connection, key: str) -> list[Blocker]:
        """Backends that hold an idempotency key.

        All that hold any key, if a session that holds none keeps this one's mark from its holder.
        """
        return self._list_blockers(
            connection,
            f"l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND {_HERE} "
            "AND l.relation = pg_catalog.to_regclass(%s) "
            "AND EXISTS (SELECT FROM pg_catalog.pg_locks m WHERE m.locktype = 'advisory' "
            "AND m.granted AND m.objsubid = 1 AND m.database = l.database "
            "AND (m.virtualtransaction = l.virtualtransaction OR m.mode = 'ExclusiveLock') "
            "AND (m.classid::bigint << 32) | m.objid::bigint = "
            "pg_catalog.hashtextextended(%s::text, 0))",
            (f"{quote(self.schema)}.oplog_claim", name_key_mark(self.schema) + key),
        )

    def _list_blockers(
        self, connection: Connection, where: str, values: tuple[object, ...]
    ) -> list[Blocker]:
        rows = connection.exec_driver_sql(
            "SELECT DISTINCT coalesce(l.pid, 0), coalesce(a.state, CASE WHEN l.pid IS NULL "
            "THEN 'prepared transaction' END, ''), coalesce(a.application_name, ''), "
            "coalesce(pg_catalog.host(a.client_addr), ''), coalesce(extract(epoch FROM "
            "pg_catalog.clock_timestamp() - a.xact_start), 0)::float8 "
            "FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid "
            f"WHERE l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND {where} "
            "ORDER BY 1",
            values,
        )
        return [Blocker(*row) for row in rows]
