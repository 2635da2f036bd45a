"""Rows of `oplog_archive`: what a database knows of what it has published. Pure.

The cursor is always this database's own place, never the head's, which may be of a server that
saw other transactions.
"""

from __future__ import annotations

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.ownership import identify
from oplog.store.export import ArchiveRow
from oplog.store.home import Identity


def make_receipt(
    archive: Archive,
    head: Head,
    *,
    epoch: int,
    cursor: str | None,
    here: Identity,
    owner: Identity | None,
) -> ArchiveRow:
    """The row for `head`, written in the database `here`, by which `owner` had published."""
    return ArchiveRow(
        archive_id=head.archive_id,
        url=archive.url,
        epoch=epoch,
        generation=head.generation,
        sequence=head.sequence,
        chain=head.chain.hex(),
        head=head.number,
        cursor=cursor,
        origin=here,
        owner=owner,
    )


def make_restored(
    archive: Archive, head: Head, *, sequence: int, chain: bytes, cursor: str, here: Identity
) -> ArchiveRow:
    """The row of the database `here`, which has what `head` shows up to `sequence`."""
    return ArchiveRow(
        archive_id=head.archive_id,
        url=archive.url,
        epoch=head.epoch,
        generation=head.generation,
        sequence=sequence,
        chain=chain.hex(),
        head=head.number,
        cursor=cursor,
        origin=here,
        owner=identify(head.origin),
    )


def make_blank(archive: Archive, head: Head, *, here: Identity) -> ArchiveRow:
    """The row of a database that has published nothing to the archive yet."""
    return ArchiveRow(
        archive_id=head.archive_id,
        url=archive.url,
        epoch=head.epoch,
        generation=0,
        sequence=0,
        chain=head.chain.hex(),
        head=0,
        cursor=None,
        origin=here,
        owner=here,
    )
