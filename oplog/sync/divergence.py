"""How a database differs from its archive: in step, behind on its receipt, or forked.

The newest head is compared with the database's own row; where they differ, every record after
the last common one is looked up. This happens in the transaction that will publish: a server
that was promoted in between would answer for another history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, Origin
from oplog.archive.format.index import Levels
from oplog.archive.history import (
    adopt_cursor,
    check_pruned,
    check_superseded,
    is_on_history,
    read_chain_at,
)
from oplog.errors import (
    HeadRolledBackError,
    LogForkedError,
)
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.removal import PruningStore
from oplog.store.rows import StoredRecord

MOST_LOST = 20
"""Lost records that an error describes."""
_LOOKED_UP = 5000


@dataclass(frozen=True, slots=True)
class LostEntry:
    """A record that the archive has and the database has not, or has otherwise.

    `aggregate` and `version` are those of its first entry, `entry_hash` is the record's hash;
    `stored_hash` is that of the record in its place, None if there is none.
    """

    sequence: int
    position: int
    aggregate: str
    version: int
    entry_hash: bytes
    stored_hash: bytes | None

    def to_json(self) -> dict[str, Any]:
        """The record's identity as one JSON object."""
        return {
            "sequence": self.sequence,
            "position": self.position,
            "aggregate": self.aggregate,
            "version": self.version,
            "archived_hash": self.entry_hash.hex(),
            "stored_hash": self.stored_hash and self.stored_hash.hex(),
        }


@dataclass(frozen=True, slots=True)
class Divergence:
    """What to go on from: the last record that both have, and the database's own place.

    Records after `cursor` are new but for those at the positions `published`, which are among
    the archive's up to `sequence`. `lost` counts records that follow there and that the database
    does not have; unless it is 0, going on makes a new generation.
    """

    sequence: int
    chain: bytes
    cursor: Cursor
    published: frozenset[int] = frozenset()
    lost: int = 0
    first_lost: tuple[LostEntry, ...] = ()


def find_divergence(
    connection: Connection,
    archive: Archive,
    *,
    head: Head,
    row: ArchiveRow | None,
    origin: Origin,
    store: ExportStore,
) -> Divergence:
    """Compare a database with the newest head, in the transaction that may publish.

    The place to go on from is always the row's, never the head's: a server that is no descendant
    of the one that published may have all that is published, and more that the other never saw.
    Raises `LeaseLostError` for a server whose history was superseded, `HeadRolledBackError` when
    the database knows of a newer head, `ForeignServerError` for a row of another server,
    `PrunedError` for an archive without what was pruned.
    """
    nowhere = Cursor(origin.system_identifier, origin.timeline, None)
    pruned = PruningStore(store.schema).read_watermark(connection)
    if head.number == 0:
        check_pruned(archive, head, pruned)
        return Divergence(0, head.chain, nowhere)
    check_superseded(head, origin)
    if row is not None and row.head > head.number:
        raise HeadRolledBackError(
            f"the database has published head {row.head} to {archive.url}, whose newest is "
            f"{head.number}",
            hint="the archive was set back to an older state: bring the newer objects back, or "
            "begin a new archive under another prefix",
        )
    chain = b"" if row is None else bytes.fromhex(row.chain)
    if row is None or not is_on_history(archive, head, sequence=row.sequence, chain=chain):
        check_pruned(archive, head, pruned)
        known, cursor = 0 if pruned is None else pruned.sequence, nowhere
    else:
        known, cursor = row.sequence, adopt_cursor(row, origin)
    return _look_up(connection, archive, store=store, head=head, known=known, cursor=cursor)


def _look_up(
    connection: Connection,
    archive: Archive,
    *,
    store: ExportStore,
    head: Head,
    known: int,
    cursor: Cursor,
) -> Divergence:
    """Look for what was published after `known`, by position and hash.

    Both sides of a split draw the same positions, so these alone prove nothing.
    """
    published: set[int] = set()
    common, lost = known, 0
    first: list[LostEntry] = []
    records = compare_records(
        connection, archive, store=store, levels=head.levels, after=known, through=head.sequence
    )
    for sequence, record, stored in records:
        if stored == record.record_hash:
            if not lost:
                common = sequence
                published.add(record.position)
            continue
        lost += 1
        if len(first) < MOST_LOST:
            first.append(
                LostEntry(
                    sequence=sequence,
                    position=record.position,
                    aggregate=record.aggregates[0],
                    version=record.versions[0],
                    entry_hash=record.record_hash,
                    stored_hash=stored,
                )
            )
    chain = read_chain_at(archive, head, common)
    return Divergence(
        sequence=common,
        chain=chain,
        cursor=cursor,
        published=frozenset(published),
        lost=lost,
        first_lost=tuple(first),
    )


def is_in_step(row: ArchiveRow, head: Head) -> bool:
    """Whether the database knows of exactly what the head holds."""
    mine = (row.generation, row.sequence, row.chain)
    return mine == (head.generation, head.sequence, head.chain.hex())


def refuse_fork(archive: Archive, divergence: Divergence, *, same: bool) -> LogForkedError:
    """The error for a database that lost what was published, by itself (`same`) or another."""
    first = divergence.first_lost[0]
    hint = (
        "a failover or a restore to an earlier time forgot them; nothing was written. See "
        "oplog fork inspect; then oplog fork replay-lost, or oplog fork abandon"
        if same
        else "they were published from another database, whose place this one takes; nothing was "
        "written. See oplog fork inspect; oplog fork abandon goes on without them, and oplog "
        "fork replay-lost writes them into this database, if they belong there"
    )
    return LogForkedError(
        f"the database has lost {divergence.lost} records that are published in {archive.url}: the "
        f"first is sequence {first.sequence}, position {first.position} (aggregate "
        f"{first.aggregate!r} version {first.version}), hash {first.entry_hash.hex()} there and "
        f"{'nothing' if first.stored_hash is None else first.stored_hash.hex()} here",
        hint=hint,
        position=first.position,
        sequence=first.sequence,
        archived_hash=first.entry_hash,
        stored_hash=first.stored_hash,
        lost=divergence.first_lost,
        lost_count=divergence.lost,
        common_sequence=divergence.sequence,
    )


# -- what both have -----------------------------------------------------------------------


def compare_records(
    connection: Connection,
    archive: Archive,
    *,
    store: ExportStore,
    levels: Levels,
    after: int,
    through: int,
) -> Iterator[tuple[int, StoredRecord, bytes | None]]:
    """Archived records in order: sequence, record, and the hash the database has in its place."""
    segments = archive.iterate_segments(levels, after=after, through=through)
    for item, segment in segments:
        numbered = list(enumerate(segment.records, item.first))
        chosen = [(n, record) for n, record in numbered if after < n <= through]
        for start in range(0, len(chosen), _LOOKED_UP):
            part = chosen[start : start + _LOOKED_UP]
            hashes = store.find_hashes(connection, [record.position for _, record in part])
            for sequence, record in part:
                yield sequence, record, hashes.get(record.position)
