"""Where a database stands to an archive: in step, behind on its receipt, or forked.

Compares what the newest head says with what the database's own row says, and where they differ
looks every entry up. Must not write. The hard thing is to look in the same transaction that
will publish: a server that was promoted in between would answer for another history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.head import Branch, Head, Origin
from oplog.archive.segment import extend_chain, start_chain
from oplog.cursor import Cursor
from oplog.errors import (
    ConfigurationError,
    HeadRolledBackError,
    LeaseLostError,
    LogForkedError,
)
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.rows import StoredEntry

MOST_LOST = 20
"""Lost entries that an error describes."""
_LOOKED_UP = 5000


@dataclass(frozen=True, slots=True)
class LostEntry:
    """An entry that the archive has and the database has not, or has otherwise."""

    sequence: int
    position: int
    aggregate: str
    version: int
    entry_hash: bytes
    stored_hash: bytes | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What to go on from: the last entry that both have, and the database's place after it.

    `lost` says how many entries follow in the archive that the database does not have; unless
    that is 0, going on makes a new generation.
    """

    sequence: int
    chain: bytes
    cursor: Cursor
    lost: int
    first_lost: tuple[LostEntry, ...] = ()


def find_standing(
    connection: Connection,
    archive: Archive,
    *,
    head: Head,
    row: ArchiveRow | None,
    origin: Origin,
    store: ExportStore,
) -> Standing:
    """Compare a database with the newest head, in the transaction that may publish.

    Raises `LeaseLostError` for a server whose history was superseded, `HeadRolledBackError` when
    the database knows of more than the archive holds, `ConfigurationError` for a copy of the
    database of which nobody can say what it lacks.
    """
    if head.number == 0:
        return Standing(0, head.chain, Cursor(origin.system_identifier, origin.timeline, None), 0)
    check_superseded(head, origin)
    if row is not None and matches(row, head):
        cursor = _find_cursor(row.cursor, head.cursor, origin)
        return Standing(head.sequence, head.chain, cursor, 0)
    if row is not None and (row.generation, row.sequence) > (head.generation, head.sequence):
        raise HeadRolledBackError(
            f"the database has published {row.sequence} entries to {archive.url} (generation "
            f"{row.generation}), which holds {head.sequence} (generation {head.generation})",
            hint="the archive was set back to an older state: bring the newer objects back, or "
            "begin a new archive under another prefix",
        )
    start = _find_common(archive, head, row)
    lost, count = look_up(
        connection, archive, store=store, levels_of=head, after=start, through=head.sequence
    )
    if count == 0:
        # Published, and only the receipt was lost.
        row_cursor = None if row is None else row.cursor
        return Standing(head.sequence, head.chain, _find_cursor(head.cursor, row_cursor, origin), 0)
    known = row is not None and row.sequence == start
    text = row.cursor if row is not None and known else read_cursor_at(archive, head, start)
    chain = read_chain_at(archive, head, start)
    return Standing(start, chain, _find_cursor(text, text, origin), count, tuple(lost))


def check_superseded(head: Head, origin: Origin) -> None:
    """Raise `LeaseLostError` on a server from which another one was promoted since."""
    if (
        head.origin.system_identifier == origin.system_identifier
        and origin.timeline < head.origin.timeline
    ):
        raise LeaseLostError(
            f"this server is on timeline {origin.timeline}, and what is published was read from "
            f"timeline {head.origin.timeline}: it was superseded",
            hint="stop this server, or make it a standby of the one that was promoted",
        )


def matches(row: ArchiveRow, head: Head) -> bool:
    """Whether the database knows of exactly what the head holds."""
    mine = (row.generation, row.sequence, row.chain)
    return mine == (head.generation, head.sequence, head.chain.hex())


def refuse_fork(archive: Archive, standing: Standing) -> LogForkedError:
    """The error for a database that lost what was published."""
    first = standing.first_lost[0]
    return LogForkedError(
        f"the database has lost {standing.lost} entries that are published in {archive.url}: the "
        f"first is sequence {first.sequence}, position {first.position} (aggregate "
        f"{first.aggregate!r} version {first.version}), hash {first.entry_hash.hex()} there and "
        f"{'nothing' if first.stored_hash is None else first.stored_hash.hex()} here",
        hint="a failover or a restore to an earlier time forgot them; nothing was written. See "
        "oplog fork inspect; then oplog fork replay-lost, or oplog fork abandon",
        position=first.position,
        sequence=first.sequence,
        archived_hash=first.entry_hash,
        stored_hash=first.stored_hash,
        lost=standing.first_lost,
        lost_count=standing.lost,
        common_sequence=standing.sequence,
    )


# -- what both have -----------------------------------------------------------------------


def _find_common(archive: Archive, head: Head, row: ArchiveRow | None) -> int:
    """A sequence up to which the database has everything, by what its row says."""
    if row is None:
        return 0
    start = row.sequence
    for branch in head.branches:
        if branch.generation >= row.generation:
            start = min(start, branch.sequence)
    if start != row.sequence:
        return start
    # Two servers may have published in one generation: the number alone proves nothing.
    return start if read_chain_at(archive, head, start).hex() == row.chain else 0


def read_chain_at(archive: Archive, head: Head, sequence: int) -> bytes:
    """The chain after an entry, from the archive."""
    if sequence == head.sequence:
        return head.chain
    if sequence == 0:
        return start_chain(head.log_id)
    item = next(archive.iterate_items(head.levels, after=sequence - 1))
    if item.last == sequence:
        return item.chain
    segment = archive.read_segment(item)
    within = segment.entries[: sequence - item.first + 1]
    return extend_chain(segment.header.chain_before, within, first=item.first)


def read_cursor_at(archive: Archive, head: Head, sequence: int) -> str | None:
    """The place in the database after an entry, where a segment ends with it."""
    if sequence == 0:
        return None
    item = next(archive.iterate_items(head.levels, after=sequence - 1))
    cursor = archive.read_segment(item).header.cursor if item.last == sequence else None
    if cursor is None:
        raise ConfigurationError(
            f"nothing says which entries the database had when sequence {sequence} was published",
            hint="begin a new archive under another prefix; the old one stays readable",
        )
    return cursor


def look_up(
    connection: Connection,
    archive: Archive,
    *,
    store: ExportStore,
    levels_of: Head | Branch,
    after: int,
    through: int,
) -> tuple[list[LostEntry], int]:
    """Archived entries that the database has not, the first of them and how many.

    By position and hash: both sides of a split draw the same positions.
    """
    found: list[LostEntry] = []
    count = 0
    for sequence, entry, stored in compare_entries(
        connection, archive, store=store, levels_of=levels_of, after=after, through=through
    ):
        if stored == entry.entry_hash:
            continue
        count += 1
        if len(found) < MOST_LOST:
            found.append(
                LostEntry(
                    sequence,
                    entry.position,
                    entry.aggregate,
                    entry.version,
                    entry.entry_hash,
                    stored,
                )
            )
    return found, count


def compare_entries(
    connection: Connection,
    archive: Archive,
    *,
    store: ExportStore,
    levels_of: Head | Branch,
    after: int,
    through: int,
) -> Iterator[tuple[int, StoredEntry, bytes | None]]:
    """Archived entries in order: sequence, entry, and the hash the database has in its place."""
    segments = archive.iterate_segments(levels_of.levels, after=after, through=through)
    for item, segment in segments:
        numbered = list(enumerate(segment.entries, item.first))
        chosen = [(n, entry) for n, entry in numbered if after < n <= through]
        for start in range(0, len(chosen), _LOOKED_UP):
            part = chosen[start : start + _LOOKED_UP]
            hashes = store.find_hashes(connection, [entry.position for _, entry in part])
            for sequence, entry in part:
                yield sequence, entry, hashes.get(entry.position)


def _find_cursor(text: str | None, other: str | None, origin: Origin) -> Cursor:
    """A place in this server's history: the first of two that is of this server."""
    for given in (text, other):
        if given is None:
            continue
        cursor = Cursor.from_json(given)
        if cursor.system_identifier == origin.system_identifier:
            # A promotion that lost nothing of what was published: transaction ids go on, and
            # the cursor names none that was not seen.
            return replace(cursor, timeline=origin.timeline)
    if text is None and other is None:
        return Cursor(origin.system_identifier, origin.timeline, None)
    raise ConfigurationError(
        "this server is a copy of the one that was published from, made in a way that keeps no "
        "transaction ids (a dump, a logical replica) or another identity (an upgrade)",
        hint="restore it with oplog restore, or begin a new archive under another prefix",
    )


def describe_lost(entries: Sequence[LostEntry]) -> list[str]:
    """Lost entries, a line each."""
    return [
        f"sequence {one.sequence} position {one.position}: {one.aggregate!r} version {one.version}"
        for one in entries
    ]
