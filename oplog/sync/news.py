"""What is new to an archive: pages of records that its database has and it has not.

Records that were published without a receipt lie after the database's own place too. They are
passed over one by one.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore, NewPage
from oplog.store.feed import Feed
from oplog.sync.divergence import Divergence


def read_page(
    connection: Connection,
    divergence: Divergence,
    *,
    store: ExportStore,
    feed: Feed,
    most_entries: int,
    most_bytes: int,
) -> NewPage:
    """What is new and not published, and the cursor after that and all that is published."""
    left = set(divergence.published)
    page = NewPage([], divergence.cursor)
    while left or not page.records:
        # A page may hold nothing but what was published.
        aimed = _aim(connection, page.cursor, feed)
        if aimed.target is None:
            return NewPage(page.records, aimed)
        more = store.read_new(connection, aimed, limit=most_entries, most_bytes=most_bytes)
        found = [record for record in more.records if record.position not in left]
        left.difference_update(record.position for record in more.records)
        page = NewPage(sorted([*page.records, *found]), more.cursor)
    return page


def _aim(connection: Connection, cursor: Cursor, feed: Feed) -> Cursor:
    """The cursor on its way to what this transaction sees; without a target if no news."""
    if cursor.target is not None:
        return cursor
    snapshot = feed.read_snapshot(connection)
    news = feed.find_news(connection, cursor, snapshot=snapshot)
    if news is None:
        return cursor
    goal = cursor.advance(snapshot, [news.newest_transaction])
    return cursor.begin(goal, after=news.first_position - 1)
