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
from oplog.reading.reader import OpenedRecord
from oplog.recovery.row_loader import load_snapshot
from oplog.replay.loader import TableLoader
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.table_plan import list_quoted
from oplog.snapshot.base import HeadRow
from oplog.snapshot.stored import StoredSnapshot
from oplog.snapshot.table_data import describe_table, plan_present
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
        """Positions of the records in the last snapshot."""

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
        records = self.read_log(connection)
        seen = {record.stored.position for record in records}
        manifest = take_snapshot(
            connection,
            point=SnapshotPoint(
                self.log.store.read_log_id(connection),
                1,
                len(records),
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
            changes=[one for one in records if one.stored.position not in self.seen],
        )
        if manifest is not None:
            data = encode_manifest(manifest)
            self.previous = decode_manifest(data, what="the manifest")
            self.seen = seen
        return manifest

    def read_log(self, connection: Connection) -> list[OpenedRecord]:
        reader = self.log.open_reader(connection)
        return list(reader.iterate_records(reader.source.read_snapshot()))

    def read_back(self, connection: Connection, manifest: SnapshotManifest) -> StoredSnapshot:
        return StoredSnapshot(
            manifest,
            get=self.objects.__getitem__,
            sealer=self.sealer,
            key_checks=self.log.store.list_keys(connection),
            types=self.log.store.list_types(connection),
        )

    def check(self, manifest: SnapshotManifest, connection: Connection | None = None) -> None:
        """Raise `AssertionError` unless the snapshot gives the rows and heads that there are."""
        if connection is None:
            with self.open() as opened:
                self.check(manifest, opened)
            return
        snapshot = self.read_back(connection, manifest)
        with pin_settings(connection, more=SETTINGS):
            types = self.log.store.list_types(connection)
            plans = plan_present(connection, types, schema=self.log.schema)
            driver = Driver(connection)
            loaders = make_scratch(driver, plans)
            load_snapshot(driver, loaders, snapshot=snapshot)
            rows = {table.name: table.dataset.rows for table in snapshot.tables()}
            assert rows == {(one.plan.live.schema, one.plan.live.name): one.rows for one in loaders}
            for loader in loaders:
                live = describe_table(connection, loader.plan).relation
                assert dump(connection, loader, loader.target) == dump(connection, loader, live)
        found = sorted(snapshot.heads())
        assert found == list_heads(connection, self.log.schema)
        assert len(found) == manifest.heads.rows


def list_heads(connection: Connection, schema: str = "oplog") -> list[HeadRow]:
    """The newest record of each aggregate, found without what the product finds it by."""
    s = quote(schema).replace("%", "%%")
    rows = connection.exec_driver_sql(
        "SELECT a.name, coalesce(a.version, 1), r.record_hash "
        f"FROM {s}.oplog_record r CROSS JOIN LATERAL ROWS FROM "
        "(unnest(r.aggregates), unnest(r.versions)) AS a(name, version) "
        "UNION ALL SELECT aggregate_name, head_version, head_hash "
        f"FROM {s}.oplog_ticket WHERE head_version IS NOT NULL ORDER BY 1, 2"
    )
    heads = {name: HeadRow(name, version, bytes(head)) for name, version, head in rows}
    return sorted(heads.values())


def dump(connection: Connection, loader: TableLoader, relation: str) -> list[str]:
    """Rows as text, with computed columns."""
    columns = list_quoted(loader.plan.compared, prefix="t.")
    rows = connection.execute(
        sa.text(f"SELECT ROW({columns})::text FROM {relation} t ORDER BY 1".replace(":", r"\:"))
    )
    return list(rows.scalars())
