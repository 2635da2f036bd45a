"""Partitions dropped as a whole, in the transaction of a run of pruning.

Nobody can read or write the log while a partition is dropped; all wait behind the
one that drops. So it asks for the tables for a moment only, again and again, and gives up in the
end: then the records are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.backoff import Backoff
from oplog.errors import ConflictError
from oplog.postgres.sqlstate import may_run_again
from oplog.store.partition_store import LOCK_MILLISECONDS, Contents, Partition, PartitionStore
from oplog.store.removal import PruningStore
from oplog.upkeep.prune_plan import StretchTally

_PATIENCE_MILLISECONDS = 10_000
"""How long such a transaction waits for a writer, who may wait for it too."""
_SLICE = 5000
"""Positions in one statement."""


class PartitionDrop:
    """Drops partitions of one log, on one connection."""

    def __init__(self, connection: Connection, *, schema: str, pauses: Backoff) -> None:
        self._connection = connection
        self._pauses = pauses
        self._store = PruningStore(schema)
        self._partitions = PartitionStore(schema)

    def claim(self, tally: StretchTally) -> bool:
        """Close the partitions; whether they hold what was compared, and nothing else."""
        self._partitions.limit_waiting(self._connection, _PATIENCE_MILLISECONDS)
        for partition in tally.stretch.partitions:
            self._partitions.close(self._connection, partition)
            found = self._partitions.count(self._connection, partition)
            if found != tally.contents.get(partition, Contents()):
                return False
        return True

    def list_behind(self, tally: StretchTally, *, archive_id: UUID) -> Iterator[str]:
        """Consumers and archives that have not seen all of a stretch."""
        for partition in tally.stretch.partitions:
            yield from self._store.list_behind_partition(
                self._connection, partition, archive_id=archive_id
            )
        for positions in _slice(tally.others):
            yield from self._store.list_behind(self._connection, positions, archive_id=archive_id)

    def remove(self, tally: StretchTally) -> bool:
        """Remove all of a stretch that was claimed; False if its partitions cannot be dropped.

        Then the transaction has to be rolled back.
        """
        for positions in _slice(tally.kept):
            self._store.keep_outcomes(self._connection, positions)
        for positions in _slice(tally.others):
            require_all(self._store.remove(self._connection, positions, kept=()), len(positions))
        for partition in tally.stretch.partitions:
            self._store.give_up_partition(self._connection, partition)
        return self._drop(tally.stretch.partitions)

    def drop_empty(self, position: int) -> list[Partition]:
        """Drop the partitions up to a position that have no rows; those that were.

        In a transaction of its own, in which one whose tables are in use stays.
        """
        with self._connection.begin():
            if not self._store.begin(self._connection):
                return []
            self._partitions.limit_waiting(self._connection, LOCK_MILLISECONDS)
            chosen = [one for one in self._list_empty(position) if self._close_empty(one)]
            return chosen if chosen and self._drop(chosen) else []

    def _list_empty(self, position: int) -> list[Partition]:
        return [
            one
            for one in self._partitions.list_partitions(self._connection)
            if one.last <= position and self._partitions.is_empty(self._connection, one)
        ]

    def _close_empty(self, partition: Partition) -> bool:
        """Whether nobody writes into a partition, and nobody has."""
        try:
            with self._connection.begin_nested():
                self._partitions.close(self._connection, partition)
        except DBAPIError as error:
            if not may_run_again(error):
                raise
            return False
        return self._partitions.is_empty(self._connection, partition)

    def _drop(self, partitions: Sequence[Partition]) -> bool:
        """Drop partitions that are closed; False if their tables were in use all the time."""
        pauses = self._pauses.begin()
        while True:
            try:
                with self._connection.begin_nested():
                    self._partitions.limit_waiting(self._connection, LOCK_MILLISECONDS)
                    self._partitions.drop(self._connection, partitions)
            except DBAPIError as error:
                if not may_run_again(error):
                    raise
                pause = next(pauses, None)
                if pause is None:
                    return False
                self._pauses.sleep(pause)
            else:
                return True


def require_all(removed: int, wanted: int) -> None:
    """Raise `ConflictError` unless as many records were removed as should be."""
    if removed != wanted:
        raise ConflictError(
            f"{removed} of {wanted} records could be removed",
            hint="another process changed the log's tables at the same time: run it again",
        )


def _slice(positions: Sequence[int]) -> Iterable[list[int]]:
    for start in range(0, len(positions), _SLICE):
        yield list(positions[start : start + _SLICE])
