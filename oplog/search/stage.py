"""A search goes in stages: what an index finds, then what was logged before there was one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from oplog.errors import ConfigurationError
from oplog.reading.reader import RecordReader
from oplog.search.search_index import SearchIndex
from oplog.store import EntryFilter
from oplog.store.page_cursor import PageCursor

ALL, INDEXED, REST = "a", "i", "s"
"""Stages: all records are looked at; those that the index finds; all from before the index."""
_CURSOR = re.compile(r"(?:(a)|([is])([1-9][0-9]{0,18})):(.*)")


@dataclass(frozen=True)
class Stage:
    """A part of the log to search, and where to begin in it.

    `begin` is the position from which on there is an index. It is in the cursor: a record that
    commits meanwhile may move it.
    """

    name: str
    filter: EntryFilter
    start: PageCursor | None = None
    begin: int = 0

    def write(self, place: PageCursor | None) -> str:
        """A cursor of the search: the place where it goes on."""
        if place is None:
            place = PageCursor(newest_first=True, position=(1 << 63) - 1)
        return f"{self.name}{self.begin or ''}:{place.to_text()}"


def plan_stages(
    wanted: EntryFilter,
    cursor: str | None,
    *,
    index: SearchIndex | None,
    reader: RecordReader,
    snapshot: str,
) -> Iterator[Stage]:
    """What is searched, one after the other, from a cursor on."""
    name, begin, start = read_cursor(cursor)
    if name == ALL or (name is None and (index is None or not reader.source.ordered)):
        # What lies in an archive is read in any case: tokens say which of it is opened.
        yield Stage(ALL, wanted, start)
        return
    if name is None:
        found = None if index is None else index.find_beginning(reader, snapshot=snapshot)
        if found is None:
            yield Stage(ALL, wanted)
            return
        begin = found
    if name != REST:
        if index is None:
            raise ConfigurationError(
                "the cursor is of a search by an index, and this one has none",
                hint="give the same arguments as for the page that gave the cursor, to a log "
                "whose catalog has the column in searchable=[...]",
            )
        narrowed = index.narrow(wanted.narrow(begin - 1, None))
        yield Stage(INDEXED, narrowed, start, begin)
        start = None
    yield Stage(REST, wanted.narrow(None, begin - 1), start, begin)


def read_cursor(text: str | None) -> tuple[str | None, int, PageCursor | None]:
    """The stage that a cursor is of, where the index begins, and the place in the stage."""
    if text is None:
        return None, 0, None
    matched = _CURSOR.fullmatch(str(text))
    # What is no cursor is refused there.
    place = PageCursor.from_text(matched[4] if matched else text, newest_first=True)
    if matched is None:
        raise ConfigurationError(
            f"{text!r:.80} is no cursor of a search", hint="give the cursor of a page as it was"
        )
    return matched[1] or matched[2], int(matched[3] or 0), place
