"""Checking an archive: whatever is wrong is found, and named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive, ArchiveProblem
from oplog.archive.format.path import HEAD, INDEX, LATEST, LOG, PIN, SNAPSHOT, name_head
from oplog.upkeep.check import check_archive
from oplog.upkeep.garbage import collect_garbage
from oplog.upkeep.tree_walk import walk_tree
from tests.postgres.archived import open_memory, publish, reopen, restore_into
from tests.postgres.keeping import (
    add_task,
    copy,
    fill,
    harmful,
    named,
    read_row,
    rebuild,
    write_row,
)
from tests.postgres.replay_models import HISTORY, Bench, make_bench
from tests.postgres.restored import make_target
from tests.sampling import Sample

pytestmark = pytest.mark.postgres

DRAWN = 12
"""Objects of an archive that are damaged in turn."""


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def objects(bench: Bench) -> dict[str, bytes]:
    archive = open_memory()
    fill(bench, archive)
    found = copy(archive)
    kinds = {path.split("/")[0] for path in found}
    assert kinds == {HEAD, INDEX, "BLOB", LATEST, LOG, PIN, SNAPSHOT}
    return found


def is_old(path: str, objects: dict[str, bytes]) -> bool:
    """Whether this is a head that readers do without."""
    heads = sorted(one for one in objects if one.startswith(HEAD))
    return path in heads[:-2]


def test_a_sound_archive_has_no_problem(bench: Bench, objects: dict[str, bytes]) -> None:
    archive = rebuild(objects)
    report = check_archive(archive)
    assert report.problems == ()
    assert report.ok
    with bench.engine.connect() as connection:
        entries = list(bench.log.read(connection))
    assert report.entries == len(entries)
    assert report.sequence == len({entry.position for entry in entries})
    assert report.objects >= len(objects) - 1
    assert bench.log.check(archive, bench.engine).problems == ()
    assert check_archive(archive, sample=0.2).problems == ()


@pytest.mark.sampled
def test_every_object_that_is_missing_is_named(objects: dict[str, bytes], sample: Sample) -> None:
    for path in sample(sorted(objects), DRAWN):
        archive = rebuild({one: data for one, data in objects.items() if one != path})
        report = check_archive(archive)
        newest = max(one for one in objects if one.startswith(HEAD))
        if path.startswith(PIN) or path == newest:
            # Nothing says that there was one.
            continue
        assert path in named(report), path
        # Without head 1 and without the mark for it, somebody could found the archive again.
        old = is_old(path, objects) and path != name_head(1)
        assert report.ok == (path == LATEST or old), path


@pytest.mark.sampled
def test_every_altered_object_is_named(objects: dict[str, bytes], sample: Sample) -> None:
    for path, data in sample(sorted(objects.items()), DRAWN):
        for place in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            altered = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            report = check_archive(rebuild({**objects, path: altered}))
            assert path in named(report), (path, place)
            assert report.ok == (path == LATEST or is_old(path, objects)), (path, place)
        for other in (b"", data[:-1], data + b"\0"):
            report = check_archive(rebuild({**objects, path: other}))
            assert path in named(report), path


def test_all_damage_is_named_at_once(objects: dict[str, bytes]) -> None:
    damaged = [path for path in objects if path.split("/")[0] in {LOG, SNAPSHOT, "BLOB"}]
    report = check_archive(rebuild({**objects, **dict.fromkeys(damaged, b"?")}))
    shown = {path for path in damaged if not path.startswith("BLOB")}
    assert shown <= named(report)
    report = check_archive(rebuild({**objects, **{p: b"?" for p in damaged if p[0] == "B"}}))
    assert {p for p in damaged if p[0] == "B"} <= named(report)


def test_swapped_objects_are_named(objects: dict[str, bytes]) -> None:
    for kind in (HEAD, INDEX, LOG, SNAPSHOT, "BLOB"):
        paths = sorted(path for path in objects if path.startswith(f"{kind}/"))
        for one, two in zip(paths[-2::-1], paths[::-1], strict=False):
            swapped = {**objects, one: objects[two], two: objects[one]}
            assert {one, two} <= named(check_archive(rebuild(swapped))), (one, two)


def test_segments_below_a_missing_node_are_still_looked_at(objects: dict[str, bytes]) -> None:
    node = min(path for path in objects if path.startswith(f"{INDEX}/"))
    segment = min(path for path in objects if path.startswith(f"{LOG}/"))
    left = {path: data for path, data in objects.items() if path != node}
    found = named(check_archive(rebuild({**left, segment: b"?"})))
    assert {node, segment} <= found


def test_a_sample_sees_what_is_missing(objects: dict[str, bytes]) -> None:
    for path in objects:
        if path.split("/")[0] in {LOG, "BLOB", INDEX, SNAPSHOT}:
            left = {one: data for one, data in objects.items() if one != path}
            assert path in named(check_archive(rebuild(left), sample=0.0)), path


def test_an_archive_behind_its_database_is_found(bench: Bench, objects: dict[str, bytes]) -> None:
    newest = max(path for path in objects if path.startswith(HEAD))
    archive = rebuild({path: data for path, data in objects.items() if path != newest})
    (problem,) = harmful(check_archive(archive))
    assert (problem.path, problem.what) == (LATEST, "behind")
    archive.store.delete(LATEST)
    assert harmful(check_archive(reopen(archive))) == []
    report = bench.log.check(reopen(archive), bench.engine)
    assert {problem.what for problem in harmful(report)} >= {"behind"}


def test_records_that_the_database_lost_are_found(bench: Bench, objects: dict[str, bytes]) -> None:
    archive = rebuild(objects)
    last = bench.last_position()
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"DELETE FROM oplog.oplog_record WHERE position = {last}",
    )
    report = bench.log.check(archive, bench.engine)
    assert [problem.what for problem in harmful(report)] == ["diverged"]
    assert harmful(report)[0].sequence == report.sequence


def test_records_that_the_archive_lacks_are_found(bench: Bench) -> None:
    archive = open_memory()
    fill(bench, archive, snapshots=False)
    bench.write(add_task)
    # The database believes that this was published too.
    bench.tamper(
        "UPDATE oplog.oplog_archive SET cursor = jsonb_set(cursor, '{snapshot}', "
        "to_jsonb(pg_current_snapshot()::text))"
    )
    (problem,) = harmful(bench.log.check(archive, bench.engine))
    assert (problem.what, problem.path) == ("diverged", "")
    assert str(bench.last_position()) in problem.message


def test_what_a_fork_left_is_checked_and_kept(bench: Bench, spare_engine: Engine) -> None:
    archive = open_memory()
    ends = []
    for work in HISTORY:
        bench.write(work)
        ends.append(bench.last_position())
    publish(bench.log, bench.engine, archive, page_entries=4, segment_bytes=600)
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive), through=ends[len(ends) // 2])
    target.write(add_task)
    target.log.sync(target.engine, reopen(archive), fork="fork")
    head = archive.read_head()
    assert head.fork is not None
    assert target.log.check(reopen(archive), target.engine).problems == ()
    collect_garbage(
        reopen(archive),
        emit=lambda *_: None,
        clock=lambda: datetime.now(UTC) + timedelta(days=3650),
    )
    assert target.log.check(reopen(archive), target.engine).problems == ()
    objects, row = copy(archive), read_row(target)
    for path in [path for path in objects if path.startswith((LOG, INDEX))]:
        found = check_archive(rebuild({**objects, path: objects[path][:-1]}))
        # What came from a restore has another transaction id: other bytes, and so a new head.
        write_row(target, row)
        report = target.log.resync(target.engine, rebuild({**objects, path: b""}))
        needed = path in list_reachable(reopen(archive))
        assert (path in named(found)) == needed, path
        lost = path in {item.path for row in head.fork.levels for item in row}
        assert report.ok == (not lost or not needed), path


def list_reachable(archive: Archive) -> set[str]:
    head = archive.read_head()
    found: set[str] = set()
    for levels in (head.levels, *(branch.levels for branch in head.branches)):
        for place in walk_tree(
            archive, levels, note=fail, on_node=lambda item, _: found.add(item.path)
        ):
            found.add(place.item.path)
    return found


def fail(problem: ArchiveProblem) -> None:
    raise AssertionError(problem)
