"""A durable consumer: batches of what is new, and a cursor that is saved when they are done.

The cursor is saved after the work, in the consumer's own transaction if it gives one, so a
consumer that dies gets its batch again. It is saved only if it still is where the batch began: of
two processes with one name, one gets `ConflictError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from sqlalchemy.engine import Connection, Engine

from oplog.entry import LoggedEntry
from oplog.errors import ConfigurationError, ConflictError
from oplog.reading.log_opener import LogOpener
from oplog.store.cursor import Cursor
from oplog.store.feed import Feed, check_consumer_name
from oplog.store.rows import StoredRecord

BATCH_ENTRIES = 4000
"""Entries in a batch, unless one transaction has more."""


class Batch(Sequence[LoggedEntry]):
    """Entries to be worked on and then committed, in causal order.

    Holds whole transactions: no entry of theirs is in another batch. Positions rise within a
    batch, and entries of one transaction share theirs; from one batch to the next they need not.
    """

    def __init__(
        self,
        subscription: Subscription,
        entries: Sequence[LoggedEntry],
        *,
        began_at: str | None,
        cursor: Cursor,
    ) -> None:
        self._subscription = subscription
        self._entries = tuple(entries)
        self.began_at = began_at
        self.cursor = cursor

    @overload
    def __getitem__(self, index: int) -> LoggedEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LoggedEntry]: ...
    def __getitem__(self, index: int | slice) -> LoggedEntry | Sequence[LoggedEntry]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def commit(self, connection: Connection | None = None) -> None:
        """Save the cursor: this batch is done and will not be delivered again.

        With a `connection` of the log's database, in its open transaction: what the consumer
        wrote there and its cursor then commit together, or not at all (give
        `session.connection()` if you have a session). Without one, in a transaction of its
        own: a consumer that dies between its work and this call gets the batch again.
        Raises `ConflictError` when the saved cursor is no longer where the batch began.
        """
        self._subscription.save(self, connection)


class Subscription:
    """A named consumer of one log; iterate over it to get everything that is new.

    Nothing is held open between batches. The iteration ends when the consumer has caught up;
    iterate again, after a pause or a notification, to go on.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        feed: Feed,
        log: LogOpener,
        max_entries: int = BATCH_ENTRIES,
        revisions: Mapping[str, int] | None = None,
    ) -> None:
        check_consumer_name(name)
        if max_entries < 1:
            raise ConfigurationError(
                f"a batch of at most {max_entries} entries", hint="give max_entries=1 or more"
            )
        self.name = name
        self._engine = engine
        self._feed = feed
        self._log = log
        self._max_entries = max_entries
        self._revisions = revisions
        self._furthest: Cursor | None = None
        """The newest cursor that was read from the database, so one that was committed."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches until nothing is new; commit each one before the next.

        Raises `ConfigurationError` when the batch before was not committed: it would be
        delivered again and again.
        """
        before: Batch | None = None
        while (batch := self.read_batch()) is not None:
            if before is not None and before.began_at == batch.began_at:
                raise ConfigurationError(
                    f"consumer {self.name!r} asked for the next batch before it committed "
                    "the one it got",
                    hint="call batch.commit() at the end of the loop; if you gave it a "
                    "connection, commit that as well",
                )
            yield batch
            before = batch

    def read_batch(self) -> Batch | None:
        """The batch after the saved cursor; None when nothing is new.

        Raises `ConfigurationError` on a standby, when the server's history is not the one that
        the cursor was saved in, and when the saved cursor is behind one that this object has
        read before.
        """
        with self._engine.connect() as connection:
            # Of a log that was pruned, a new consumer gets what is left.
            reader = self._log.open(connection, revisions=self._revisions, whole=False)
            system_identifier, timeline = self._feed.read_origin(connection)
            saved = self._feed.read_checkpoint(connection, self.name)
            if saved is None:
                cursor = Cursor(system_identifier, timeline, None)
            else:
                cursor = Cursor.from_json(saved)
                cursor.check_origin(system_identifier, timeline=timeline)
            self._check_forward(cursor)
            found = self._read_next(connection, cursor)
            if found is None:
                return None
            records, reached = found
            return Batch(self, list(reader.present(records)), began_at=saved, cursor=reached)

    def save(self, batch: Batch, connection: Connection | None = None) -> None:
        """What `Batch.commit` does."""
        if connection is None:
            with self._engine.begin() as own:
                self.save(batch, own)
            return
        saved = self._feed.write_checkpoint(
            connection,
            self.name,
            before=batch.began_at,
            cursor=batch.cursor.to_json(),
            position=batch[-1].position,
        )
        if not saved:
            raise ConflictError(
                f"the cursor of consumer {self.name!r} is not where this batch began",
                hint="the batch was committed before, or another process consumes under the "
                "same name: roll back and read the next batch",
            )

    def _check_forward(self, cursor: Cursor) -> None:
        if self._furthest is not None and cursor.is_behind(self._furthest):
            raise ConfigurationError(
                f"the cursor of consumer {self.name!r} is behind what it has read before: it was "
                "reset, or the database was set back to an older point",
                hint="if the database was set back, entries that this consumer was given may be "
                "gone, and others have their versions: compare what it has with the log by "
                "entry_hash; then start the consumer again",
            )
        self._furthest = cursor

    def _read_next(
        self, connection: Connection, cursor: Cursor
    ) -> tuple[list[StoredRecord], Cursor] | None:
        while True:
            if cursor.target is None:
                snapshot = self._feed.read_snapshot(connection)
                news = self._feed.find_news(connection, cursor, snapshot=snapshot)
                if news is None:
                    return None
                goal = cursor.advance(snapshot, [news.newest_transaction])
                cursor = cursor.begin(goal, after=news.first_position - 1)
            page = self._feed.read_page(connection, cursor, limit=self._max_entries)
            reached = cursor.finish() if page.last is None else cursor.reach(page.last)
            if page.records:
                return page.records, reached
            cursor = reached
