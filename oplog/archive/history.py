"""Which point of an archive a database's row names, and whether the two have one past."""

from __future__ import annotations

from dataclasses import replace

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, Origin
from oplog.archive.format.segment import extend_chain, start_chain
from oplog.errors import ForeignServerError, LeaseLostError, PrunedError
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow
from oplog.store.home import REMEDIES
from oplog.store.removal import Watermark


def is_on_history(archive: Archive, head: Head, *, sequence: int, chain: bytes) -> bool:
    """Whether what the database knows of is what the head goes on from."""
    if not head.first_sequence - 1 <= sequence <= head.sequence:
        return False
    # Two servers may have published in one generation: the number alone proves nothing.
    return read_chain_at(archive, head, sequence) == chain


def check_pruned(archive: Archive, head: Head, pruned: Watermark | None) -> None:
    """Raise `PrunedError` unless the archive goes on from what was pruned from the database.

    What it lacks is nowhere else: a head without it would be a log with a hole.
    """
    if pruned is None:
        return
    if head.archive_id == pruned.archive_id and is_on_history(
        archive, head, sequence=pruned.sequence, chain=pruned.chain
    ):
        return
    raise PrunedError(
        f"records up to sequence {pruned.sequence} were pruned from this log, and "
        f"{archive.url} does not have them in that place",
        hint=f"they are in {pruned.url}: give that archive, or a copy of all its objects",
    )


def adopt_cursor(row: ArchiveRow, origin: Origin) -> Cursor:
    """The row's place, in this server's history.

    A promotion goes on with the transaction ids, and the cursor names none that was not seen.
    """
    if row.cursor is None:
        return Cursor(origin.system_identifier, origin.timeline, None)
    cursor = Cursor.from_json(row.cursor)
    if cursor.system_identifier != origin.system_identifier:
        raise ForeignServerError(
            "what this database knows of the archive was written on server "
            f"{cursor.system_identifier}, and this is server {origin.system_identifier}",
            hint=REMEDIES,
        )
    return replace(cursor, timeline=origin.timeline)


def read_chain_at(archive: Archive, head: Head, sequence: int) -> bytes:
    """The chain after a record, from the archive."""
    if sequence == head.sequence:
        return head.chain
    if sequence == 0:
        return start_chain(head.log_id)
    item = next(archive.iterate_items(head.levels, after=sequence - 1))
    if item.last == sequence:
        return item.chain
    segment = archive.read_segment(item)
    within = segment.records[: sequence - item.first + 1]
    return extend_chain(segment.header.chain_before, within, first=item.first)


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
