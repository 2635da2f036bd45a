"""How far the archive is behind the log.

Counting stops at a limit, so that it stays cheap when much is waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.store import Store
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.feed import Feed

MOST_COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class ArchiveLag:
    """What is committed and not published.

    `entries` (those of at most 100,000 records are counted), and the age of the oldest record in
    `lag_seconds`. `sequence` is that of the last record that is published.
    """

    entries: int
    lag_seconds: float
    sequence: int


def measure_lag(connection: Connection, archive: Archive, *, schema: str) -> ArchiveLag:
    """How far `archive` is behind the log in `schema`; `ConfigurationError` on a standby."""
    Store(schema).require_home(connection)
    store, feed = ExportStore(schema), Feed(schema)
    head = archive.find_head()
    row = None if head is None else store.read_row(connection, head.archive_id)
    if row is None or row.cursor is None:
        identifier, timeline = feed.read_origin(connection)
        cursor = Cursor(identifier, timeline, None)
    else:
        cursor = Cursor.from_json(row.cursor)
    entries, seconds = store.measure_lag(connection, cursor, most=MOST_COUNTED)
    return ArchiveLag(entries, seconds if entries else 0.0, 0 if row is None else row.sequence)
