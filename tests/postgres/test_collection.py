"""Garbage collection: nothing that is needed goes, and what is not needed does."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive, CollectionReport, Retention
from oplog.archive.format.path import COLLECTED, HEAD, INDEX, LOG, PIN, SNAPSHOT, name_head
from oplog.archive.objectstore.memory import Call, MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.step import Step
from oplog.errors import ConfigurationError, StorageConfigError, StoreUnavailableError
from oplog.upkeep.check import check_archive
from oplog.upkeep.garbage import collect_archive, collect_garbage
from tests.faulty_store import KILL_AFTER, KILL_BEFORE, LOSE_ANSWER, Fault, FaultyStore, Killed
from tests.postgres.archived import dump_all, open_memory, publish, reopen, restore_into
from tests.postgres.keeping import add_task, copy, fill, harmful, rebuild
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres

LATER = datetime.now(UTC) + timedelta(days=3650)
"""When every head but the newest has long been followed by another."""


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def archive(bench: Bench) -> Archive:
    archive = open_memory()
    fill(bench, archive)
    bench.log.unpin(archive, "first")
    for _ in range(3):
        bench.write(add_task)
        publish(bench.log, bench.engine, archive)
    return archive


def ignore(step: Step, path: str, size: int) -> None:
    del step, path, size


def collect(
    bench: Bench, archive: Archive, *, now: datetime = LATER, dry_run: bool = False, **keep: object
) -> CollectionReport:
    return collect_archive(
        bench.log.make_exporter(archive),
        bench.engine,
        Retention(**keep),  # type: ignore[arg-type]
        dry_run=dry_run,
        emit=ignore,
        clock=lambda: now,
    )


def numbers(archive: Archive) -> list[int]:
    return sorted(int(path.split("/")[1], 16) for path in copy(archive) if path.startswith(HEAD))


def check_sound(bench: Bench, archive: Archive) -> None:
    assert harmful(bench.log.check(reopen(archive), bench.engine)) == []


def test_only_old_heads_go_where_all_is_kept(bench: Bench, archive: Archive) -> None:
    before = copy(archive)
    newest = archive.read_head().number
    report = collect(bench, archive)
    assert set(report.paths) == {name_head(number) for number in range(1, newest - 1)}
    assert numbers(archive) == [newest - 1, newest]
    gone = set(before) - set(copy(archive))
    assert gone == set(report.paths)
    assert COLLECTED in copy(archive)
    check_sound(bench, archive)
    assert collect(bench, archive).paths == ()


def test_heads_in_their_grace_stay(bench: Bench, archive: Archive) -> None:
    # This store counts time in writes, from long ago.
    head = archive.read_head()
    info = archive.store.head(name_head(head.number - 2))
    assert info is not None
    report = collect(bench, archive, now=info.modified + timedelta(days=7))
    assert numbers(archive)[0] == head.number - 3 + 1
    assert report.head == head.number
    check_sound(bench, archive)


def test_a_dry_run_deletes_nothing_and_says_the_same(bench: Bench, archive: Archive) -> None:
    before = copy(archive)
    dry = collect(bench, archive, dry_run=True)
    assert copy(archive) == before
    assert dry.dry_run
    assert dry.paths == collect(bench, archive).paths


def test_snapshots_and_log_go_when_they_are_not_kept(
    bench: Bench, archive: Archive, spare_engine: Engine
) -> None:
    before = copy(archive)
    dry = collect(bench, archive, keep_snapshots=1, keep_log=False, dry_run=True)
    report = collect(bench, archive, keep_snapshots=1, keep_log=False)
    assert (dry.snapshots, dry.first_sequence) == (report.snapshots, report.first_sequence)
    head = archive.read_head()
    assert len(head.snapshots) == 1
    assert 1 < head.first_sequence <= head.snapshots[0].sequence + 1
    # Whoever reads the head before still can; only the one after that lets go.
    bench.write(add_task)
    publish(bench.log, bench.engine, archive)
    bench.write(add_task)
    publish(bench.log, bench.engine, archive)
    collect(bench, archive)
    gone = {path.split("/")[0] for path in set(before) - set(copy(archive))}
    assert {LOG, SNAPSHOT, HEAD} <= gone
    check_sound(bench, archive)
    assert reopen(archive).read_head().first_sequence == head.first_sequence
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    assert dump_all(target)[0] == dump_all(bench)[0]


def test_a_pin_keeps_what_it_had(bench: Bench, archive: Archive) -> None:
    pin = bench.log.pin(archive, "release-1")
    before = copy(archive)
    for _ in range(3):
        collect(bench, archive, keep_snapshots=1, keep_log=False)
        bench.write(add_task)
        publish(bench.log, bench.engine, archive)
    after = copy(archive)
    lost = {path for path in set(before) - set(after) if not path.startswith(HEAD)}
    assert lost == set()
    assert bench.log.list_pins(archive) == (pin,)
    check_sound(bench, archive)
    assert bench.log.unpin(archive, "release-1") == (pin,)
    assert collect(bench, archive).paths
    assert {path for path in set(before) - set(copy(archive)) if path.startswith(LOG)}
    check_sound(bench, archive)
    with pytest.raises(ConfigurationError):
        bench.log.unpin(archive, "release-1")


def test_a_pin_of_what_is_gone_stops_nothing(bench: Bench, archive: Archive) -> None:
    bench.log.pin(archive, "broken")
    pinned = archive.read_head()
    archive.store.delete(pinned.snapshots[0].path)
    report = collect(bench, archive)
    assert any(path.startswith(HEAD) for path in report.paths)
    assert any(pinned.snapshots[0].path in note for note in report.notes)


def test_what_a_dead_writer_left_goes(bench: Bench, archive: Archive) -> None:
    store = archive.store
    blob = f"BLOB/{1:016x}-{'0' * 64}"
    young = f"BLOB/{archive.read_head().horizon:016x}-{'0' * 64}"
    probe = f"PROBE/{'0' * 32}"
    for path in (blob, young, probe):
        store.put(path, b"?")
    report = collect(bench, archive)
    assert {blob, probe} <= set(report.paths)
    assert store.head(young) is not None
    check_sound(bench, archive)


def test_a_zombies_head_in_the_hole_does_no_harm(bench: Bench, archive: Archive) -> None:
    objects = copy(archive)
    collect(bench, archive)
    for number in (1, 2, 4):
        path = name_head(number)
        archive.store.put(path, objects[path])
        newest = archive.read_head()
        assert reopen(archive).read_head() == newest
        check_sound(bench, archive)
        assert path in collect(bench, archive).paths
        assert archive.store.head(path) is None


def test_without_permission_the_report_says_so(bench: Bench, archive: Archive) -> None:
    def refuse(call: Call) -> None:
        if call.operation == "delete" and not call.done:
            raise StorageConfigError("denied", hint="ask")

    assert isinstance(archive.store, MemoryStore)
    archive.store.on_call = refuse
    report = collect(bench, archive)
    assert report.refused is not None
    assert "denied" in report.refused
    assert report.paths == ()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fault", [KILL_BEFORE, KILL_AFTER, LOSE_ANSWER])
def test_a_collection_that_dies_is_done_again(bench: Bench, archive: Archive, fault: Fault) -> None:
    collect(bench, archive, keep_snapshots=1, keep_log=False)
    for _ in range(2):
        bench.write(add_task)
        publish(bench.log, bench.engine, archive)
    before = copy(archive)
    counting = FaultyStore(rebuild(before).store)
    collect_on(counting)
    expected = copy(Archive(counting.inner, verdict=Verdict.ATOMIC))
    for call in counting.calls:
        if call.operation not in {"put", "delete", "list"}:
            continue
        store = FaultyStore(rebuild(before).store, {call.number: fault})
        with contextlib.suppress(Killed, StoreUnavailableError):
            collect_on(store)
        archive = Archive(store.inner, verdict=Verdict.ATOMIC)
        assert harmful(check_archive(archive)) == [], call
        collect_garbage(archive, emit=ignore, clock=lambda: LATER)
        assert copy(archive) == expected, call


def collect_on(store: FaultyStore) -> None:
    archive = Archive(store, verdict=Verdict.ATOMIC)
    collect_garbage(archive, emit=ignore, clock=lambda: LATER)


def test_workers_publish_while_a_collector_stalls(bench: Bench, archive: Archive) -> None:
    """At each of its steps in turn, everything else happens."""
    collect(bench, archive, keep_snapshots=1, keep_log=False)
    bench.write(add_task)
    publish(bench.log, bench.engine, archive)
    steps = 0

    def count(step: Step, path: str, size: int) -> None:
        nonlocal steps
        del step, path, size
        steps += 1

    collect_garbage(rebuild(copy(archive)), emit=count, clock=lambda: LATER)
    assert steps >= 10
    for stalled in range(0, steps, 3):
        seen = 0

        def interfere(step: Step, path: str, size: int, stalled: int = stalled) -> None:
            nonlocal seen
            del step, path, size
            seen += 1
            if seen - 1 == stalled:
                other = reopen(archive)
                bench.write(add_task)
                publish(bench.log, bench.engine, other)
                bench.log.snapshot(bench.engine, other)
                bench.log.pin(other, f"at-{stalled}")
                collect(bench, other, keep_snapshots=2, keep_log=False)
                bench.write(add_task)
                publish(bench.log, bench.engine, other)

        collect_garbage(reopen(archive), emit=interfere, clock=lambda: LATER)
        assert harmful(check_archive(reopen(archive))) == [], stalled
    check_sound(bench, archive)
    assert {path.split("/")[0] for path in copy(archive)} >= {LOG, INDEX, SNAPSHOT, PIN}
