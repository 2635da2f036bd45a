"""What a publishing transaction goes on from: the newest head, and the database's place to it.

Everything is read in the transaction that will publish. Another server that was promoted in
between would answer for another history.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, HeadLink, Origin, make_first
from oplog.archive.format.path import name_head
from oplog.archive.ownership import check_owner, identify, read_origin
from oplog.errors import ForeignArchiveError, HeadRolledBackError, LeaseHeldError
from oplog.store import Store
from oplog.store.export import ArchiveRow, ExportStore, Lease
from oplog.sync.divergence import Divergence, find_divergence


class OutdatedViewError(LeaseHeldError):
    """Another worker published after this transaction's snapshot, which has to be taken again."""


@dataclass(frozen=True, slots=True)
class Base:
    """The head that the next one is built on, and the link by which that one names it.

    Without a `link` it is named by the bytes that it encodes to, which are those in the store
    unless they were damaged.
    """

    head: Head
    link: HeadLink | None = None


@dataclass(frozen=True, slots=True)
class PublishContext:
    """Where a transaction begins: the newest head, and how this database differs from it."""

    base: Base
    origin: Origin
    row: ArchiveRow | None
    divergence: Divergence
    seized: bool = False
    """Whether another transaction has the right to publish."""

    @property
    def head(self) -> Head:
        """The newest head; number 0 for an archive that has none yet."""
        return self.base.head

    @property
    def is_owner(self) -> bool:
        """Whether it was this database that published the head."""
        return identify(self.head.origin) == identify(self.origin)


def find_context(
    connection: Connection,
    archive: Archive,
    *,
    store: ExportStore,
    log: Store,
    new_id: UUID,
    seize: bool = False,
    base: Base | None = None,
) -> PublishContext:
    """Look at archive and database in a transaction that has just begun.

    `connection` has begun a transaction and asked nothing in it yet. `new_id` is the archive's if
    nothing was ever published. `seize` goes on although another worker has the lease. `base` is
    taken for the newest head unless there is one after it. Raises `LeaseHeldError` if it is
    another worker's turn, `OutdatedViewError` if one had its turn meanwhile, and what
    `check_owner` and `find_divergence` raise.
    """
    # Before the transaction's snapshot, which then has every record that the head names: what
    # another worker publishes in between would look lost.
    found = base.head if base is not None and not is_followed(archive, base.head) else None
    if found is None:
        base, found = None, archive.find_head()
    store.begin(connection)
    origin = read_origin(connection, log.schema)
    if base is None:
        base = Base(found or _make_first(connection, archive, origin, store, log=log, new=new_id))
    head = base.head
    archive.trust.require_key(head, url=archive.url)
    _check_log(connection, archive, head, log=log)
    row = store.read_row(connection, head.archive_id)
    if row is not None and row.head > head.number:
        _refuse_outdated(archive, row)
    check_owner(archive, head, row, here=identify(origin))
    lease = store.try_lease(connection, head.archive_id)
    if lease is Lease.OUTDATED:
        raise make_outdated(archive)
    if lease is Lease.TAKEN and (archive.single_writer or not seize):
        raise LeaseHeldError(
            f"another worker is publishing to {archive.url}",
            hint="it does the work: wait for it, or stop it first",
        )
    divergence = find_divergence(
        connection, archive, head=head, row=row, origin=origin, store=store
    )
    return PublishContext(base, origin, row, divergence, seized=lease is Lease.TAKEN)


def is_followed(archive: Archive, head: Head) -> bool:
    """Whether there is a head after this one."""
    return archive.store.get(name_head(head.number + 1), most=MAX_HEAD_BYTES) is not None


def make_outdated(archive: Archive) -> OutdatedViewError:
    """The error of a transaction that began before another worker published."""
    return OutdatedViewError(
        f"another worker published to {archive.url} just now",
        hint="nothing was written: try again",
    )


def _refuse_outdated(archive: Archive, row: ArchiveRow) -> None:
    """Raise `OutdatedViewError` if the head that the row names was published since the look."""
    newest = archive.find_head()
    if newest is not None and newest.number >= row.head:
        raise make_outdated(archive)


def _make_first(
    connection: Connection,
    archive: Archive,
    origin: Origin,
    store: ExportStore,
    *,
    log: Store,
    new: UUID,
) -> Head:
    """Nothing published yet; the row of an attempt that came to nothing is used again."""
    archive_id = new
    for row in store.list_rows(connection):
        # Each opening of memory:// is another, empty store under the same URL.
        if row.url != archive.url or row.url.startswith("memory:"):
            continue
        if row.head:
            # Another worker may have published the first head between the two looks.
            _refuse_outdated(archive, row)
            raise HeadRolledBackError(
                f"{archive.url} is empty, and the database has published "
                f"{row.sequence} records there",
                hint="the bucket was emptied or is another one: bring the objects back if you can. "
                "Else oplog resync --anew fills it again from this database, if nothing was ever "
                "pruned; or begin a new archive under another prefix",
            )
        archive_id = row.archive_id
    return make_first(archive_id, log.read_log_id(connection), origin)


def _check_log(connection: Connection, archive: Archive, head: Head, *, log: Store) -> None:
    log_id = log.read_log_id(connection)
    if head.log_id != log_id:
        raise ForeignArchiveError(
            f"{archive.url} holds the log {head.log_id}, this database has {log_id}",
            hint="give each log an archive of its own, under another prefix; a database that "
            "is to go on with this archive is made by oplog restore",
        )
