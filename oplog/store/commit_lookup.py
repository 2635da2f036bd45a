"""Asking what became of a transaction, and keeping two of them from being one effect.

Statements on tickets, fences, idempotency keys and advisory locks. Must not decide: which
answer follows is `resolution`'s. The hard thing is that an append travels together with its
COMMIT: a session whose answer was lost may not hold its ticket yet, so that looking is not
enough. What is not there is fenced off, in the transaction that looked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import PrunedError
from oplog.outcome import Blocker
from oplog.postgres.quoting import (
    quote,
    quote_for_driver,
)
from oplog.postgres.standby import is_standby
from oplog.receipt import Receipt

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


class OutcomeStore:
    """The part of one log's schema that tells outcomes."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._s = quote_for_driver(schema)

    # -- locks ----------------------------------------------------------------------------

    def lock_key(self, connection: Connection, key: str) -> None:
        """Hold an idempotency key until the transaction ends."""
        self._lock(connection, "key", [key])

    def lock_aggregates(self, connection: Connection, aggregates: Sequence[str]) -> None:
        """Hold aggregates until the transaction ends, taken in the order given."""
        self._lock(connection, "aggregate", aggregates)

    def _lock(self, connection: Connection, kind: str, names: Sequence[str]) -> None:
        # One after the other: a set-returning call promises no order.
        for name in names:
            connection.exec_driver_sql(
                "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s::text, 0))",
                (self._name_lock(kind, name),),
            )

    def _name_lock(self, kind: str, name: str) -> str:
        return f"oplog {kind} {self.schema}/{name}"

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
        position = connection.exec_driver_sql(
            f"SELECT transaction_position FROM {self._s}.oplog_entry WHERE idempotency_key = %s",
            (key,),
        ).scalar()
        if position is None:
            return None
        fingerprint = connection.exec_driver_sql(
            f"SELECT value FROM {self._s}.oplog_metadata WHERE transaction_position = %s "
            "AND key = %s ORDER BY ordinal DESC LIMIT 1",
            (position, REQUEST),
        ).scalar()
        return LoggedRequest(tuple(self.list_receipts(connection, position)), fingerprint)

    def find_entry(self, connection: Connection, receipt: Receipt) -> int | None:
        """The position of the transaction that wrote the entry, if it is there."""
        where = "e.aggregate_name = %s AND e.entry_id = %s"
        parameters: list[object] = [receipt.aggregate, receipt.entry_id]
        if receipt.version:
            where += " AND e.version = %s"
            parameters.append(receipt.version)
        found = connection.exec_driver_sql(
            f"SELECT e.transaction_position FROM {self._s}.oplog_entry e WHERE {where} "
            "ORDER BY e.version DESC LIMIT 1",
            tuple(parameters),
        ).scalar()
        return None if found is None else int(found)

    def list_receipts(self, connection: Connection, position: int) -> list[Receipt]:
        """Receipts of all entries of the transaction at a position, sorted by aggregate."""
        # By the index on (transaction_id, id): positions of others lie in between.
        rows = connection.exec_driver_sql(
            f"SELECT e.entry_id, e.aggregate_name, e.version, e.entry_hash "
            f"FROM {self._s}.oplog_entry f JOIN {self._s}.oplog_entry e "
            "ON e.transaction_id = f.transaction_id AND e.id >= f.id "
            "AND e.transaction_position = f.id WHERE f.id = %s "
            "ORDER BY e.aggregate_name",
            (position,),
        )
        return [Receipt(row[0], row[1], row[2], bytes(row[3])) for row in rows]

    def was_pruned(self, connection: Connection, receipt: Receipt) -> bool:
        """Whether a transaction that is not there was pruned, and so was committed.

        Raises `PrunedError` where nothing here can tell.
        """
        url = connection.exec_driver_sql(
            f"SELECT url FROM {self._s}.oplog_pruned ORDER BY number DESC LIMIT 1"
        ).scalar()
        if url is None:
            return False
        known = self._read_missing(connection, receipt.aggregate)
        if receipt.version:
            known = {v: linked for v, linked in known.items() if v == receipt.version}
        if not known:
            return False
        if receipt.version and receipt.entry_hash and known[receipt.version] is not None:
            return known[receipt.version] == receipt.entry_hash
        raise PrunedError(
            f"whether entry {receipt.entry_id} of aggregate {receipt.aggregate!r} was committed "
            "is not known here any more: entries of the aggregate were pruned",
            hint=f"look for it in {url}: log.read(connection, aggregate=..., "
            f"archive=open_archive({url!r})) has it if it was committed",
        )

    def _read_missing(self, connection: Connection, aggregate: str) -> Mapping[int, bytes | None]:
        """Versions of an aggregate that are not there; their hashes, where they are known."""
        rows = connection.exec_driver_sql(
            "SELECT v.version, coalesce(n.prev_hash, "
            "CASE WHEN v.version = t.version THEN t.head_hash END) "
            f"FROM {self._s}.oplog_ticket t "
            "CROSS JOIN LATERAL pg_catalog.generate_series(1, t.version) AS v(version) "
            f"LEFT JOIN {self._s}.oplog_entry n ON n.aggregate_name = t.aggregate_name "
            "AND n.version = v.version + 1 "
            f"WHERE t.aggregate_name = %s AND NOT EXISTS (SELECT FROM {self._s}.oplog_entry e "
            "WHERE e.aggregate_name = t.aggregate_name AND e.version = v.version)",
            (aggregate,),
        )
        return {row[0]: None if row[1] is None else bytes(row[1]) for row in rows}

    # -- deciding -------------------------------------------------------------------------

    def touch_ticket(self, connection: Connection, aggregate: str) -> None:
        """Lock a ticket, which is made if there is none, and leave a new version of its row.

        Waits for whoever redeems it, or makes it. A transaction that took its snapshot before
        this cannot redeem the ticket after it, once this one has committed.
        """
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_ticket AS t "
            "(aggregate_name, version, prev_hash, head_hash, body_hash) "
            "SELECT %s, 0, z, z, z FROM pg_catalog.decode(pg_catalog.repeat('00', 32), 'hex') z "
            "ON CONFLICT (aggregate_name) DO UPDATE SET version = t.version",
            (aggregate,),
        )

    def fence(self, connection: Connection, entries: Sequence[tuple[UUID, str]]) -> None:
        """Refuse these entries for ever; their tickets are held."""
        for entry_id, aggregate in entries:
            connection.exec_driver_sql(
                f"INSERT INTO {self._s}.oplog_fence (entry_id, aggregate_name) VALUES (%s, %s) "
                "ON CONFLICT DO NOTHING",
                (entry_id, aggregate),
            )

    # -- who is in the way ----------------------------------------------------------------

    def list_ticket_blockers(self, connection: Connection, aggregate: str) -> list[Blocker]:
        """Whoever holds a ticket; of one that is only being made, whoever redeems any."""
        exact = self._list_blockers(
            connection,
            f"l.locktype = 'transactionid' AND l.transactionid = (SELECT t.xmax FROM {self._s}."
            "oplog_ticket t WHERE t.aggregate_name = %s AND t.xmax::text <> '0')",
            (aggregate,),
        )
        return exact or self._list_blockers(
            connection,
            f"l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND {_HERE} "
            "AND l.relation = pg_catalog.to_regclass(%s)",
            (f"{quote(self.schema)}.oplog_ticket",),
        )

    def list_key_blockers(self, connection: Connection, key: str) -> list[Blocker]:
        """Whoever holds an idempotency key."""
        return self._list_blockers(
            connection,
            f"l.locktype = 'advisory' AND l.objsubid = 1 AND {_HERE} AND "
            "(l.classid::bigint << 32) | l.objid::bigint = "
            "pg_catalog.hashtextextended(%s::text, 0)",
            (self._name_lock("key", key),),
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
