"""Begins an archive anew where its objects are gone and the database still has the whole log.

Only when somebody says so. A bucket that is empty may be another one, or hide what is there; and
the archive that begins is another one: who has read the old one must notice.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.format.path import COLLECTED, HEAD, LATEST, parse_head
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.errors import ConfigurationError, PrunedError, StorageConfigError
from oplog.store import Store
from oplog.store.export import Lease
from oplog.store.removal import PruningStore
from oplog.sync.exact_view import take_turn
from oplog.sync.exporter import Exporter
from oplog.sync.publish_context import make_outdated


def begin_anew(exporter: Exporter, engine: Engine) -> None:
    """Forget what was published to the archive, which has no head any more, and publish all.

    For the owner of the log. Raises `ConfigurationError` for an archive that has heads or that
    this database has not published to, `PrunedError` for a log whose beginning is not in the
    database, and what publishing raises.
    """
    archive = exporter.archive
    require_empty(archive.store)
    take_turn(lambda: _forget(exporter, engine))
    take_turn(lambda: exporter.publish_all(engine))


def _delete_marks(archive: Archive) -> None:
    """Delete what says that there was an archive, which would be missed."""
    for path in (LATEST, COLLECTED):
        try:
            archive.store.delete(path)
        except StorageConfigError as cause:
            raise ConfigurationError(
                f"{path} of {archive.url} cannot be deleted, and says that heads are missing",
                hint="delete it with other credentials, or begin under another prefix: oplog sync",
            ) from cause


def require_empty(store: ObjectStore) -> None:
    """Raise `ConfigurationError` if there is a head: then this is an archive, whole or not."""
    found = [info.path for info in store.list(f"{HEAD}/") if parse_head(info.path) is not None]
    if found:
        raise ConfigurationError(
            f"{store.url} has {len(found)} heads, so it is not empty: {max(found)} is there",
            hint="run oplog resync without --anew: it brings back what is missing",
        )


def _forget(exporter: Exporter, engine: Engine) -> None:
    with engine.connect() as connection, connection.begin():
        Store(exporter.log.schema).require_home(connection)
        _require_whole(exporter, connection)
        url = exporter.archive.url
        known = [row for row in exporter.store.list_rows(connection) if row.url == url]
        if not any(row.head for row in known):
            raise ConfigurationError(
                f"this database has published nothing to {url}",
                hint="to begin an archive there, run oplog sync",
            )
        for row in known:
            # A worker that is at it would acknowledge what nobody can read.
            if exporter.store.try_lease(connection, row.archive_id) is not Lease.OURS:
                raise make_outdated(exporter.archive)
            exporter.store.forget_archive(connection, row.archive_id)
        # Last: if it fails, the database has forgotten nothing.
        _delete_marks(exporter.archive)


def _require_whole(exporter: Exporter, connection: Connection) -> None:
    pruned = PruningStore(exporter.log.schema).read_watermark(connection)
    if pruned is not None:
        raise PrunedError(
            f"records up to sequence {pruned.sequence} were pruned from this log: no archive can "
            "begin without them",
            hint=f"they were in {pruned.url}: bring its objects back, from another copy of the "
            "bucket or from its versions",
        )
