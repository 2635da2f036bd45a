"""Repairing an archive from its database: what can be made again is, byte by byte."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import zstandard
from sqlalchemy.engine import Engine

from oplog import Archive, ArchiveProblem
from oplog.archive.format import container
from oplog.archive.format.path import HEAD, INDEX, LATEST, LOG, PIN, SNAPSHOT, name_head
from oplog.archive.objectstore.probe import Verdict
from oplog.errors import StoreUnavailableError
from oplog.upkeep.check import check_archive
from tests.faulty_store import KILL_AFTER, KILL_BEFORE, LOSE_ANSWER, Fault, FaultyStore, Killed
from tests.postgres.archived import dump_all, open_memory, publish, reopen, restore_into
from tests.postgres.keeping import add_task, copy, fill, harmful, read_row, rebuild, write_row
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target
from tests.sampling import Sample

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def objects(bench: Bench) -> dict[str, bytes]:
    archive = open_memory()
    fill(bench, archive)
    return copy(archive)


def is_repairable(path: str, objects: dict[str, bytes]) -> bool:
    heads = sorted(one for one in objects if one.startswith(HEAD))
    return not path.startswith(PIN) and path not in heads[:-1]


def iterate_damage(objects: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for path, data in objects.items():
        if is_repairable(path, objects):
            if not path.startswith(HEAD):
                yield path, {one: kept for one, kept in objects.items() if one != path}
            yield path, {**objects, path: data[:-1] + bytes([data[-1] ^ 1])}


def test_a_sound_archive_is_left_alone(bench: Bench, objects: dict[str, bytes]) -> None:
    archive = rebuild(objects)
    report = bench.log.resync(bench.engine, archive)
    assert (report.found, report.repaired, report.left, report.head) == ((), (), (), None)
    assert copy(archive) == objects


@pytest.mark.sampled
def test_every_object_is_repaired(bench: Bench, objects: dict[str, bytes], sample: Sample) -> None:
    row = read_row(bench)
    for path, damaged in sample(list(iterate_damage(objects)), 10):
        write_row(bench, row)
        archive = rebuild(damaged)
        report = bench.log.resync(bench.engine, archive)
        if path.startswith((SNAPSHOT, "BLOB")) and path not in report.repaired:
            # Rows of another time are not in the database any more: the pin keeps what is left.
            assert report.dropped, path
            assert not report.ok
            bench.log.unpin(archive, "first")
            assert bench.log.check(reopen(archive), bench.engine).ok
            continue
        assert path in report.repaired, path
        assert report.ok, (path, report.left)
        assert copy(archive) == objects, path
        assert check_archive(reopen(archive)).problems == ()


def test_a_dry_run_writes_nothing(bench: Bench, objects: dict[str, bytes]) -> None:
    path = min(one for one in objects if one.startswith(LOG))
    archive = rebuild({**objects, path: b"?"})
    before = copy(archive)
    report = bench.log.resync(bench.engine, archive, dry_run=True)
    assert report.repaired == (path,)
    assert report.ok
    assert copy(archive) == before


@pytest.mark.parametrize("kind", [LOG, INDEX])
def test_all_objects_of_a_kind_come_back(
    bench: Bench, objects: dict[str, bytes], kind: str
) -> None:
    left = {one: data for one, data in objects.items() if not one.startswith((kind, LATEST))}
    archive = rebuild(left)
    report = bench.log.resync(bench.engine, archive)
    assert report.ok, report.left
    assert copy(archive) == objects


def test_unpublished_records_do_not_get_into_old_segments(
    bench: Bench, objects: dict[str, bytes]
) -> None:
    bench.write(add_task)
    paths = sorted(one for one in objects if one.startswith(LOG))[-3:]
    archive = rebuild({**objects, **dict.fromkeys(paths, b"")})
    assert bench.log.resync(bench.engine, archive).ok
    assert copy(archive) == objects


def test_other_bytes_make_another_segment(
    bench: Bench, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, spare_engine: Engine
) -> None:
    def compress(body: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(body)

    monkeypatch.setattr(container, "compress", compress)
    monkeypatch.setattr("oplog.archive.format.segment.compress", compress)
    paths = sorted(one for one in objects if one.startswith(LOG))
    archive = rebuild({**objects, paths[0]: b"", paths[-1]: b""})
    bench.log.unpin(archive, "first")
    report = bench.log.resync(bench.engine, archive)
    assert report.ok, report.left
    assert report.head is not None
    assert bench.log.check(reopen(archive), bench.engine).problems == ()
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    assert dump_all(target) == dump_all(bench)


def test_what_the_database_lost_stays_lost(bench: Bench, objects: dict[str, bytes]) -> None:
    last = bench.last_position()
    path = max(one for one in objects if one.startswith(LOG))
    archive = rebuild({**objects, path: b""})
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"DELETE FROM oplog.oplog_record WHERE position = {last}",
    )
    report = bench.log.resync(bench.engine, archive)
    assert not report.ok
    assert path in {problem.path for problem in report.left}
    assert report.repaired == ()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fault", [KILL_BEFORE, KILL_AFTER, LOSE_ANSWER])
def test_a_repair_that_dies_is_done_again(
    bench: Bench, objects: dict[str, bytes], fault: Fault
) -> None:
    damaged = sorted(one for one in objects if one.startswith((LOG, INDEX)))[::5]
    blob = [one for one in objects if one.startswith("BLOB")][-1]
    broken = {**objects, **dict.fromkeys((*damaged, blob), b"?")}
    broken = {path: data for path, data in broken.items() if not path.startswith(PIN)}
    row = read_row(bench)
    counting = FaultyStore(rebuild(broken).store)
    resync_on(bench, counting)
    writes = [
        call.number for call in counting.calls if call.operation in {"put", "create", "delete"}
    ]
    assert len(writes) > len(damaged)
    for number in writes:
        write_row(bench, row)
        store = FaultyStore(rebuild(broken).store, {number: fault})
        with contextlib.suppress(Killed, StoreUnavailableError):
            resync_on(bench, store)
        archive = Archive(store.inner, verdict=Verdict.ATOMIC)
        assert bench.log.resync(bench.engine, archive).ok, number
        assert harmful(bench.log.check(reopen(archive), bench.engine)) == []
        assert bench.log.resync(bench.engine, reopen(archive)).repaired == ()


def resync_on(bench: Bench, store: FaultyStore) -> None:
    bench.log.resync(bench.engine, Archive(store, verdict=Verdict.ATOMIC))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("place", [-1, -2])
@pytest.mark.parametrize("damage", [b"?", None])
def test_a_damaged_head_is_followed_by_a_sound_one(
    bench: Bench, objects: dict[str, bytes], place: int, damage: bytes | None, spare_engine: Engine
) -> None:
    path = sorted(one for one in objects if one.startswith(HEAD))[place]
    archive = rebuild({one: data for one, data in objects.items() if not one.startswith(PIN)})
    archive.store.delete(path)
    if damage is not None:
        archive.store.put(path, damage)
    before = archive.store.get(path, most=100)
    report = bench.log.resync(bench.engine, reopen(archive))
    if place == -1 and damage is None:
        # Nobody but the database knows that there was one: that is for its owner to look at.
        assert "behind" in {problem.what for problem in report.left}
        assert not report.ok
        return
    assert archive.store.get(path, most=100) == before
    assert path in named_by(report.found)
    assert report.head is not None
    bench.write(add_task)
    bench.log.sync(bench.engine, reopen(archive))
    bench.write(add_task)
    bench.log.sync(bench.engine, reopen(archive))
    assert bench.log.resync(bench.engine, reopen(archive)).ok
    assert harmful(bench.log.check(reopen(archive), bench.engine)) == []
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    assert dump_all(target) == dump_all(bench)


def test_a_damaged_head_with_records_is_followed_by_one_that_has_them(bench: Bench) -> None:
    archive = open_memory()
    fill(bench, archive, snapshots=False)
    for _ in range(2):
        bench.write(add_task)
        publish(bench.log, bench.engine, archive)
    bench.log.unpin(archive, "first")
    head = archive.read_head()
    path = name_head(head.number)
    archive.store.put(path, b"?")
    report = bench.log.resync(bench.engine, reopen(archive))
    found = reopen(archive).read_head()
    assert (found.sequence, found.chain, found.levels) == (head.sequence, head.chain, head.levels)
    assert report.head == found.number == head.number + 1
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 0


def test_a_damaged_head_comes_back_from_its_pin(bench: Bench, objects: dict[str, bytes]) -> None:
    newest = max(one for one in objects if one.startswith(HEAD))
    archive = rebuild({**objects, newest: b"?"})
    assert bench.log.resync(bench.engine, archive).ok
    assert copy(archive) == objects


def test_a_head_that_nobody_knows_is_left(bench: Bench, objects: dict[str, bytes]) -> None:
    heads = sorted(one for one in objects if one.startswith(HEAD))
    left = {one: data for one, data in objects.items() if not one.startswith(PIN)}
    archive = rebuild({**left, heads[-1]: b"?", heads[-2]: b"?"})
    before = copy(archive)
    report = bench.log.resync(bench.engine, archive)
    assert not report.ok
    assert set(heads[-2:]) <= named_by(report.left)
    assert copy(archive) == before


def named_by(problems: tuple[ArchiveProblem, ...]) -> set[str]:
    return {problem.path for problem in problems}
