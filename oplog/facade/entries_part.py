"""The part of `Oplog` that reads entries: all, the last ones, in pages, in either direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.entry import LoggedEntry, check_metadata
from oplog.facade.given_target import Readable, iterate_on
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.reading.entry_pages import read_entries
from oplog.reading.given_place import find_place
from oplog.reading.page import Entries, PageEnd, make_wish
from oplog.store import EntryFilter


class EntryReading:
    """Entries of a log, for people and programs."""

    def __init__(self, log: LogParts, *, reading: Reading) -> None:
        self._log = log
        self._reading = reading

    def read(
        self,
        connection: Readable | None,
        *,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        cursor: str | None = None,
        revisions: Mapping[str, int] | None = None,
        archive: Archive | None = None,
    ) -> Entries:
        """Entries in causal order, as of one snapshot taken at the first.

        `connection` is a connection, a session for its connection, or an engine, of which one is
        held until the last entry. `metadata` keeps entries of transactions that have every given
        value. `after` and `through` are positions or aware datetimes; a lower position may become
        visible later, so a consumer that goes on from where it stopped uses `subscribe`.
        `revisions` asks for types, by name, as of a revision: through the catalog's steps, and by
        field number where none is declared.

        With a `limit` (of entries), or `newest_first`, no more is read than is given, however long
        the log is. After the last entry the iterator's `cursor` says where the next page begins;
        give it back with the same other arguments. Entries that were committed meanwhile move no
        page.

        With an `archive`, what was published is read from there, entries that were pruned too:
        these come first, in the order of their sequence, or last if the newest come first. With an
        `archive` and None for the connection no database is needed: what was published is all that
        is read. Without an `archive` a log that was pruned begins where it was.
        """
        wish = make_wish(limit, cursor, newest_first=newest_first)
        opener = self._reading.make_opener(archive=archive)
        pairs, end = flatten_metadata(metadata), PageEnd()

        def read(inside: Connection | None) -> Iterator[LoggedEntry]:
            reader = opener.open(inside, revisions=revisions, whole=False)
            snapshot = reader.source.read_snapshot()
            first = find_place(reader, after, snapshot=snapshot)
            last = find_place(reader, through, snapshot=snapshot)
            wanted = EntryFilter(aggregate, pairs, first, last)
            return read_entries(reader, wanted, snapshot=snapshot, wish=wish, end=end)

        return Entries(iter(iterate_on(connection, self._log.catalog, read)), end)

    def tail(
        self,
        connection: Readable | None,
        *,
        last: int | None = 20,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        newest_first: bool = False,
        archive: Archive | None = None,
    ) -> Iterable[LoggedEntry]:
        """The `last` entries that `read` would give, oldest first; None for all of them.

        With `newest_first` the same entries in the other order. Costs what it gives, however long
        the log and the `archive` are.
        """
        found = self.read(
            connection,
            aggregate=aggregate,
            metadata=metadata,
            after=after,
            through=through,
            limit=last or None,
            newest_first=newest_first or last is not None,
            archive=archive,
        )
        if last is None:
            return found
        entries = list(found) if last else []
        return entries if newest_first else entries[::-1]


def flatten_metadata(
    metadata: Mapping[str, str | Iterable[str]] | None,
) -> tuple[tuple[str, str], ...]:
    """Every key with each of its values, checked."""
    return tuple(
        (key, value)
        for key, given in (metadata or {}).items()
        for value in check_metadata(key, given)
    )
