"""Read interface of a log, in Postgres or in an archive.

The tables (`TablesLog`), an archive (`ArchivedLog`) and both together (`JoinedLog`) have it, so
that one reader and one replay serve all three. A source is bound to what it needs, such as a
connection, when it is made. Every source gives records after those that they depend on; only the
tables give them by rising position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from oplog.payload.shape import Shape
from oplog.store.adopted import Turns
from oplog.store.page_cursor import PageCursor
from oplog.store.rows import BrokenLink, EntryFilter, StoredRecord


class LogSource(Protocol):
    """A log to read. All positions are those of Postgres.

    A snapshot is what `read_snapshot` of the same source gave; its text means nothing elsewhere.
    """

    @property
    def schema(self) -> str:
        """The schema of the log's tables; a replay refuses to rebuild tables there."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether records come by rising position.

        If not, they come in another causal order: a low position may come after a high one.
        """
        ...

    @property
    def page_base(self) -> int:
        """The last sequence that pages read from an archive, 0 if they read none.

        What is behind a place among the other records is told apart by it.
        """
        ...

    def read_log_id(self) -> UUID:
        """The identity of the log, bound into every sealed part."""
        ...

    def read_snapshot(self) -> str:
        """The state of the log now, to be given to the other methods."""
        ...

    def list_types(self) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        ...

    def list_keys(self) -> Mapping[str, bytes]:
        """Check values of data keys by key id."""
        ...

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredRecord]]:
        """Pages of records that have an entry which fits, in causal order; no page is empty."""
        ...

    def iterate_pages(
        self,
        filter: EntryFilter,
        *,
        snapshot: str,
        newest_first: bool,
        expected: int,
        start: PageCursor | None = None,
    ) -> Iterator[list[StoredRecord]]:
        """The same in either direction, for a caller that wants about `expected` records.

        It begins at the place `start`, with the record itself if that is cut by it.
        """
        ...

    def find_sequence(self, position: int) -> int | None:
        """The sequence of a record of the page given last; None where it has none yet."""
        ...

    def find_position(self, at: datetime, *, snapshot: str) -> int:
        """The highest position up to which no record was recorded after `at`; 0 for none.

        Clocks are set back: records before it may be older or younger than one another, and some
        after it may be older than `at`.
        """
        ...

    def find_later(self, at: datetime, *, snapshot: str) -> int | None:
        """The lowest position recorded after `at`; None when there is none."""
        ...

    def find_adoptions(
        self, types: Sequence[str], *, snapshot: str, through: int | None = None
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        ...

    def list_quarantine_marks(self) -> list[StoredRecord]:
        """Every mark by which the owner has quarantined a record, oldest first."""
        ...

    def list_broken_links(self, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the aggregates' chains."""
        ...


class SequencedPage(NamedTuple):
    """Records that follow one another in a log's sequence.

    `first` is the sequence of the first; the others count up from it.
    """

    first: int
    records: list[StoredRecord]


class SequencedLog(LogSource, Protocol):
    """A log whose records are numbered without gaps, in the order in which it gives them.

    It is the log of one generation: after a fork, two generations use the same sequences for
    different records.
    """

    @property
    def generation(self) -> int:
        """Which fork of the log this is."""
        ...

    @property
    def first_sequence(self) -> int:
        """Sequence of the oldest record that is kept: 1 unless older ones were given up."""
        ...

    @property
    def sequence(self) -> int:
        """Sequence of the newest record; 0 for an empty log."""
        ...

    def find_chain(self, sequence: int) -> bytes | None:
        """The hash over all up to `sequence`; None where this log does not reach."""
        ...

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        """Pages, none empty, of the records whose sequence is over `after`."""
        ...
