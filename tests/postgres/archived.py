"""An archive of a test's log: published, restored from, compared."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive, RestoreReport, SyncReport
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.facade import Oplog
from oplog.sync.exporter import Exporter
from tests.postgres.replay_models import Bench, dump_tables
from tests.postgres.restored import dump_log

KEEP = 1 << 26


def open_memory(store: ObjectStore | None = None) -> Archive:
    """An archive in memory, or in a store that is there."""
    return Archive(store or MemoryStore("test"), verdict=Verdict.ATOMIC)


def reopen(archive: Archive) -> Archive:
    """The same objects, as a process sees them that has seen nothing before."""
    return Archive(archive.store, verdict=Verdict.ATOMIC)


def dump_objects(archive: Archive) -> dict[str, bytes]:
    """All objects."""
    store = archive.store
    found = {info.path: store.get(info.path, most=KEEP) for info in store.list("")}
    return {path: data for path, data in found.items() if data is not None}


def dump_all(bench: Bench) -> tuple[object, object]:
    """All rows of all tables, and of the log."""
    with bench.engine.connect() as connection:
        return dump_tables(connection), dump_log(connection)


def publish(log: Oplog, engine: Engine, archive: Archive, **settings: Any) -> SyncReport:
    """A pass with settings of its own."""
    exporter: Exporter = log.make_exporter(archive, **settings)
    return exporter.publish_all(engine)


def restore_into(target: Bench, archive: Archive, **options: Any) -> RestoreReport:
    """Restore on a connection of an engine that no application knows."""
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return target.log.restore(archive, connection, **options)
