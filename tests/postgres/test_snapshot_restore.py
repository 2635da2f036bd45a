"""A snapshot and the log after it bring back what the whole log does."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from oplog import Keyring
from oplog.archive.format.manifest import SnapshotManifest, decode_manifest, encode_manifest
from oplog.recovery import RestoreReport, restore_log
from oplog.snapshot.stored import StoredSnapshot
from oplog.snapshot.take import SnapshotPoint, take_snapshot
from oplog.snapshot.touched_rows import iterate_changes
from oplog.sync.publisher import Publisher
from tests.kept import open_log
from tests.postgres.archived import open_memory
from tests.postgres.replay_models import (
    HISTORY,
    Bench,
    Car,
    Node,
    Owner,
    check_law,
    dump_tables,
    make_bench,
)
from tests.postgres.restored import dump_log, keep, make_target, restore
from tests.shelf import Shelf

pytestmark = pytest.mark.postgres


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture
def bench(engine: Engine, keyring: Keyring) -> Bench:
    return make_bench(engine, keyring)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


@pytest.fixture
def shelf(bench: Bench, keyring: Keyring) -> Shelf:
    return Shelf(bench.engine, bench.log, keyring)


def restore_with(
    shelf: Shelf, target: Bench, *, forget: bool = False, **options: int
) -> RestoreReport:
    """Restore from the last snapshot on; `forget` the log before it."""
    manifest = shelf.previous
    assert manifest is not None
    kept = keep(Bench(shelf.engine, shelf.log, target.sessions))
    if forget:
        kept.first_sequence = manifest.sequence + 1
    with shelf.open() as connection:
        snapshot: StoredSnapshot = shelf.read_back(connection, manifest)
    return restore(target, kept, snapshot=snapshot, **options)


def write_with_snapshots(bench: Bench, shelf: Shelf, *, every: int, until: int) -> None:
    for number, work in enumerate(HISTORY, 1):
        bench.write(work)
        if number <= until and number % every == 0:
            shelf.take()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("every", "until"), [(1, 5), (1, 12), (3, 15), (19, 19)])
def test_the_log_goes_on_from_the_snapshot(
    bench: Bench,
    target: Bench,
    shelf: Shelf,
    monkeypatch: pytest.MonkeyPatch,
    *,
    every: int,
    until: int,
) -> None:
    monkeypatch.setattr("oplog.snapshot.take.is_merge_due", lambda *_, **__: False)
    write_with_snapshots(bench, shelf, every=every, until=until)
    report = restore_with(shelf, target)
    with bench.engine.connect() as source, target.engine.connect() as copy:
        assert dump_tables(copy) == dump_tables(source)
        assert dump_log(copy) == dump_log(source)
        assert report.digest == bench.log.replay(source).digest
    check_law(target)


def test_a_snapshot_stands_for_the_log_before_it(bench: Bench, target: Bench, shelf: Shelf) -> None:
    write_with_snapshots(bench, shelf, every=2, until=10)
    manifest = shelf.previous
    assert isinstance(manifest, SnapshotManifest)
    report = restore_with(shelf, target, forget=True)
    assert report.entries < 30
    with bench.engine.connect() as source, target.engine.connect() as copy:
        assert dump_tables(copy) == dump_tables(source)
        # What an aggregate goes on from; how it came there is told by records that are not here.
        assert dump_log(copy)["head"] == dump_log(source)["head"]
    # The application goes on: keys are new, versions continue.
    target.write(lambda s: s.add_all([Owner(name="new"), Car(id=900, maker="m", doors=1)]))
    target.write(lambda s: setattr(s.get_one(Node, 1), "label", "later"))


def test_a_snapshot_of_what_came_from_a_snapshot(
    bench: Bench, target: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads are of records that are here, and of some that never were."""
    monkeypatch.setattr("oplog.snapshot.take.is_merge_due", lambda *_, **__: False)
    write_with_snapshots(bench, shelf, every=2, until=10)
    restore_with(shelf, target, forget=True)
    second = Shelf(target.engine, target.log, bench.log.keyring)
    first = second.take()
    assert first is not None
    second.check(first)
    target.write(lambda s: s.add_all([Owner(name="new"), Car(id=900, maker="m", doors=1)]))
    target.write(lambda s: setattr(s.get_one(Node, 1), "label", "later"))
    with target.engine.connect() as connection:
        kept = connection.exec_driver_sql(
            "SELECT count(*) FROM oplog.oplog_ticket WHERE head_version IS NOT NULL"
        ).scalar_one()
    assert kept > 0
    layered = second.take()
    assert layered is not None
    assert len(layered.heads.layers) == 1
    assert layered.heads.rows == first.heads.rows + 3
    second.check(layered)


def test_sequences_go_on_from_where_they_were(bench: Bench, target: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Owner(name="a"), Owner(name="b")]))
    bench.tamper("SELECT setval(pg_get_serial_sequence('owner', 'id'), 500)")
    shelf.take()
    restore_with(shelf, target)
    target.write(lambda s: s.add(Owner(name="c")))
    with target.engine.connect() as connection:
        ids = connection.exec_driver_sql("SELECT id FROM owner ORDER BY id").scalars()
        assert list(ids) == [1, 2, 501]


def test_through_a_real_archive(bench: Bench, target: Bench, shelf: Shelf) -> None:
    archive = open_memory()
    previous: SnapshotManifest | None = None
    publisher = Publisher(archive, writer="test", epoch=99, emit=lambda *_: None)
    for number, work in enumerate(HISTORY[:15]):
        bench.write(work)
        if number % 4:
            continue
        bench.log.sync(bench.engine, archive)
        source = bench.log.open_source(archive)
        head = source.head
        after = 0 if previous is None else previous.sequence
        with shelf.open() as connection:
            previous = take_snapshot(
                connection,
                point=SnapshotPoint(
                    head.log_id,
                    head.generation,
                    head.sequence,
                    head.chain,
                    head.position,
                    head.recorded_at,
                ),
                mint=publisher.horizon,
                schema=bench.log.schema,
                types=source.list_types(),
                sealer=shelf.sealer,
                put=publisher.put_blob,
                previous=previous,
                changes=iterate_changes(
                    bench.log.open_reader(connection, source=source),
                    source,
                    after=after,
                    through=head.sequence,
                ),
            )
        assert previous is not None
    assert previous is not None
    for work in HISTORY[15:]:
        bench.write(work)
    bench.log.sync(bench.engine, archive)
    source = bench.log.open_source(archive)
    with target.engine.connect() as connection:
        snapshot = StoredSnapshot(
            decode_manifest(encode_manifest(previous), what="the manifest"),
            get=archive.read_content,
            sealer=shelf.sealer,
            key_checks=source.list_keys(),
            types=source.list_types(),
        )
        connection.rollback()
        restore_log(
            connection,
            source,
            log=open_log(target.log, source),
            schema="oplog",
            snapshot=snapshot,
        )
    with bench.engine.connect() as live, target.engine.connect() as copy:
        assert dump_tables(copy) == dump_tables(live)
        assert dump_log(copy) == dump_log(live)
