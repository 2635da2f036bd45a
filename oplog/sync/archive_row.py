"""What a database is told that it has published: the row of an archive.

Pure. Must not write. The cursor is always this database's own place, never the head's, which
may be of a server that saw other transactions.
"""

from __future__ import annotations

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
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
        head.archive_id,
        archive.url,
        epoch,
        head.generation,
        head.sequence,
        head.chain.hex(),
        head.number,
        cursor,
        here,
        owner,
    )


def make_blank(archive: Archive, head: Head, *, here: Identity) -> ArchiveRow:
    """The row of a database that has published nothing to the archive yet."""
    chain = head.chain.hex()
    return ArchiveRow(
        head.archive_id, archive.url, head.epoch, 0, 0, chain, 0, None, origin=here, owner=here
    )
