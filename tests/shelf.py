"""Snapshots taken into a dictionary, and read back beside the live tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog import Keyring, Oplog
from oplog.archive.format.manifest import SnapshotManifest, decode_manifest, encode_manifest
from oplog.archive.format.path import BLOB, name_content
from oplog.crypto.seal import Sealer
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver, pin_settings
from oplog.reading.reader import OpenedEntry
from oplog.recovery.row_loader import load_snapshot
from oplog.replay.loader import TableLoader
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.table_plan import list_quoted, read_plans
from oplog.snapshot.stored import StoredSnapshot
from oplog.snapshot.table_data import describe_table, list_present
from oplog.snapshot.take import SETTINGS, SnapshotPoint, take_snapshot


class Shelf:
    """What an archive does with snapshots, in memory: sequences in order of first sight."""

    def __init__(self, engine: Engine, log: Oplog, keyring: Keyring | None) -> None:
        self.engine = engine.execution_options(isolation_level="REPEATABLE READ")
        self.log = log
        self.sealer = Sealer(keyring)
        self.objects: dict[str, bytes] = {}
        self.previous: SnapshotManifest | None = None
        self.seen: set[int] = set()
        """Positions of the entries in the last snapshot."""

    def put(self, data: bytes) -> str:
        path = name_content(BLOB, len(self.objects) + 1, data=data)
        self.objects[path] = data
        return path

    def measure(self, manifest: SnapshotManifest, *, since: set[str]) -> int:
        """Bytes of a manifest's chunks that were not there before."""
        chunks = manifest.iterate_chunks()
        return sum(ref.stored_bytes for ref in chunks if ref.path not in since)

    @contextmanager
    def open(self) -> Iterator[Connection]:
        with self.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            transaction.rollback()

    def take(self, *, whole: bool = False) -> SnapshotManifest | None:
        """The next snapshot, over the last one unless `whole`."""
        with self.open() as connection:
            return self.take_inside(connection, whole=whole)

    def take_inside(
        self, connection: Connection, *, whole: bool = False
    ) -> SnapshotManifest | None:
        previous = None if whole else self.previous
        transactions = self.read_log(connection)
        entries = [entry for transaction in transactions for entry in transaction]
        seen = {entry.stored.position for entry in entries}
        manifest = take_snapshot(
            connection,
            point=SnapshotPoint(
                self.log.store.read_log_id(connection),
                1,
                len(entries),
                sha256(repr(sorted(seen)).encode()).digest(),
                max(seen, default=0),
                1_700_000_000_000_000,
            ),
            mint=len(self.objects) + 1,
            schema=self.log.schema,
            types=self.log.store.list_types(connection),
            sealer=self.sealer,
            put=self.put,
            previous=previous,
            changes=[t for t in transactions if t[0].stored.position not in self.seen],
        )
        if manifest is not None:
            data = encode_manifest(manifest)
            self.previous = decode_manifest(data, what="the manifest")
            self.seen = seen
        return manifest

    def read_log(self, connection: Connection) -> list[list[OpenedEntry]]:
        reader = self.log.open_reader(connection)
        return list(reader.iterate_transactions(reader.source.read_snapshot()))

    def read_back(self, connection: Connection, manifest: SnapshotManifest) -> StoredSnapshot:
        return StoredSnapshot(
            manifest,
            get=self.objects.__getitem__,
            sealer=self.sealer,
            key_checks=self.log.store.list_keys(connection),
            types=self.log.store.list_types(connection),
        )

    def check(self, manifest: SnapshotManifest, connection: Connection | None = None) -> None:
        """Raise `AssertionError` unless the snapshot gives the rows and tickets that there are."""
        if connection is None:
            with self.open() as opened:
                self.check(manifest, opened)
            return
        snapshot = self.read_back(connection, manifest)
        with pin_settings(connection, more=SETTINGS):
            present = list_present(connection, self.log.store.list_types(connection))
            plans = read_plans(connection, present)
            revisions = {shape.type_name: shape.revision for shape in present}
            driver = Driver(connection)
            loaders = make_scratch(driver, plans)
            load_snapshot(driver, loaders, snapshot=snapshot)
            rows = {table.name: table.dataset.rows for table in snapshot.tables()}
            assert rows == {(one.plan.live.schema, one.plan.live.name): one.rows for one in loaders}
            for loader in loaders:
                live = describe_table(connection, loader.plan, revisions=revisions).relation
                assert dump(connection, loader, loader.target) == dump(connection, loader, live)
        tickets = connection.exec_driver_sql(
            "SELECT aggregate_name, version, head_hash "
            f"FROM {quote(self.log.schema)}.oplog_ticket WHERE version > 0"
        )
        found = sorted(snapshot.tickets())
        assert found == sorted(tuple(row) for row in tickets)
        assert len(found) == manifest.tickets.rows


def dump(connection: Connection, loader: TableLoader, relation: str) -> list[str]:
    """Rows as text, with computed columns."""
    columns = list_quoted(loader.plan.compared, prefix="t.")
    rows = connection.execute(
        sa.text(f"SELECT ROW({columns})::text FROM {relation} t ORDER BY 1".replace(":", r"\:"))
    )
    return list(rows.scalars())
