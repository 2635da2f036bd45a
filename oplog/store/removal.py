"""The SQL of pruning: what is only in an archive, what may go there, and its removal.

Takes a connection and plain values. Must not know objects or keys. The hard thing is what has to
be known for ever though its entry is gone: an idempotency key that was used, an adoption that
ended. Of such transactions the rows stay, without their payload, under the same unique index.
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
    quote,
    quote_for_driver,
)
from oplog.store.adopted import ADOPTED, ADOPTED_ROWS
from oplog.store.commit_lookup import REQUEST
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.feed import Feed
from oplog.store.rows import FORMAT_PRUNED, read_microseconds
from oplog.store.seen import bind_unseen, read_seen

KEPT_METADATA = (REQUEST, ADOPTED, ADOPTED_ROWS)
"""Metadata of transactions whose rows stay: what they are asked for."""
_COLUMNS = (
    "id, entry_id, transaction_id, transaction_position, transaction_size, aggregate_name, "
    "version, key_id, metadata_hash, prev_hash, entry_hash, created_at, idempotency_key"
)


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a log was pruned: what was up to `sequence` is in the archive, and only there.

    `chain` is the archive's after that entry, `position` the highest of what went, `entries` how
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
    """The log in one schema, as whoever shortens it sees it."""

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
        """Whether this role may prune: it is a member of the owner of the entries."""
        return bool(
            connection.exec_driver_sql(
                "SELECT pg_catalog.pg_has_role(c.relowner, 'MEMBER') FROM pg_catalog.pg_class c "
                "WHERE c.oid = pg_catalog.to_regclass(%s)",
                (f"{quote(self._schema)}.oplog_entry",),
            ).scalar_one()
        )

    def find_hashes(self, connection: Connection, positions: Sequence[int]) -> dict[int, bytes]:
        """Entry hashes by position, of entries that are there with their payload."""
        rows = connection.exec_driver_sql(
            f"SELECT id, entry_hash FROM {self._s}.oplog_entry "
            f"WHERE id = ANY (%s::bigint[]) AND format <> {FORMAT_PRUNED}",
            (list(positions),),
        )
        return {row[0]: bytes(row[1]) for row in rows}

    def list_behind(
        self, connection: Connection, positions: Sequence[int], *, archive_id: UUID
    ) -> list[HeldBack]:
        """Consumers and other archives that have not seen all of these entries."""
        origin = Feed(self._schema).read_origin(connection)
        behind = []
        for name, cursor in self._list_cursors(connection, archive_id):
            if cursor is None or (cursor.system_identifier, cursor.timeline) != origin:
                # It was saved on another server: what it has seen of this one nobody can say.
                count = len(positions)
            else:
                condition, values = bind_unseen(read_seen(cursor))
                count = connection.exec_driver_sql(
                    f"SELECT count(*) FROM {self._s}.oplog_entry e "
                    f"WHERE e.id = ANY (%s::bigint[]) AND {condition}",
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
        self,
        connection: Connection,
        positions: Sequence[int],
        *,
        transactions: Sequence[int],
        kept: Sequence[int],
    ) -> int:
        """Remove entries and their transactions' metadata; how many entries there were.

        Of the transactions at the positions `kept` all rows stay, without their payload.
        """
        connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_metadata WHERE transaction_position = "
            "ANY (%s::bigint[]) AND NOT (transaction_position = ANY (%s::bigint[]) "
            "AND key = ANY (%s::text[]))",
            (list(transactions), list(kept), list(KEPT_METADATA)),
        )
        # Each row is deleted before the one that takes its place is checked to be unique.
        removed = connection.exec_driver_sql(
            f"WITH gone AS (DELETE FROM {self._s}.oplog_entry WHERE id = ANY (%s::bigint[]) "
            f"RETURNING *), left_over AS (INSERT INTO {self._s}.oplog_entry "
            f"({_COLUMNS}, format, data) SELECT {_COLUMNS}, {FORMAT_PRUNED}, ''::bytea FROM gone "
            "WHERE transaction_position = ANY (%s::bigint[])) SELECT count(*) FROM gone",
            (list(positions), list(kept)),
        ).scalar_one()
        return int(removed)
