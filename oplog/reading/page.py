"""Pages of a result: a limit, a direction, and the place where the next page begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from oplog.entry import LoggedEntry
from oplog.errors import ConfigurationError
from oplog.store import LogSource, StoredRecord
from oplog.store.page_cursor import PageCursor


class _Shown(Protocol):
    """What a page has: something that can be shown as JSON."""

    def to_json(self, *, redact: bool = False) -> dict[str, Any]: ...


T = TypeVar("T", bound=_Shown)
_UNLIMITED = 500
"""Records of the first page, if nobody says how many are wanted."""


class Page(list[T]):
    """A list, and the `cursor` with which the next page is asked for; None after the last one."""

    def __init__(self, items: Any = (), *, cursor: str | None = None) -> None:
        super().__init__(items)
        self.cursor = cursor

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The page as one JSON object: its `items`, and the `cursor`."""
        return {
            "items": [item.to_json(redact=redact) for item in self],
            "cursor": self.cursor,
        }


@dataclass(slots=True)
class PageEnd:
    """Where a page ended; None until it has, and after the last one."""

    cursor: str | None = None


class Entries(Iterator[LoggedEntry]):
    """Entries one after the other, as `Oplog.read` gives them.

    After the last one, `cursor` says where the next page begins: `read(cursor=entries.cursor)`
    with all other arguments as they were. None says that there are no more.
    """

    def __init__(self, entries: Iterator[LoggedEntry], end: PageEnd) -> None:
        self._entries = entries
        self._end = end

    def __next__(self) -> LoggedEntry:
        return next(self._entries)

    def close(self) -> None:
        """Give back what an engine's connection holds; there are no more entries then."""
        close = getattr(self._entries, "close", None)
        if close is not None:
            close()

    @property
    def cursor(self) -> str | None:
        """Where the next page begins; None before the end of this one, and if it is the last."""
        return self._end.cursor


@dataclass(frozen=True, slots=True)
class PageWish:
    """What a caller wants of a result: how many, in which direction, from where on."""

    limit: int | None = None
    newest_first: bool = False
    start: PageCursor | None = None

    @property
    def plain(self) -> bool:
        """Whether everything is wanted, oldest first."""
        return self == PageWish()

    @property
    def expected(self) -> int:
        """About how many records it takes, with one to see that there are more."""
        return _UNLIMITED if self.limit is None else self.limit + 1

    def mark(self, source: LogSource, record: StoredRecord, *, given: int = 0) -> PageCursor:
        """The place behind a record of the page given last, or within it."""
        sequence = source.find_sequence(record.position)
        if sequence is not None:
            return PageCursor(self.newest_first, None, sequence, given)
        return PageCursor(self.newest_first, record.position, source.page_base, given)


def make_wish(limit: int | None, cursor: str | None, *, newest_first: bool) -> PageWish:
    """The arguments of a call, checked; `ConfigurationError` for what is none of these."""
    # A bool is an int, and a mistake here.
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigurationError(
            f"limit={limit!r:.40} is no number of entries",
            hint="give limit=1 or more, or None for all",
        )
    start = None if cursor is None else PageCursor.from_text(cursor, newest_first=newest_first)
    return PageWish(limit, newest_first, start)
