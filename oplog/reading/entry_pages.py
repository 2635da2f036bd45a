"""Entries in either direction, as many as are wanted, and where the next page begins."""

from __future__ import annotations

from collections.abc import Iterator

from oplog.entry import LoggedEntry
from oplog.reading.page import PageEnd, PageWish
from oplog.reading.reader import RecordReader
from oplog.store import EntryFilter
from oplog.store.page_cursor import PageCursor
from oplog.store.rows import list_aggregates


def read_entries(
    reader: RecordReader, filter: EntryFilter, *, snapshot: str, wish: PageWish, end: PageEnd
) -> Iterator[LoggedEntry]:
    """The entries of one page, all from one snapshot; `end` is told where it ended.

    A record is opened when its first entry is asked for.
    """
    if wish.plain:
        yield from reader.read(filter, snapshot=snapshot)
        return
    wanted = list_aggregates(filter)
    count, place, skipped = 0, wish.start, 0 if wish.start is None else wish.start.given
    for page in reader.source.iterate_pages(
        filter,
        snapshot=snapshot,
        newest_first=wish.newest_first,
        expected=wish.expected,
        start=wish.start,
    ):
        for stored in page:
            if count == wish.limit:
                end.cursor = _write(place)
                return
            entries = list(reader.present([stored], aggregates=wanted))
            if wish.newest_first:
                entries.reverse()
            place = wish.mark(reader.source, stored)
            for number, entry in enumerate(entries[skipped:], skipped):
                if count == wish.limit:
                    end.cursor = _write(wish.mark(reader.source, stored, given=number))
                    return
                count += 1
                yield entry
            skipped = 0


def _write(place: PageCursor | None) -> str | None:
    return None if place is None else place.to_text()
