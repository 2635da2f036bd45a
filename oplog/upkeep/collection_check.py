"""Before anything is deleted: the newest head holds what the database has published.

A head that is signed by nobody may have been written by anybody. One that holds less than the
database remembers, or other records, makes garbage of what is needed.
"""

from __future__ import annotations

from sqlalchemy.engine import Engine

from oplog.archive.format.head import Head
from oplog.archive.history import is_on_history
from oplog.archive.ownership import identify, read_origin
from oplog.errors import ManifestInvalidError
from oplog.store.export import ArchiveRow
from oplog.sync.divergence import find_divergence, refuse_fork
from oplog.sync.exporter import Exporter


def require_published(exporter: Exporter, engine: Engine, head: Head) -> None:
    """Raise unless `head` has what the database's row names, and the database all that is newer.

    `ManifestInvalidError` for a head that lacks something, `LogForkedError` for one that has
    records which the database has not.
    """
    archive, store = exporter.archive, exporter.store
    with engine.connect() as connection, connection.begin():
        store.begin(connection)
        row = store.read_row(connection, head.archive_id)
        stored = store.count_types(connection)
        if row is not None and row.head:
            _compare(exporter, head, row, stored=stored)
        origin = read_origin(connection, exporter.log.schema)
        divergence = find_divergence(
            connection, archive, head=head, row=row, origin=origin, store=store
        )
    if divergence.lost:
        raise refuse_fork(archive, divergence, same=identify(head.origin) == identify(origin))


def _compare(exporter: Exporter, head: Head, row: ArchiveRow, *, stored: tuple[int, int]) -> None:
    archive = exporter.archive
    chain = bytes.fromhex(row.chain)
    if not is_on_history(archive, head, sequence=row.sequence, chain=chain):
        raise ManifestInvalidError(
            f"the newest head of {archive.url} ends at sequence {head.sequence}, and does not hold "
            f"what this database has published up to sequence {row.sequence}",
            hint="nothing was deleted: run oplog check with the database, and oplog sync, before "
            "anything is collected; the head may have been forged",
        )
    named = (0, 0) if head.types is None else (head.types.types, head.types.keys)
    if named[0] < min(stored[0], 1) or named[1] > stored[1]:
        raise ManifestInvalidError(
            f"the newest head of {archive.url} names {named[0]} types and {named[1]} keys, and the "
            f"database has {stored[0]} and {stored[1]}",
            hint="nothing was deleted: run oplog check with the database; the head may have been "
            "forged",
        )
