"""A search goes in stages: what an index finds, then what was logged before there was one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oplog.store import EntryFilter
from oplog.store.page_cursor import PageCursor

ALL, INDEXED, REST = "a", "i", "s"
"""Stages: all records are opened; those that the index finds; all from before the index."""


@dataclass(frozen=True)
class Stage:
    """A part of the log to search, and where to begin in it."""

    name: str
    filter: EntryFilter
    start: PageCursor | None = None

    def write(self, place: PageCursor | None) -> str:
        """A cursor of the search: the place where it goes on."""
        if place is None:
            place = PageCursor(newest_first=True, position=(1 << 63) - 1)
        return f"{self.name}:{place.to_text()}"


def plan_stages(wanted: EntryFilter, cursor: str | None) -> Iterator[Stage]:
    """What is searched, one after the other, from a cursor on."""
    name, start = read_cursor(cursor)
    yield Stage(name or ALL, wanted, start)


def read_cursor(text: str | None) -> tuple[str | None, PageCursor | None]:
    """The stage that a cursor is of, and the place in it."""
    if text is None:
        return None, None
    # What is no cursor is refused there.
    name, _, place = str(text).partition(":")
    known = name in (ALL, INDEXED, REST)
    return name, PageCursor.from_text(place if known else text, newest_first=True)
