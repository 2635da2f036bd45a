"""Which database an archive belongs to: the one that published its newest head.

Copying a database copies its row of the archive too. So the row says which database wrote it,
and which database that one may replace: after a restore, or when the owner said so.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, Origin
from oplog.errors import ArchiveError, ForeignServerError
from oplog.store import Store
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.feed import Feed
from oplog.store.home import REMEDIES, Identity


def read_origin(connection: Connection, schema: str) -> Origin:
    """This database, as a head names it; raises where the log is not at home on this server."""
    here = Store(schema).require_home(connection)
    identifier, timeline = Feed(schema).read_origin(connection)
    return Origin(identifier, timeline, here.database)


def identify(origin: Origin) -> Identity:
    """The database, whatever its history."""
    return Identity(origin.system_identifier, origin.database)


def check_owner(archive: Archive, head: Head, row: ArchiveRow | None, *, here: Identity) -> None:
    """Raise `ForeignServerError` unless the archive is this database's, or this may take it over.

    A promoted standby is the same database. One that was restored takes the place of the one
    that had published by then; the first that does is then the owner.
    """
    owner = identify(head.origin)
    if head.number == 0 or owner == here:
        return
    if row is not None and row.origin == here and row.owner in (None, owner):
        return
    raise ForeignServerError(
        f"{archive.url} belongs to {owner}, and this is {here}: a copy of that one, or one whose "
        "place it has taken",
        hint=f"nothing was written. {REMEDIES}, which then needs an archive under another prefix",
    )


def require_owner(engine: Engine, archive: Archive, *, schema: str) -> None:
    """`check_owner` as of now; passes for an archive whose heads cannot be read."""
    try:
        head = archive.find_head(accept_older=True)
    except ArchiveError:
        return
    with engine.connect() as connection, connection.begin():
        here = Store(schema).require_home(connection)
        if head is not None:
            row = ExportStore(schema).read_row(connection, head.archive_id)
            check_owner(archive, head, row, here=here)
