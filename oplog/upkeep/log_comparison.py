"""Archive and log compared, record by record.

It takes 8 bytes of memory for each record. The archive's head is read first, and the database is
asked after that. So whatever the head holds is there unless it was lost or pruned, and what the
database has beyond the head is new, not damage. Each question is a transaction of its own: one
that lasted as long as the check would keep VACUUM from all that dies meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.index import Item
from oplog.archive.format.segment import Segment
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.removal import PruningStore
from oplog.upkeep.problem import ArchiveProblem, ProblemKind

_LOOKED_UP = 5000
_PAGE = 20_000
_MOST_NAMED = 20


class LogComparison:
    """One comparison; `connection` is in no transaction."""

    def __init__(
        self,
        connection: Connection,
        store: ExportStore,
        *,
        note: Callable[[ArchiveProblem], None],
        pruned_through: int,
    ) -> None:
        self._connection = connection
        self._store = store
        self._note = note
        self._pruned = pruned_through
        self._row: ArchiveRow | None = None
        self._let_go = 0
        self._archive_id: UUID | None = None
        self._positions = array("q")

    def begin(self, archive: Archive, head: Head | None, *, readable: bool) -> None:
        """Hold what the database knows of the archive against `head`."""
        with self._connection.begin():
            self._store.begin(self._connection)
            rows = [row for row in self._store.list_rows(self._connection) if row.head]
            if head is not None:
                self._archive_id = head.archive_id
                self._read_pruned()
        if head is None:
            for known in rows:
                if known.url == archive.url and not known.url.startswith("memory:"):
                    self._accuse(
                        ProblemKind.BEHIND,
                        f"the database has published {known.sequence} records to {known.url}, "
                        "where no head is left",
                        known.sequence,
                    )
            return
        self._row = next((row for row in rows if row.archive_id == head.archive_id), None)
        self._let_go = head.first_sequence - 1
        row = self._row
        if row is None:
            return
        if row.head > head.number and readable:
            # Published since the head was read: the newest one says more by now.
            newer = archive.find_head(accept_older=True)
            head = newer if newer is not None else head
        if row.head > head.number or (
            row.generation == head.generation and row.sequence > head.sequence
        ):
            self._accuse(
                ProblemKind.BEHIND,
                f"the database has published head {row.head} with sequence {row.sequence}, and "
                f"the newest that can be read is {head.number} with {head.sequence}",
                head.sequence + 1,
            )
        same = (row.generation, row.sequence) == (head.generation, head.sequence)
        if same and row.chain != head.chain.hex():
            self._accuse(
                ProblemKind.DIVERGED,
                f"the database has published another history up to sequence {row.sequence}",
                row.sequence,
            )

    def _read_pruned(self) -> None:
        """What may be gone: pruning goes on while the archive is read."""
        pruned = PruningStore(self._store.schema).read_watermark(self._connection)
        if pruned is not None and pruned.archive_id == self._archive_id:
            self._pruned = max(self._pruned, pruned.sequence)

    def add(self, item: Item, segment: Segment) -> None:
        """The next segment of the archive."""
        numbered = list(enumerate(segment.records, item.first))
        missing: list[int] = []
        other: list[int] = []
        for start in range(0, len(numbered), _LOOKED_UP):
            part = numbered[start : start + _LOOKED_UP]
            positions = [record.position for _, record in part]
            self._positions.extend(positions)
            with self._connection.begin():
                self._store.begin(self._connection)
                self._read_pruned()
                hashes = self._store.find_hashes(self._connection, positions)
            for sequence, record in part:
                stored = hashes.get(record.position)
                if stored is None and sequence > self._pruned:
                    missing.append(sequence)
                elif stored is not None and stored != record.record_hash:
                    other.append(sequence)
        for found, why in ((missing, "are not in the database"), (other, "are others there")):
            if found:
                self._note(
                    ArchiveProblem(
                        item.path,
                        ProblemKind.DIVERGED,
                        f"{len(found)} records of {item.path} {why}, from sequence {found[0]} on",
                        found[0],
                    )
                )

    def finish(self, *, complete: bool) -> None:
        """Look for records that were published, by the database's account, and are not there.

        Without a `complete` archive it is known already that some are not.
        """
        row = self._row
        if row is None or row.cursor is None or not complete:
            return
        cursor = Cursor.from_json(row.cursor)
        if cursor.snapshot is None:
            return
        archived = array("q", sorted(self._positions))
        lost: list[int] = []
        count = last = 0
        while True:
            with self._connection.begin():
                page = self._store.list_published(
                    self._connection, cursor.snapshot, after=last, limit=_PAGE
                )
            if not page:
                break
            last = page[-1]
            for position in page:
                place = bisect_left(archived, position)
                if place == len(archived) or archived[place] != position:
                    count += 1
                    lost += [position] if len(lost) < _MOST_NAMED else []
        # Which records were let go by retention is not known any more, only how many.
        if count > self._let_go:
            self._accuse(
                ProblemKind.DIVERGED,
                f"{count - self._let_go} records that were published are not in the archive; they "
                f"are among those at positions {lost} and on",
                None,
            )

    def _accuse(self, what: ProblemKind, message: str, sequence: int | None) -> None:
        self._note(ArchiveProblem("", what, message, sequence))
