"""The row in which a database keeps what it has published to an archive.

Its cursor is always this database's own place, never the head's, which may be of a server that
saw other transactions.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import Head
from oplog.archive.ownership import identify, read_origin
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.home import Identity

RESTORED_SNAPSHOT = "4:4:"
"""What sees restored entries, whose transaction is 3, and nothing else."""


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


def write_restored(
    connection: Connection, source: ArchivedLog, *, schema: str, sequence: int, position: int
) -> None:
    """Write the row of a database restored from `source` up to `sequence`, so that it goes on.

    `position` is the highest that was restored.
    """
    origin = read_origin(connection, schema)
    chain = source.find_chain(sequence) or b""
    row = ArchiveRow(
        archive_id=source.head.archive_id,
        url=source.archive.url,
        epoch=source.head.epoch,
        generation=source.generation,
        sequence=sequence,
        chain=chain.hex(),
        head=source.head.number,
        cursor=Cursor(origin.system_identifier, origin.timeline, RESTORED_SNAPSHOT).to_json(),
        origin=identify(origin),
        owner=identify(source.head.origin),
    )
    ExportStore(schema).write_row(connection, row, position=position)
