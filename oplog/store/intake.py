"""SQL of a restore on the log's own tables: the mark, the records, the heads, the places.

Triggers refuse most of these statements; the caller disables them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    double_percent,
    quote,
    quote_for_driver,
)
from oplog.schema.append import state_token
from oplog.schema.locks import PARTITIONS_LOCK, RESTORE_LOCK
from oplog.schema.partitions import PARTITION_POSITIONS, PARTITIONED
from oplog.schema.progress_tables import PROGRESS_TABLES
from oplog.schema.row_checks import HIGHEST_POSITION
from oplog.schema.tables import VERSION
from oplog.store.heads import select_heads_of
from oplog.store.links import (
    IS_BROKEN,
    LINK_COLUMNS,
    LINK_WINDOW,
    SAY_BROKEN,
    ZERO,
    select_links,
)
from oplog.store.rows import BrokenLink, StoredRecord, flatten_metadata, join_hashes
from oplog.store.version import write_comment
from oplog.value import copy_field

_EMPTY = (
    *PARTITIONED,
    "entry",
    "ticket",
    "outcome",
    "type",
    "type_numbers",
    "key",
    *PROGRESS_TABLES,
    "pruned",
)
LOG_TABLES = (*_EMPTY, "log")
"""Those that a restore writes or must find empty."""
RESTORED_ID = "3"
"""The transaction id of restored records: that of a transaction which ended before all others.

What every snapshot shows, no consumer's cursor takes for news."""
RESTORED_SNAPSHOT = "4:4:"
"""The snapshot that shows restored records and no other."""
_NAMES = "(SELECT DISTINCT pg_catalog.unnest(%s::text[]))"
_HEADS = "pg_temp.oplog_snapshot_head"
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
            f"SELECT {self._s}.oplog_try_lock(%s)", (RESTORE_LOCK,)
        ).scalar()
        return bool(found)

    def lock_partitions(self, connection: Connection) -> None:
        """Keep others from making partitions, which would keep `make_partitions` from it.

        To be called before any table is locked: who makes one may wait for a table meanwhile.
        """
        connection.exec_driver_sql(f"SELECT {self._s}.oplog_hold(%s)", (PARTITIONS_LOCK,))

    def lock_tables(self, connection: Connection, *, readers: bool = False) -> None:
        """Keep everybody else out of the log until the transaction ends; `readers` may stay.

        Any role that may read a table can keep it locked against those who keep readers out.
        """
        names = double_percent(", ".join(self.list_tables()))
        mode = "EXCLUSIVE" if readers else "ACCESS EXCLUSIVE"
        connection.exec_driver_sql(f"LOCK TABLE {names} IN {mode} MODE")

    def list_tables(self) -> list[str]:
        """Qualified names of the tables that a restore writes."""
        return [f"{quote(self.schema)}.oplog_{name}" for name in LOG_TABLES]

    def make_partitions(self, connection: Connection, positions: Iterable[int]) -> None:
        """Make the partitions that records at these positions go to.

        A position that no record can have gets none.
        """
        numbers = {one // PARTITION_POSITIONS for one in positions if 0 < one < HIGHEST_POSITION}
        for number in sorted(numbers):
            connection.exec_driver_sql(
                f"SELECT {self._s}.oplog_make_partitions(%s)", (number * PARTITION_POSITIONS,)
            )

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
        """The first record over a position: one that did not come from elsewhere."""
        found = connection.exec_driver_sql(
            f"SELECT min(position) FROM {self._s}.oplog_record WHERE position > %s", (position,)
        ).scalar()
        return None if found is None else int(found)

    def read_heads(
        self, connection: Connection, aggregates: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        """Version and hash of each aggregate's newest record; one never written is left out."""
        heads = select_heads_of(self._s, _NAMES)
        rows = connection.exec_driver_sql(
            f"SELECT aggregate_name, version, head_hash FROM {heads} h", (list(aggregates),)
        )
        return {name: (version, bytes(head)) for name, version, head in rows}

    def clear(self, connection: Connection) -> None:
        """Remove everything that a restore brings; consumers keep their checkpoints."""
        for name in (*PARTITIONED, "entry", "ticket", "outcome", "type", "key", "pruned"):
            connection.exec_driver_sql(f"DELETE FROM {self._s}.oplog_{name}")

    # -- rows -----------------------------------------------------------------------------

    @property
    def copy_records(self) -> str:
        """The statement that takes `print_records`; a percent sign means itself."""
        return f"COPY {quote(self.schema)}.oplog_record FROM STDIN"

    @property
    def copy_parts(self) -> str:
        """The statement that takes `print_parts`; a percent sign means itself."""
        return f"COPY {quote(self.schema)}.oplog_part FROM STDIN"

    def index_records(self, connection: Connection, positions: Sequence[int]) -> None:
        """Write what is looked up by of records that were copied: entries, ids, metadata."""
        values = (list(positions),)
        copied = f"FROM {self._s}.oplog_record r"
        chosen = "WHERE r.position = ANY(%s::bigint[])"
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_entry (aggregate_name, version, position) "
            f"SELECT a.name, coalesce(a.version, 1), r.position {copied} CROSS JOIN LATERAL "
            "ROWS FROM (pg_catalog.unnest(r.aggregates), pg_catalog.unnest(r.versions)) "
            f"AS a(name, version) {chosen}",
            values,
        )
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_outcome (record_id, position, idempotency_key) "
            f"SELECT r.record_id, r.position, r.idempotency_key {copied} {chosen}",
            values,
        )
        token = state_token("r.metadata[n]", "r.metadata[n + 1]")
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_token (token, position) SELECT {token}, r.position "
            f"{copied} CROSS JOIN LATERAL pg_catalog.generate_series("
            f"1, pg_catalog.cardinality(r.metadata), 2) AS n {chosen}",
            values,
        )

    def read_transaction_id(self, connection: Connection) -> str:
        """This transaction's own id."""
        found = connection.exec_driver_sql("SELECT pg_catalog.pg_current_xact_id()::text")
        return str(found.scalar_one())

    def write_log_id(self, connection: Connection, log_id: UUID) -> None:
        """Give the log its identity back, which every sealed part is bound to."""
        connection.exec_driver_sql(f"UPDATE {self._s}.oplog_log SET log_id = %s", (log_id,))

    def advance_tickets(self, connection: Connection, aggregates: Sequence[str]) -> None:
        """Bring tickets of aggregates that have one up to their newest records."""
        heads = select_heads_of(self._s, _NAMES)
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_ticket t SET version = h.version FROM {heads} h "
            "WHERE t.aggregate_name = h.aggregate_name AND t.version <> h.version",
            (list(aggregates),),
        )

    def stage_heads(self, connection: Connection) -> str:
        """A temporary table for the heads of a snapshot, and its columns."""
        connection.exec_driver_sql(
            'CREATE TEMPORARY TABLE oplog_snapshot_head (aggregate_name text COLLATE "C" '
            "PRIMARY KEY, version bigint NOT NULL, head_hash bytea NOT NULL) ON COMMIT DROP"
        )
        return f"{_HEADS} (aggregate_name, version, head_hash)"

    def keep_heads(self, connection: Connection) -> None:
        """Make tickets of staged heads whose records are not kept any more.

        The next record of such an aggregate continues the head.
        """
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_ticket "
            "(aggregate_name, version, head_version, head_hash) "
            f"SELECT g.aggregate_name, g.version, g.version, g.head_hash FROM {_HEADS} g "
            f"WHERE NOT EXISTS (SELECT FROM {self._s}.oplog_entry e "
            "WHERE e.aggregate_name = g.aggregate_name)"
        )
        # A transaction that takes one of these aggregates for new has to meet its first version.
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_entry (aggregate_name, version, position) "
            f"SELECT g.aggregate_name, 1, 0 FROM {_HEADS} g ON CONFLICT DO NOTHING"
        )

    def list_broken_links(self, connection: Connection, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the restored chains.

        A chain begins at version 1, or at any if a staged head vouches for what was before.
        """
        # Filled in this transaction, both are empty to the planner, which would then compare
        # every record with every head: hours for a million.
        connection.exec_driver_sql(f"ANALYZE {self._s}.oplog_record, {_HEADS}")
        rows = connection.exec_driver_sql(
            f"""WITH raw AS ({select_links(self._s)}),
links AS (
  SELECT position, aggregate_name, version, prev_hash, record_hash, {LINK_COLUMNS}
  FROM raw WINDOW {LINK_WINDOW})
SELECT l.aggregate_name, l.version, l.position,
  CASE WHEN t.version = l.version AND t.head_hash <> l.record_hash
      THEN 'the snapshot has another hash for it'
    WHEN l.before IS NULL THEN 'what was before it is not known'
    {SAY_BROKEN} END
FROM links l LEFT JOIN {_HEADS} t ON t.aggregate_name = l.aggregate_name
WHERE (l.before IS NULL AND (l.version <> 1 OR l.prev_hash IS DISTINCT FROM {ZERO})
    AND coalesce(t.version < l.version - 1
      OR (t.version = l.version - 1 AND t.head_hash IS DISTINCT FROM l.prev_hash), true))
  OR (l.before IS NOT NULL AND {IS_BROKEN})
  OR (t.version = l.version AND t.head_hash <> l.record_hash)
ORDER BY 1, 2 LIMIT {int(limit)}"""
        )
        return [BrokenLink(*row) for row in rows]

    def list_lost_heads(self, connection: Connection) -> list[str]:
        """Aggregates that a staged head says were written further than the records go."""
        rows = connection.exec_driver_sql(
            f"SELECT g.aggregate_name FROM {_HEADS} g CROSS JOIN LATERAL (SELECT e.version "
            f"FROM {self._s}.oplog_entry e WHERE e.aggregate_name = g.aggregate_name "
            "ORDER BY e.version DESC LIMIT 1) l WHERE l.version < g.version ORDER BY 1 LIMIT 3"
        )
        return list(rows.scalars())

    def write_position(self, connection: Connection, position: int) -> None:
        """Draw the next position after this one, or after the highest that there is."""
        name = f"{quote(self.schema)}.oplog_position_seq"
        connection.exec_driver_sql(
            "SELECT pg_catalog.setval(%s::regclass, greatest(%s::bigint, q.last_value)) "
            f"FROM {self._s}.oplog_position_seq q WHERE %s::bigint > 0",
            (name, position, position),
        )
        self.make_partitions(connection, [position + 1])


# -- COPY text ----------------------------------------------------------------------------


def print_records(records: Iterable[tuple[StoredRecord, str]]) -> Iterator[str]:
    """Rows for `COPY oplog_record`, each with its transaction id."""
    for record, transaction_id in records:
        plain = all(version == 1 for version in record.versions)
        hashes = join_hashes(record)
        fields = [
            str(record.position),
            str(record.record_id),
            transaction_id,
            str(record.format),
            copy_field(record.key_id),
            _print_bytes(record.parts[0].data),
            str(len(record.parts)),
            copy_field(_print_array(record.aggregates)),
            copy_field(None if plain else _print_array(map(str, record.versions))),
            r"\N" if hashes is None else _print_bytes(hashes),
            copy_field(None if not record.metadata else _print_pairs(record.metadata)),
            _print_bytes(record.record_hash),
            record.recorded_at.isoformat(),
            copy_field(record.idempotency_key),
        ]
        yield "\t".join(fields) + "\n"


def print_parts(records: Iterable[StoredRecord]) -> Iterator[str]:
    """Rows for `COPY oplog_part`: all parts but the first of each record."""
    for record in records:
        for number, part in enumerate(record.parts[1:], start=1):
            fields = (str(record.position), str(number), str(part.first), _print_bytes(part.data))
            yield "\t".join(fields) + "\n"


def print_head(aggregate: str, version: int, *, head_hash: bytes) -> str:
    """A row for the stage of heads."""
    return "\t".join([copy_field(aggregate), str(version), _print_bytes(head_hash)]) + "\n"


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _print_array(flatten_metadata(pairs) or ())


def _print_array(texts: Iterable[str]) -> str:
    """The text of an array without NULLs."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _print_bytes(data: bytes) -> str:
    # One backslash for bytea, which COPY halves.
    return f"\\\\x{data.hex()}"
