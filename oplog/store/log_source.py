"""What whoever reads a log needs of it, wherever it lies.

The tables in Postgres have this surface, and so has a log that is kept elsewhere: one reader,
one replay, two inputs. Must not know either. The hard thing is order: every source gives
entries after what they depend on, and only the tables give them by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.payload.shape import Shape
from oplog.store.adopted import Turns
from oplog.store.rows import BrokenLink, EntryFilter, StoredEntry


class LogSource(Protocol):
    """A log to read. `connection` is the reader's; a source elsewhere leaves it alone.

    All positions are those of Postgres. A snapshot is what `read_snapshot` gave, opaque.
    """

    @property
    def schema(self) -> str:
        """The schema of the log's tables, which nothing may be rebuilt into."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether entries come by rising position.

        If not: in another causal order, a transaction's entries one after the other, and a
        low position may come after a high one.
        """
        ...

    def read_log_id(self, connection: Connection) -> UUID:
        """The identity of the log, bound into every sealed entry."""
        ...

    def read_snapshot(self, connection: Connection) -> str:
        """What stands for all that is there now, for the other methods."""
        ...

    def list_types(self, connection: Connection) -> list[Shape]:
        """Every stored revision of every type, revisions rising."""
        ...

    def list_keys(self, connection: Connection) -> Mapping[str, bytes]:
        """Check values of data keys by key id."""
        ...

    def iterate(
        self, connection: Connection, filter: EntryFilter, *, snapshot: str
    ) -> Iterator[list[StoredEntry]]:
        """Pages of entries, none empty, in causal order: in the order of positions or not."""
        ...

    def read_metadata(
        self, connection: Connection, positions: Iterable[int]
    ) -> Mapping[int, list[tuple[str, str]]]:
        """Metadata pairs in their order, by transaction position; none, no item."""
        ...

    def find_sequence(self, position: int) -> int | None:
        """The sequence of an entry of the page given last; None where entries have none."""
        ...

    def find_position(self, connection: Connection, at: datetime, *, snapshot: str) -> int:
        """The highest position recorded at or before `at`; 0 when there is none."""
        ...

    def find_adoptions(
        self,
        connection: Connection,
        types: Sequence[str],
        *,
        snapshot: str,
        through: int | None = None,
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        ...

    def list_broken_links(self, connection: Connection, *, limit: int = 20) -> list[BrokenLink]:
        """Gaps and false links in the aggregates' chains."""
        ...


class SequencedPage(NamedTuple):
    """Entries that follow one another in a log's sequence, with their metadata.

    `first` is the sequence of the first; the others count up from it. `metadata` has the pairs
    of their transactions, by transaction position.
    """

    first: int
    entries: list[StoredEntry]
    metadata: Mapping[int, list[tuple[str, str]]]


class SequencedLog(LogSource, Protocol):
    """A log whose entries are numbered without gaps, in the order in which it gives them.

    Of one generation: where the log was forked, what came after the fork has the same
    sequences in each. Transactions are whole, their entries one after the other.
    """

    @property
    def generation(self) -> int:
        """Which fork of the log this is."""
        ...

    @property
    def first_sequence(self) -> int:
        """Of the oldest entry that is kept: 1 unless older ones were given up."""
        ...

    @property
    def sequence(self) -> int:
        """Of the newest entry; 0 for an empty log."""
        ...

    def find_chain(self, sequence: int) -> bytes | None:
        """The hash over all up to `sequence`; None where this log does not reach."""
        ...

    def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
        """Pages, none empty, of the entries whose sequence is over `after`."""
        ...
