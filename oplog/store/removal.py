"""SQL of pruning: which records are only in an archive, which may go there, and their removal.

Used idempotency keys and ended adoptions must be known for ever. What is asked of such records stays
with their outcome. The newest record of an aggregate stays with its ticket: the next one continues
it. A partition of which nothing is left is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import PrunedError
from oplog.postgres.quoting import (
    double_percent,
    quote,
    quote_for_driver,
)
from oplog.schema.guard import RETIRED, RETIRED_REVISION
from oplog.schema.partitions import PARTITION_PATTERN, PARTITION_POSITIONS
from oplog.store.adopted import ADOPTED, ADOPTED_REVISION, ADOPTED_ROWS
from oplog.store.commit_lookup import REQUEST
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.feed import Feed
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

    `chain` is the archive's after that record, `position` the highest of what went, `entries` how
    many went in all.
    """

    archive_id: UUID
    url: str
    generation: int
    sequence: int
    chain: bytes
    position: int
    entries: int


class HeldBack(NamedTuple):
    """A consumer, or another archive (`archive/` and its id), that lacks so many entries."""

    name: str
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
        """Raise `PrunedError` for a log whose beginning is in an archive only."""
        pruned = self.read_watermark(connection)
        if pruned is not None:
            raise PrunedError(
                f"{pruned.entries} entries of this log, up to position {pruned.position}, were "
                f"pruned: they are in {pruned.url} only",
                hint=f"give archive=open_archive({pruned.url!r}), or --archive {pruned.url}",
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
    ) -> list[HeldBack]:
        """Consumers and other archives that have not seen all of these records."""
        origin = Feed(self._schema).read_origin(connection)
        behind = []
        for name, cursor in self._list_cursors(connection, archive_id):
            if cursor is None or (cursor.system_identifier, cursor.timeline) != origin:
                # It was saved on another server: what it has seen of this one nobody can say.
                count = len(positions)
            else:
                condition, values = bind_unseen(read_seen(cursor))
                count = connection.exec_driver_sql(
                    f"SELECT count(*) FROM {self._s}.oplog_record r "
                    f"WHERE r.position = ANY (%s::bigint[]) AND {condition}",
                    (list(positions), *values),
                ).scalar_one()
            if count:
                behind.append(HeldBack(name, count))
        return behind

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
                "SELECT pg_catalog.pg_try_advisory_xact_lock("
                "pg_catalog.hashtextextended(%s::text, 0)), "
                "CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' "
                "THEN pg_catalog.set_config('synchronous_commit', 'on', true) END",
                (f"oplog prune {self._schema}",),
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
        self._keep_outcomes(connection, kept)
        self._keep_heads(connection, positions)
        gone = list(positions)
        for table in ("part", "token"):
            connection.exec_driver_sql(
                f"DELETE FROM {self._s}.oplog_{table} WHERE position = ANY (%s::bigint[])", (gone,)
            )
        # Entries have no index on positions: those of a record are found by its aggregates.
        of_these = (
            "CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(r.aggregates), "
            "pg_catalog.unnest(r.versions)) AS a(name, version) "
            "WHERE r.position = ANY (%s::bigint[]) AND x.aggregate_name = a.name "
            "AND x.version = coalesce(a.version, 1)"
        )
        # A first version stays: whoever believes that the aggregate is new has to meet it.
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
        removed = connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_record WHERE position = ANY (%s::bigint[])", (gone,)
        )
        return removed.rowcount

    def _keep_outcomes(self, connection: Connection, kept: Sequence[int]) -> None:
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_outcome o SET aggregates = r.aggregates, "
            "versions = r.versions, record_hash = r.record_hash, metadata = ARRAY("
            "SELECT t.text FROM pg_catalog.generate_series(1, "
            "pg_catalog.cardinality(r.metadata), 2) AS n CROSS JOIN LATERAL "
            "(VALUES (0, r.metadata[n]), (1, r.metadata[n + 1])) AS t(place, text) "
            "WHERE r.metadata[n] = ANY (%s::text[]) ORDER BY n, t.place) "
            f"FROM {self._s}.oplog_record r WHERE r.position = ANY (%s::bigint[]) "
            "AND o.record_id = r.record_id",
            (list(KEPT_METADATA), list(kept)),
        )

    def _keep_heads(self, connection: Connection, positions: Sequence[int]) -> None:
        """Leave with its ticket the newest record of each aggregate that has no later one."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_ticket AS t "
            "(aggregate_name, version, head_version, head_hash) "
            "SELECT a.name, coalesce(a.version, 1), coalesce(a.version, 1), r.record_hash "
            f"FROM {self._s}.oplog_record r CROSS JOIN LATERAL ROWS FROM ("
            "pg_catalog.unnest(r.aggregates), pg_catalog.unnest(r.versions)) "
            "AS a(name, version) WHERE r.position = ANY (%s::bigint[]) "
            f"AND NOT EXISTS (SELECT FROM {self._s}.oplog_entry n "
            "WHERE n.aggregate_name = a.name AND n.version > coalesce(a.version, 1)) "
            'ORDER BY a.name COLLATE "C" '
            "ON CONFLICT (aggregate_name) DO UPDATE SET head_version = excluded.head_version, "
            "head_hash = excluded.head_hash",
            (list(positions),),
        )

    def drop_partitions(self, connection: Connection, *, through: int) -> list[str]:
        """Drop partitions that are empty and end at or below position `through`; their names."""
        names = connection.exec_driver_sql(
            "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE n.nspname = %s AND c.relispartition AND c.relname ~ '{PARTITION_PATTERN}' "
            "AND (pg_catalog.substring(c.relname::text, '_p([0-9]+)$')::bigint + 1) "
            f"* {PARTITION_POSITIONS} <= %s ORDER BY c.relname",
            (self._schema, through),
        ).scalars()
        dropped = []
        for name in list(names):
            quoted = double_percent(name)
            filled = connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM {quoted})").scalar_one()
            if not filled:
                connection.exec_driver_sql(f"DROP TABLE {quoted}")
                dropped.append(name)
        return dropped
