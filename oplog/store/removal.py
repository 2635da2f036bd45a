"""SQL of pruning: which records are only in an archive, which may go there, and their removal.

Used idempotency keys and ended adoptions must be known for ever. What is asked of such records
stays with their outcome. The newest record of an aggregate stays with its ticket: the next one
continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import ConflictError, PrunedError
from oplog.postgres.quoting import quote, quote_for_driver
from oplog.schema.locks import PRUNE_LOCK
from oplog.schema.mark_names import ADOPTED, RETIRED, RETIRED_REVISION
from oplog.store.adopted import ADOPTED_REVISION, ADOPTED_ROWS
from oplog.store.commit_lookup import REQUEST
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.feed import Feed
from oplog.store.partition_store import Partition, PartitionStore
from oplog.store.rows import read_microseconds
from oplog.store.seen import bind_unseen, read_seen

KEPT_METADATA = (
    REQUEST,
    ADOPTED,
    ADOPTED_ROWS,
    ADOPTED_REVISION,
    RETIRED,
    RETIRED_REVISION,
)
"""Metadata of records that must be known for ever: what they are asked for."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a log was pruned: what was up to `sequence` is in the archive, and only there.

    `chain` is the archive's after that record, `position` the highest of the records that went,
    `entries` how many entries went in all.
    """

    archive_id: UUID
    url: str
    generation: int
    sequence: int
    chain: bytes
    position: int
    entries: int


class PruningStore:
    """The log in one schema, while it is pruned."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._s = quote_for_driver(schema)

    # -- what is there --------------------------------------------------------------------

    def read_watermark(self, connection: Connection) -> Watermark | None:
        """How far the log was pruned; None if it is whole."""
        row = connection.exec_driver_sql(
            "SELECT archive_id, url, generation, sequence, chain, position, entries "
            f"FROM {self._s}.oplog_pruned ORDER BY number DESC LIMIT 1"
        ).one_or_none()
        if row is None:
            return None
        archive_id, url, generation, sequence, chain, position, entries = row
        return Watermark(
            archive_id=archive_id,
            url=url,
            generation=generation,
            sequence=sequence,
            chain=bytes(chain),
            position=position,
            entries=entries,
        )

    def require_whole(self, connection: Connection) -> None:
        """Raise `PrunedError` for a log whose beginning is in an archive only.

        And as `require_present`.
        """
        self.require_present(connection)
        pruned = self.read_watermark(connection)
        if pruned is not None:
            raise PrunedError(
                f"{pruned.entries} entries of this log, up to position {pruned.position}, were "
                f"pruned: they are in {pruned.url} only",
                hint=f"give archive=open_archive({pruned.url!r}), or --archive {pruned.url}",
            )

    def require_present(self, connection: Connection) -> None:
        """Raise `ConflictError` if records are gone that this transaction's snapshot shows.

        In a transaction with one snapshot nothing else goes until it ends.
        """
        if PartitionStore(self._schema).has_dropped(connection):
            raise ConflictError(
                "records were pruned after this transaction began, which cannot see the rest of "
                "the log as it was",
                hint="do it again in a new transaction",
            )

    def read_cutoff(self, connection: Connection, keep: timedelta) -> datetime:
        """What was recorded before this moment, by the database's clock, is older than `keep`."""
        microseconds = connection.exec_driver_sql(
            "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint"
        ).scalar_one()
        return read_microseconds(microseconds) - keep

    def is_owner(self, connection: Connection) -> bool:
        """Whether this role may prune: it is a member of the owner of the records."""
        return bool(
            connection.exec_driver_sql(
                "SELECT pg_catalog.pg_has_role(c.relowner, 'MEMBER') FROM pg_catalog.pg_class c "
                "WHERE c.oid = pg_catalog.to_regclass(%s)",
                (f"{quote(self._schema)}.oplog_record",),
            ).scalar_one()
        )

    def list_behind(
        self, connection: Connection, positions: Sequence[int], *, archive_id: UUID
    ) -> list[str]:
        """Consumers and other archives that have not seen all of these records, by name.

        An archive is named `archive/` and its id.
        """
        return self._list_behind(
            connection, archive_id, "r.position = ANY (%s::bigint[])", (list(positions),)
        )

    def list_behind_partition(
        self, connection: Connection, partition: Partition, *, archive_id: UUID
    ) -> list[str]:
        """`list_behind` for all records of a partition."""
        bounds = (partition.first, partition.last)
        return self._list_behind(connection, archive_id, "r.position BETWEEN %s AND %s", bounds)

    def _list_behind(
        self,
        connection: Connection,
        archive_id: UUID,
        chosen: str,
        values: tuple[object, ...],
    ) -> list[str]:
        origin = Feed(self._schema).read_origin(connection)
        behind = []
        for name, cursor in self._list_cursors(connection, archive_id):
            if (
                cursor is None
                # What one saved on another server has seen of this one nobody can say.
                or (cursor.system_identifier, cursor.timeline) != origin
                or self._lacks(connection, cursor, chosen, values)
            ):
                behind.append(name)
        return behind

    def _lacks(
        self,
        connection: Connection,
        cursor: Cursor,
        chosen: str,
        values: tuple[object, ...],
    ) -> bool:
        condition, parameters = bind_unseen(read_seen(cursor))
        return bool(
            connection.exec_driver_sql(
                f"SELECT EXISTS (SELECT FROM {self._s}.oplog_record r "
                f"WHERE {chosen} AND {condition})",
                (*values, *parameters),
            ).scalar_one()
        )

    def _list_cursors(
        self, connection: Connection, archive_id: UUID
    ) -> list[tuple[str, Cursor | None]]:
        rows = connection.exec_driver_sql(
            f"SELECT name, cursor::text FROM {self._s}.oplog_consumer ORDER BY name"
        )
        found: list[tuple[str, Cursor | None]] = [
            (row[0], Cursor.from_json(row[1])) for row in rows
        ]
        for archive in ExportStore(self._schema).list_rows(connection):
            if archive.archive_id != archive_id and archive.head:
                cursor = None if archive.cursor is None else Cursor.from_json(archive.cursor)
                found.append((f"archive/{archive.archive_id}", cursor))
        return found

    # -- removing -------------------------------------------------------------------------

    def begin(self, connection: Connection) -> bool:
        """Prepare the transaction that was just begun; False if somebody else is pruning."""
        # After the lock each statement must see what the one who had it before has done.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        return bool(
            connection.exec_driver_sql(
                f"SELECT {self._s}.oplog_try_lock(%s), "
                "CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' "
                "THEN pg_catalog.set_config('synchronous_commit', 'on', true) END",
                (PRUNE_LOCK,),
            ).one()[0]
        )

    def write_watermark(self, connection: Connection, watermark: Watermark) -> None:
        """Declare what goes in this transaction, which may then remove it."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_pruned "
            "(number, archive_id, url, generation, sequence, chain, position, entries) "
            "SELECT coalesce(max(number), 0) + 1, %s, %s, %s, %s, %b, %s, %s "
            f"FROM {self._s}.oplog_pruned",
            (
                watermark.archive_id,
                watermark.url,
                watermark.generation,
                watermark.sequence,
                watermark.chain,
                watermark.position,
                watermark.entries,
            ),
        )

    def remove(
        self, connection: Connection, positions: Sequence[int], *, kept: Sequence[int]
    ) -> int:
        """Remove records and what is found by them; how many records there were.

        Of those at the positions `kept` there stays what is asked of them.
        """
        gone = list(positions)
        self.keep_outcomes(connection, kept)
        self._keep_heads(connection, "r.position = ANY (%s::bigint[])", (gone,))
        # Entries have no index on positions: those of a record are found by its aggregates.
        of_these = (
            f"CROSS JOIN LATERAL {_ENTRIES} WHERE r.position = ANY (%s::bigint[]) "
            "AND x.aggregate_name = a.name AND x.version = coalesce(a.version, 1)"
        )
        # A first version stays: a transaction that believes the aggregate to be new has to meet it.
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_entry x SET position = 0 FROM {self._s}.oplog_record r "
            f"{of_these} AND x.version = 1",
            (gone,),
        )
        connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_entry x USING {self._s}.oplog_record r "
            f"{of_these} AND x.version > 1",
            (gone,),
        )
        for table in ("part", "token"):
            connection.exec_driver_sql(
                f"DELETE FROM {self._s}.oplog_{table} WHERE position = ANY (%s::bigint[])", (gone,)
            )
        removed = connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_record WHERE position = ANY (%s::bigint[])", (gone,)
        )
        return removed.rowcount

    def give_up_partition(self, connection: Connection, partition: Partition) -> None:
        """Remove what is found by the records of a partition, which is about to be dropped.

        What is kept of their outcomes must be there already.
        """
        bounds = (partition.first, partition.last)
        self._keep_heads(connection, "r.position BETWEEN %s AND %s", bounds)
        # The whole table is read, which costs less than finding each of so many.
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_entry SET position = 0 "
            "WHERE position BETWEEN %s AND %s AND version = 1",
            bounds,
        )
        connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_entry WHERE position BETWEEN %s AND %s AND version > 1",
            bounds,
        )

    def keep_outcomes(self, connection: Connection, positions: Sequence[int]) -> None:
        """Leave with their outcomes what is asked of the records at these positions."""
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_outcome o SET aggregates = r.aggregates, "
            "versions = r.versions, record_hash = r.record_hash, metadata = ARRAY("
            "SELECT t.text FROM pg_catalog.generate_series(1, "
            "pg_catalog.cardinality(r.metadata), 2) AS n CROSS JOIN LATERAL "
            "(VALUES (0, r.metadata[n]), (1, r.metadata[n + 1])) AS t(place, text) "
            "WHERE r.metadata[n] = ANY (%s::text[]) ORDER BY n, t.place) "
            f"FROM {self._s}.oplog_record r WHERE r.position = ANY (%s::bigint[]) "
            "AND o.record_id = r.record_id",
            (list(KEPT_METADATA), list(positions)),
        )

    def _keep_heads(self, connection: Connection, chosen: str, values: tuple[object, ...]) -> None:
        """Leave with its ticket the newest record of each aggregate that has no later one.

        Of the records `r` that are `chosen`: who writes to such an aggregate waits from here on.
        It comes before entries are touched, as in an append, so that neither waits for the other
        while it is waited for.
        """
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_ticket AS t "
            "(aggregate_name, version, head_version, head_hash) "
            'SELECT DISTINCT ON (a.name COLLATE "C") a.name, coalesce(a.version, 1), '
            f"coalesce(a.version, 1), r.record_hash FROM {self._s}.oplog_record r "
            f"CROSS JOIN LATERAL {_ENTRIES} WHERE {chosen} "
            f"AND NOT EXISTS (SELECT FROM {self._s}.oplog_entry n "
            "WHERE n.aggregate_name = a.name AND n.version > coalesce(a.version, 1)) "
            'ORDER BY a.name COLLATE "C", coalesce(a.version, 1) DESC '
            "ON CONFLICT (aggregate_name) DO UPDATE SET head_version = excluded.head_version, "
            "head_hash = excluded.head_hash "
            # Records of one transaction's pruning may come in any order.
            "WHERE t.head_version IS NULL OR t.head_version < excluded.head_version",
            values,
        )


_ENTRIES = (
    "ROWS FROM (pg_catalog.unnest(r.aggregates), pg_catalog.unnest(r.versions)) AS a(name, version)"
)
"""Names and versions of the entries of record `r`; the version is NULL if all are 1."""
