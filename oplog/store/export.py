"""The SQL of publishing: what is new, what was published, and which process may publish.

The row that says what is published is written in the very transaction that read the records. It
travels with the database: a server that lost records has lost the row as well, and so notices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.quoting import quote_for_driver, quote_literal
from oplog.schema.progress_functions import ARCHIVE_COLUMNS
from oplog.store.cursor import Cursor
from oplog.store.home import Identity
from oplog.store.new_transactions import read_new_rows
from oplog.store.records import read_records
from oplog.store.rows import StoredRecord, measure_record, read_uuid
from oplog.store.seen import EVERYTHING, VISIBLE

_PATIENCE_MINUTES = 15
"""How long a publishing transaction may wait for the object store before Postgres ends it."""
_ROW = ARCHIVE_COLUMNS
_READ = _ROW.replace("cursor", "cursor::text")
_VALUES = "%s, %s, %s, %s, %s, %b, %s, %s::jsonb, %s, %s, %s, %s"


class Lease(Enum):
    """What a transaction got that asked for the right to publish."""

    OURS = auto()
    TAKEN = auto()
    """Another transaction has it."""
    OUTDATED = auto()
    """The archive's row was written after this transaction's snapshot: it has to begin again."""


@dataclass(frozen=True, slots=True)
class ArchiveRow:
    """What the database knows of an archive.

    It holds everything up to `sequence`, whose chain is `chain`, as of head number `head`;
    `cursor` is the place up to which that is everything. `epoch` is the last one handed out.
    `origin` is the database that wrote this: a row that came along with a copy is not the
    copy's. `owner` is the one that had published then, whose place this one may take; None
    for any.
    """

    archive_id: UUID
    url: str
    epoch: int
    generation: int
    sequence: int
    chain: str
    head: int
    cursor: str | None
    origin: Identity
    owner: Identity | None


class Novelty(NamedTuple):
    """A record to be published, without its content.

    `entries` is how many aggregates it has, `size_bytes` what its parts and metadata have.
    """

    position: int
    entries: int
    size_bytes: int


class NewPage(NamedTuple):
    """Records by rising position, and the cursor after them."""

    records: list[Novelty]
    cursor: Cursor


class ExportStore:
    """The log in one schema, as publishing reads it."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._s = quote_for_driver(schema)

    # -- the archive's row ----------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """Make the transaction that was just begun REPEATABLE READ, and allow it to idle."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Waiting for the object store counts as idle; and what is acknowledged must be durable.
        isolation = connection.exec_driver_sql(
            "SELECT pg_catalog.current_setting('transaction_isolation'), "
            "pg_catalog.set_config('idle_in_transaction_session_timeout', %s, true), "
            "pg_catalog.set_config('lock_timeout', '10s', true), "
            "CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' "
            "THEN pg_catalog.set_config('synchronous_commit', 'on', true) END",
            (f"{_PATIENCE_MINUTES}min",),
        ).scalar_one()
        if isolation != "repeatable read":
            raise ConfigurationError(
                "publishing needs a transaction, and the connection is in AUTOCOMMIT",
                hint="leave out isolation_level='AUTOCOMMIT'",
            )

    def try_lease(self, connection: Connection, archive_id: UUID) -> Lease:
        """Get the right to publish until the transaction ends."""
        held: bool | None = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_lease(%s::uuid)", (archive_id,)
        ).scalar_one()
        return Lease.OUTDATED if held is None else Lease.OURS if held else Lease.TAKEN

    def try_reserve(self, connection: Connection, archive_id: UUID) -> bool:
        """Hold, until the transaction ends, what a snapshot holds while it is taken.

        False if another transaction does.
        """
        # Spelled as in `housekeeping`, which keeps the rows of these locks.
        name = UUID(sha256(f"snapshot/{archive_id}".encode()).hexdigest()[:32])
        return self.try_lease(connection, name) is Lease.OURS

    def export_view(self, connection: Connection) -> str:
        """What the transaction sees, for `import_view`, while it lasts."""
        found = connection.exec_driver_sql("SELECT pg_catalog.pg_export_snapshot()")
        return str(found.scalar_one())

    def import_view(self, connection: Connection, view: str) -> None:
        """Make the transaction that was just begun see what another one sees."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT {quote_literal(view)}")
        self.begin(connection)

    def read_row(self, connection: Connection, archive_id: UUID) -> ArchiveRow | None:
        """What the database knows of an archive; None if nothing."""
        found = connection.exec_driver_sql(
            f"SELECT {_READ} FROM {self._s}.oplog_archive WHERE archive_id = %s", (archive_id,)
        ).one_or_none()
        return None if found is None else _make_row(found)

    def list_rows(self, connection: Connection) -> list[ArchiveRow]:
        """All archives that the database knows of."""
        rows = connection.exec_driver_sql(
            f"SELECT {_READ} FROM {self._s}.oplog_archive ORDER BY archive_id"
        )
        return [_make_row(row) for row in rows]

    def take_epoch(self, connection: Connection, row: ArchiveRow) -> ArchiveRow:
        """Raise the epoch over the stored one and over `row.epoch`; gives the row as it is now.

        `row` is what to begin with if there is none.
        """
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        # A crash that took it back would let the same one be handed out twice.
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        found = connection.exec_driver_sql(
            f"SELECT {_READ} FROM {self._s}.oplog_take_epoch(%s::jsonb)", (_print_row(row),)
        ).one()
        return _make_row(found)

    def acknowledge(self, connection: Connection, row: ArchiveRow, *, position: int) -> bool:
        """Say what is published; False if the epoch is not `row.epoch` any more."""
        done = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_acknowledge(%s::jsonb, %s)", (_print_row(row), position)
        )
        return bool(done.scalar_one())

    def write_row(self, connection: Connection, row: ArchiveRow, *, position: int) -> None:
        """Put the row of a database that was just restored."""
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_archive ({_ROW}, position) VALUES ({_VALUES}, %s) "
            f"ON CONFLICT (archive_id) DO UPDATE SET ({_ROW}, position) = ROW ({_VALUES}, %s)",
            (*_list_values(row), position, *_list_values(row), position),
        )

    def rewrite_row(self, connection: Connection, row: ArchiveRow) -> None:
        """Replace the row of an archive; the position for people to read stays."""
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_archive SET ({_ROW}) = ROW ({_VALUES}) WHERE archive_id = %s",
            (*_list_values(row), row.archive_id),
        )

    def forget_archive(self, connection: Connection, archive_id: UUID) -> None:
        """Remove the row of one archive; only the log's owner may."""
        connection.exec_driver_sql(
            f"DELETE FROM {self._s}.oplog_archive WHERE archive_id = %s", (archive_id,)
        )

    def forget_archives(self, connection: Connection) -> None:
        """Remove the rows of all archives."""
        connection.exec_driver_sql(f"DELETE FROM {self._s}.oplog_archive")

    # -- what is new ----------------------------------------------------------------------

    def read_new(
        self, connection: Connection, cursor: Cursor, *, limit: int, most_bytes: int
    ) -> NewPage:
        """The next records on the cursor's way to its target.

        About `limit` entries and `most_bytes` bytes, more only for a single larger record.
        """
        rows, last = read_new_rows(
            connection,
            cursor,
            s=self._s,
            columns=f"r.position, pg_catalog.cardinality(r.aggregates), {measure_record(self._s)}",
            limit=limit,
            most_bytes=most_bytes,
        )
        reached = cursor.finish() if last is None else cursor.reach(last)
        return NewPage([Novelty(*row) for row in rows], reached)

    def read_records(self, connection: Connection, positions: Sequence[int]) -> list[StoredRecord]:
        """Records by their positions, sorted by position."""
        return read_records(connection, self._s, positions)

    def find_hashes(self, connection: Connection, positions: Sequence[int]) -> dict[int, bytes]:
        """Record hashes by position; what is not there is left out."""
        rows = connection.exec_driver_sql(
            f"SELECT position, record_hash FROM {self._s}.oplog_record "
            "WHERE position = ANY (%s::bigint[])",
            (list(positions),),
        )
        return {row[0]: bytes(row[1]) for row in rows}

    def list_published(
        self, connection: Connection, snapshot: str, *, after: int, limit: int
    ) -> list[int]:
        """Positions over `after` of the records in a snapshot, rising."""
        rows = connection.exec_driver_sql(
            f"SELECT r.position FROM {self._s}.oplog_record r WHERE r.position > %s AND {VISIBLE} "
            "ORDER BY r.position LIMIT %s",
            (after, snapshot, limit),
        )
        return [row[0] for row in rows]

    def count_types(self, connection: Connection) -> tuple[int, int]:
        """How many revisions of types, and how many keys the log knows."""
        row = connection.exec_driver_sql(
            f"SELECT (SELECT count(*) FROM {self._s}.oplog_type), "
            f"(SELECT count(*) FROM {self._s}.oplog_key)"
        ).one()
        return row[0], row[1]

    def measure_lag(
        self, connection: Connection, cursor: Cursor, *, most: int
    ) -> tuple[int, float]:
        """How many entries are not published yet, and an age in seconds.

        Up to `most` records are counted; the age is that of the oldest of them.
        """
        count, seconds = connection.exec_driver_sql(
            "SELECT coalesce(sum(n.entries), 0)::bigint, coalesce(extract(epoch FROM "
            "pg_catalog.clock_timestamp() - min(n.created_at)), 0)::float8 "
            "FROM (SELECT r.created_at, pg_catalog.cardinality(r.aggregates) AS entries "
            f"FROM {self._s}.oplog_record r WHERE NOT {VISIBLE} "
            # For the planner, as in `Feed.find_news`.
            "AND r.transaction_id >= pg_catalog.pg_snapshot_xmin(%s::pg_snapshot) "
            "AND (r.transaction_id >= pg_catalog.pg_snapshot_xmax(%s::pg_snapshot) "
            "OR r.transaction_id = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip("
            "%s::pg_snapshot)))) AND (r.position > %s OR NOT %s::boolean) LIMIT %s) n",
            (
                *(cursor.snapshot or EVERYTHING,) * 4,
                cursor.after,
                cursor.target is not None,
                most,
            ),
        ).one()
        return count, max(0.0, seconds)


def _make_row(row: Sequence[Any]) -> ArchiveRow:
    archive_id, url, epoch, generation, sequence, chain, head, cursor, *known = row
    origin_server, origin_database, owner_server, owner_database = known
    return ArchiveRow(
        archive_id=read_uuid(archive_id),
        url=url,
        epoch=epoch,
        generation=generation,
        sequence=sequence,
        chain=bytes(chain).hex(),
        head=head,
        cursor=cursor,
        origin=Identity(origin_server, origin_database),
        owner=None if owner_server is None else Identity(owner_server, owner_database),
    )


def _list_values(row: ArchiveRow) -> tuple[object, ...]:
    """Parameters for `_VALUES`."""
    return (
        row.archive_id,
        row.url,
        row.epoch,
        row.generation,
        row.sequence,
        bytes.fromhex(row.chain),
        row.head,
        row.cursor,
        *row.origin,
        *((None, None) if row.owner is None else row.owner),
    )


def _print_row(row: ArchiveRow) -> str:
    """The row as JSON, by the names of its columns."""
    names = [name.strip() for name in _ROW.split(",")]
    values = dict(zip(names, _list_values(row), strict=True))
    cursor = None if row.cursor is None else json.loads(row.cursor)
    return json.dumps(
        {**values, "archive_id": str(row.archive_id), "chain": f"\\x{row.chain}", "cursor": cursor}
    )
