"""SQL of a restore on the log's own tables: the mark, the entries, the tickets, the places.

Triggers refuse most of these statements; the caller disables them. A ticket also holds the body
hash of its newest entry, which no entry row has: it is computed in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.crypto.hashing import ZERO_HASH
from oplog.crypto.sql_hashing import state_body_hash
from oplog.postgres.quoting import (
    double_percent,
    quote,
    quote_for_driver,
)
from oplog.schema.progress_tables import PROGRESS_TABLES
from oplog.schema.tables import VERSION
from oplog.store.links import IS_BROKEN, LINK_COLUMNS, LINK_WINDOW, SAY_BROKEN
from oplog.store.rows import BrokenLink, StoredEntry
from oplog.store.version import write_comment
from oplog.value import copy_field

_EMPTY = (
    "entry",
    "metadata",
    "ticket",
    "fence",
    "type",
    "type_numbers",
    "key",
    *PROGRESS_TABLES,
    "pruned",
)
LOG_TABLES = (*_EMPTY, "log")
"""Those that a restore writes or must find empty."""
RESTORED_ID = "3"
"""The transaction id of restored entries: that of a transaction which ended before all others.

What every snapshot shows, no consumer's cursor takes for news."""
RESTORED_SNAPSHOT = "4:4:"
"""The snapshot that shows restored entries and no other."""
_TICKETS = "pg_temp.oplog_snapshot_ticket"
_ZERO = "'\\x" + "00" * 32 + "'::bytea"
_PLACE = "generation, sequence, chain, position"
_MOVED = (
    f"({_PLACE}) = ROW (excluded.generation, excluded.sequence, excluded.chain, "
    "excluded.position), updated_at = pg_catalog.clock_timestamp()"
)


class LogPlace(NamedTuple):
    """How far a database has come in the log that it is filled from.

    `chain` is the log's hash over all up to `sequence`; `position` the highest that is here.
    """

    generation: int
    sequence: int
    chain: bytes
    position: int


class RestorationStore:
    """The log's tables in one schema, being filled."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._s = quote_for_driver(schema)

    # -- who restores, and into what ------------------------------------------------------

    def try_lock(self, connection: Connection) -> bool:
        """Keep every other restore into this log away until the transaction ends."""
        found = connection.exec_driver_sql(
            "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))",
            (f"oplog/restore/{self.schema}",),
        ).scalar()
        return bool(found)

    def lock_tables(self, connection: Connection) -> None:
        """Keep everybody else out of the log until the transaction ends."""
        names = double_percent(", ".join(self.list_tables()))
        connection.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")

    def list_tables(self) -> list[str]:
        """Qualified names of the tables that a restore writes."""
        return [f"{quote(self.schema)}.oplog_{name}" for name in LOG_TABLES]

    def count_rows(self, connection: Connection) -> dict[str, int]:
        """How many rows there are in tables that must have none, by table; those with any."""
        counted = {}
        for name in _EMPTY:
            found = connection.exec_driver_sql(
                f"SELECT count(*) FROM {self._s}.oplog_{name}"
            ).scalar_one()
            if found:
                counted[f"{self.schema}.oplog_{name}"] = int(found)
        return counted

    def write_mark(self, connection: Connection) -> None:
        """Say that a restore is under way; applications are refused from now on."""
        write_comment(connection, self.schema, version=VERSION, restoring=True)

    def remove_mark(self, connection: Connection) -> None:
        """The inverse of `write_mark`."""
        write_comment(connection, self.schema, version=VERSION, restoring=False)

    # -- places ---------------------------------------------------------------------------

    def read_restored(self, connection: Connection) -> LogPlace | None:
        """Where the restore left this database in the log that it comes from; None if unknown.

        Another transaction that would move it waits until this one ends.
        """
        return self._read_place(connection, f"{self._s}.oplog_restore")

    def read_follower(self, connection: Connection, name: str) -> LogPlace | None:
        """Where a follower of this database is in the log that it follows; None if unknown.

        Another transaction that would move it waits until this one ends.
        """
        return self._read_place(connection, f"{self._s}.oplog_follower", name)

    def _read_place(
        self, connection: Connection, table: str, name: str | None = None
    ) -> LogPlace | None:
        row = connection.exec_driver_sql(
            f"SELECT {_PLACE} FROM {table} {'' if name is None else 'WHERE name = %s'} FOR UPDATE",
            () if name is None else (name,),
        ).one_or_none()
        return None if row is None else LogPlace(row[0], row[1], bytes(row[2]), row[3])

    def write_restored(self, connection: Connection, place: LogPlace) -> None:
        """Save where this database is, in the transaction that restored it."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_restore ({_PLACE}) VALUES (%s, %s, %b, %s) "
            f"ON CONFLICT (only_row) DO UPDATE SET {_MOVED}",
            tuple(place),
        )

    def write_follower(self, connection: Connection, name: str, *, place: LogPlace) -> None:
        """Save where a follower is, in the transaction that brought it there."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_follower (name, {_PLACE}) VALUES (%s, %s, %s, %b, %s) "
            f"ON CONFLICT (name) DO UPDATE SET {_MOVED}",
            (name, *place),
        )

    def find_stranger(self, connection: Connection, position: int) -> int | None:
        """The first entry over a position: one that did not come from elsewhere."""
        found = connection.exec_driver_sql(
            f"SELECT min(id) FROM {self._s}.oplog_entry WHERE id > %s", (position,)
        ).scalar()
        return None if found is None else int(found)

    def read_heads(
        self, connection: Connection, aggregates: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        """Version and hash of each aggregate's last entry; one never written is left out."""
        rows = connection.exec_driver_sql(
            f"SELECT aggregate_name, version, head_hash FROM {self._s}.oplog_ticket "
            "WHERE aggregate_name = ANY(%s::text[])",
            (list(aggregates),),
        )
        return {name: (version, bytes(head)) for name, version, head in rows}

    def clear(self, connection: Connection) -> None:
        """Remove everything that a restore brings; consumers keep their checkpoints."""
        for name in ("entry", "metadata", "ticket", "fence", "type", "key", "pruned"):
            connection.exec_driver_sql(f"DELETE FROM {self._s}.oplog_{name}")

    # -- rows -----------------------------------------------------------------------------

    @property
    def copy_entries(self) -> str:
        """The statement that takes `print_entries`; a percent sign means itself."""
        return f"COPY {quote(self.schema)}.oplog_entry FROM STDIN"

    @property
    def copy_metadata(self) -> str:
        """The statement that takes `print_metadata`; a percent sign means itself."""
        return f"COPY {quote(self.schema)}.oplog_metadata FROM STDIN"

    def read_transaction_id(self, connection: Connection) -> str:
        """This transaction's own id."""
        found = connection.exec_driver_sql("SELECT pg_catalog.pg_current_xact_id()::text")
        return str(found.scalar_one())

    def write_log_id(self, connection: Connection, log_id: UUID) -> None:
        """Give the log its identity back, which every sealed entry is bound to."""
        connection.exec_driver_sql(f"UPDATE {self._s}.oplog_log SET log_id = %s", (log_id,))

    def write_tickets(
        self, connection: Connection, aggregates: Sequence[str] | None = None
    ) -> None:
        """Tickets of all aggregates, or of these, as of their last entries.

        What a ticket holds besides is its last entry's body hash, which no entry has.
        """
        body_hash = state_body_hash(
            format="e.format",
            entry_id="e.entry_id",
            aggregate="e.aggregate_name",
            key_id="e.key_id",
            metadata_hash="e.metadata_hash",
            transaction_size="e.transaction_size",
            idempotency_key="e.idempotency_key",
            data="e.data",
        )
        among = "" if aggregates is None else "WHERE aggregate_name = ANY(%s::text[])"
        connection.exec_driver_sql(
            f"""INSERT INTO {self._s}.oplog_ticket AS t
  (aggregate_name, version, prev_hash, head_hash, body_hash)
SELECT e.aggregate_name, e.version, e.prev_hash, e.entry_hash, {body_hash}
FROM (SELECT aggregate_name, max(version) AS version
  FROM {self._s}.oplog_entry {among} GROUP BY 1) l
JOIN {self._s}.oplog_entry e ON e.aggregate_name = l.aggregate_name AND e.version = l.version
ON CONFLICT (aggregate_name) DO UPDATE SET version = excluded.version,
  prev_hash = excluded.prev_hash, head_hash = excluded.head_hash, body_hash = excluded.body_hash""",
            () if aggregates is None else (list(aggregates),),
        )

    def stage_tickets(self, connection: Connection) -> str:
        """A temporary table for a snapshot's tickets, with the columns of the real one."""
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE oplog_snapshot_ticket ON COMMIT DROP AS "
            f"SELECT * FROM {self._s}.oplog_ticket WITH NO DATA"
        )
        return f"{_TICKETS} (aggregate_name, version, prev_hash, head_hash, body_hash)"

    def keep_tickets(self, connection: Connection) -> None:
        """Staged tickets of aggregates whose entries are not kept any more."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_ticket SELECT * FROM {_TICKETS} ON CONFLICT DO NOTHING"
        )

    def list_broken_links(self, connection: Connection, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the restored chains.

        A chain begins at version 1, or at any if a staged ticket vouches for what was before.
        """
        # Filled in this transaction, both are empty to the planner, which would then compare
        # every entry with every ticket: hours for a million.
        connection.exec_driver_sql(f"ANALYZE {self._s}.oplog_entry, {_TICKETS}")
        rows = connection.exec_driver_sql(
            f"""WITH links AS (
  SELECT id, aggregate_name, version, prev_hash, entry_hash, {LINK_COLUMNS}
  FROM {self._s}.oplog_entry WINDOW {LINK_WINDOW})
SELECT l.aggregate_name, l.version, l.id,
  CASE WHEN t.version = l.version AND t.head_hash <> l.entry_hash
      THEN 'the snapshot has another hash for it'
    WHEN l.before IS NULL THEN 'what was before it is not known'
    {SAY_BROKEN} END
FROM links l LEFT JOIN {_TICKETS} t ON t.aggregate_name = l.aggregate_name
WHERE (l.before IS NULL AND (l.version <> 1 OR l.prev_hash <> {_ZERO})
    AND coalesce(t.version < l.version - 1
      OR (t.version = l.version - 1 AND t.head_hash <> l.prev_hash), true))
  OR {IS_BROKEN}
  OR (t.version = l.version AND t.head_hash <> l.entry_hash)
ORDER BY 1, 2 LIMIT {int(limit)}"""
        )
        return [BrokenLink(*row) for row in rows]

    def list_lost_tickets(self, connection: Connection) -> list[str]:
        """Aggregates that a staged ticket says were written further than the entries go."""
        rows = connection.exec_driver_sql(
            f"SELECT t.aggregate_name FROM {_TICKETS} t JOIN {self._s}.oplog_ticket r "
            "ON r.aggregate_name = t.aggregate_name WHERE r.version < t.version ORDER BY 1 LIMIT 3"
        )
        return list(rows.scalars())

    def write_position(self, connection: Connection, position: int) -> None:
        """Draw the next entry's id after this one, or after the highest that there is."""
        name = f"{quote(self.schema)}.oplog_entry_id_seq"
        connection.exec_driver_sql(
            "SELECT pg_catalog.setval(%s::regclass, greatest(%s::bigint, q.last_value)) "
            f"FROM {self._s}.oplog_entry_id_seq q WHERE %s::bigint > 0",
            (name, position, position),
        )


# -- COPY text ----------------------------------------------------------------------------


def print_entries(entries: Iterable[tuple[StoredEntry, str]]) -> Iterator[str]:
    """Rows for `COPY oplog_entry`, each with its transaction id."""
    for entry, transaction_id in entries:
        fields = [
            str(entry.position),
            str(entry.entry_id),
            transaction_id,
            str(entry.transaction_position),
            str(entry.transaction_size),
            copy_field(entry.aggregate),
            str(entry.version),
            str(entry.format),
            _print_bytes(entry.data),
            copy_field(entry.key_id),
            _print_bytes(entry.metadata_hash),
            _print_bytes(entry.prev_hash),
            _print_bytes(entry.entry_hash),
            entry.recorded_at.isoformat(),
            copy_field(entry.idempotency_key),
        ]
        yield "\t".join(fields) + "\n"


def print_metadata(metadata: Mapping[int, Sequence[tuple[str, str]]]) -> Iterator[str]:
    """Rows for `COPY oplog_metadata`."""
    for position, pairs in metadata.items():
        for ordinal, (key, value) in enumerate(pairs, start=1):
            yield f"{position}\t{ordinal}\t{copy_field(key)}\t{copy_field(value)}\n"


def print_ticket(aggregate: str, version: int, *, head_hash: bytes) -> str:
    """A row for the stage of tickets.

    The hashes that say how the newest came about are zeros, until the next entry sets them, or
    the aggregate's last one is restored as well.
    """
    hashes = [_print_bytes(value) for value in (ZERO_HASH, head_hash, ZERO_HASH)]
    return "\t".join([copy_field(aggregate), str(version), *hashes]) + "\n"


def _print_bytes(data: bytes) -> str:
    # One backslash for bytea, which COPY halves.
    return f"\\\\x{data.hex()}"
