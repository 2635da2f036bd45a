"""A restore from an archive that lost objects of its snapshots: the best that is left is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.archive.format.head import SnapshotRef
from oplog.errors import ArchiveError, StoreUnavailableError
from oplog.upkeep.retention import Retention
from tests.faulty_store import LOSE_REQUEST, Call, Fault, FaultyStore
from tests.postgres.archived import dump_all, open_memory, publish, reopen, restore_into
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Bench, make_bench, write_history
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


@pytest.fixture
def archive(bench: Bench) -> Archive:
    """Two snapshots, the later one with a base of its own, and records after each."""
    archive = open_memory()
    write_history(bench)
    bench.log.snapshot(bench.engine, archive)
    bench.write(add_task)
    publish(bench.log, bench.engine, archive)
    bench.log.snapshot(bench.engine, archive, full=True)
    bench.write(add_task)
    publish(bench.log, bench.engine, archive)
    return archive


def list_chunks(archive: Archive, ref: SnapshotRef) -> list[str]:
    """Those of this snapshot alone."""
    others = {
        chunk.path
        for other in archive.read_head().snapshots
        if other != ref
        for chunk in archive.read_manifest(other).iterate_chunks()
    }
    chunks = archive.read_manifest(ref).iterate_chunks()
    return [chunk.path for chunk in chunks if chunk.path not in others]


def delete(archive: Archive, path: str) -> None:
    archive.store.delete(path)


def damage(archive: Archive, path: str) -> None:
    data = archive.read_content(path)
    archive.store.put(path, data[:-1] + bytes([data[-1] ^ 1]))


Harm = Callable[[Archive, str], None]
harms = pytest.mark.parametrize("harm", [delete, damage])


@harms
@pytest.mark.parametrize("what", ["manifest", "first chunk", "last chunk"])
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "joined"])
def test_an_older_snapshot_takes_the_place_of_a_damaged_one(
    bench: Bench, target: Bench, archive: Archive, harm: Harm, what: str, *, joined: bool
) -> None:
    older, newer = archive.read_head().snapshots
    chunks = list_chunks(archive, newer)
    path = {"manifest": newer.path, "first chunk": chunks[0], "last chunk": chunks[-1]}[what]
    harm(archive, path)
    if joined:
        engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
        with engine.connect() as connection, connection.begin():
            report = target.log.restore(reopen(archive), connection)
    else:
        report = restore_into(target, reopen(archive))
    assert report.snapshot == older.sequence
    (why,) = report.passed_over
    assert why.startswith(f"the snapshot at sequence {newer.sequence}: ")
    assert path in why
    assert dump_all(target) == dump_all(bench)


def test_the_log_alone_takes_the_place_of_all_snapshots(
    bench: Bench, target: Bench, archive: Archive
) -> None:
    older, newer = archive.read_head().snapshots
    for ref in (older, newer):
        delete(archive, list_chunks(archive, ref)[-1])
    report = restore_into(target, reopen(archive))
    assert (report.snapshot, len(report.passed_over)) == (0, 2)
    assert dump_all(target) == dump_all(bench)


def test_an_earlier_position_does_not_need_a_later_snapshot(
    bench: Bench, target: Bench, archive: Archive
) -> None:
    older, newer = archive.read_head().snapshots
    delete(archive, newer.path)
    report = restore_into(target, reopen(archive), through=newer.position - 1)
    assert (report.snapshot, report.passed_over) == (older.sequence, ())
    assert report.sequence == newer.sequence - 1


def test_a_whole_snapshot_is_used_and_named(target: Bench, archive: Archive) -> None:
    report = restore_into(target, reopen(archive))
    newest = archive.read_head().snapshots[-1]
    assert (report.snapshot, report.passed_over) == (newest.sequence, ())


def test_where_the_log_was_given_up_a_damaged_snapshot_is_an_error(
    bench: Bench, target: Bench, archive: Archive
) -> None:
    """Nothing else has the rows, and nothing is written."""
    retention = Retention(keep_snapshots=1, keep_log=False)
    bench.log.collect(bench.engine, archive, retention=retention, grace_seconds=0.0)
    head = archive.read_head()
    assert head.first_sequence > 1
    path = list_chunks(archive, head.snapshots[-1])[0]
    delete(archive, path)
    with pytest.raises(ArchiveError, match=path):
        restore_into(target, reopen(archive))


def test_a_store_that_does_not_answer_is_no_damage(
    bench: Bench, target: Bench, archive: Archive
) -> None:
    """It may have everything: nothing older is taken instead."""
    newest = archive.read_head().snapshots[-1]

    def fail(call: Call) -> Fault | None:
        return LOSE_REQUEST if call.path == newest.path else None

    with pytest.raises(StoreUnavailableError):
        restore_into(target, open_memory(FaultyStore(archive.store, fail)))
    assert restore_into(target, reopen(archive)).snapshot == newest.sequence
    assert dump_all(target) == dump_all(bench)


@harms
def test_a_database_that_begins_to_follow_passes_over_it_too(
    bench: Bench, target: Bench, archive: Archive, harm: Harm
) -> None:
    harm(archive, list_chunks(archive, archive.read_head().snapshots[-1])[0])
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        target.log.follow(reopen(archive), connection)
    assert dump_all(target)[0] == dump_all(bench)[0]
