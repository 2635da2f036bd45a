"""Passes and snapshots beside writers that never pause, and beside workers that publish.

No clock is asked: what goes on beside is done in the events of what is watched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog import ArchiveStepDone, Event, Oplog
from oplog.archive.archive import Archive
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.step import Step
from oplog.backoff import Backoff
from oplog.errors import LeaseHeldError
from oplog.store.export import ExportStore, Lease
from oplog.sync import exact_view
from oplog.sync.exporter import Exporter
from oplog.upkeep.garbage import collect_garbage
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import add_customers, check_archive, open_fresh, open_workload

pytestmark = pytest.mark.postgres

ENOUGH = 60
"""Events after which a pass that chases the newest record would go on for ever."""


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


class Beside:
    """Does `work` at each event of one of `steps`, unless it is at it already."""

    def __init__(self, work: Callable[[Step], None], *steps: Step) -> None:
        self.seen = 0
        self._work = work
        self._steps = steps
        self._busy = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, ArchiveStepDone) or self._busy or event.step not in self._steps:
            return
        self.seen += 1
        assert self.seen < ENOUGH, "it does not end"
        self._busy = True
        try:
            self._work(Step(event.step))
        finally:
            self._busy = False


def watch(logged: LoggedDatabase, beside: Beside) -> Oplog:
    """The same log, seen by another process."""
    return Oplog(logged.log.catalog, keyring=logged.log.keyring, on_event=beside)


def write_always(logged: LoggedDatabase, first: int) -> Beside:
    """A writer that commits at every step, for as long as anybody publishes."""
    numbers = itertools.count(first)

    def write(step: Step) -> None:
        del step
        number = next(numbers)
        add_customers(logged, number, number)

    return Beside(write, Step.READ_NEWS, Step.PUT_SEGMENT, Step.CREATE_HEAD, Step.PUT_CHUNK)


def test_a_pass_ends_at_what_was_there_when_it_began(logged: LoggedDatabase) -> None:
    add_customers(logged, 1, 10)
    archive = open_fresh(MemoryStore("test"))
    log = watch(logged, writer := write_always(logged, 100))
    report = log.make_exporter(archive, page_entries=3).publish_all(logged.engine)
    # The first page's transaction begins before the writer does anything.
    assert (report.entries, report.sequence) == (10, 10)
    assert writer.seen >= 8
    assert logged.log.sync(logged.engine, archive).entries == writer.seen
    check_archive(archive.store, logged.engine)


def test_a_pass_after_an_interrupted_one_publishes_all_that_was_there(
    logged: LoggedDatabase,
) -> None:
    """That one's way ends before what was written since."""
    add_customers(logged, 1, 10)
    archive = open_fresh(MemoryStore("test"))
    logged.log.make_exporter(archive, page_entries=3).publish_page(logged.engine)
    add_customers(logged, 11, 15)
    log = watch(logged, write_always(logged, 100))
    report = log.make_exporter(archive, page_entries=3).publish_all(logged.engine)
    assert report.sequence >= 15
    logged.log.sync(logged.engine, archive)
    check_archive(archive.store, logged.engine)


def test_a_snapshot_beside_a_steady_writer(logged: LoggedDatabase) -> None:
    add_customers(logged, 1, 10)
    archive = open_fresh(MemoryStore("test"))
    log = watch(logged, writer := write_always(logged, 100))
    report = log.snapshot(logged.engine, archive)
    assert report.taken
    assert 10 <= report.sequence < 10 + writer.seen
    check_sound(logged, archive)


def check_sound(logged: LoggedDatabase, archive: Archive) -> None:
    """Everything is there, also what the snapshots name, and it is what the database has."""
    logged.log.sync(logged.engine, open_fresh(archive.store))
    found = logged.log.check(open_fresh(archive.store), logged.engine)
    assert [problem for problem in found.problems if not problem.harmless] == []


def test_others_publish_and_collect_while_a_snapshot_is_taken(logged: LoggedDatabase) -> None:
    """Each publishes a head of its own; what the snapshot has put by then is no garbage."""
    add_customers(logged, 1, 10)
    store = MemoryStore("test")
    worker = logged.log.make_exporter(open_fresh(store))
    numbers = itertools.count(100)
    heads: list[int] = []

    def publish(step: Step) -> None:
        del step
        number = next(numbers)
        add_customers(logged, number, number)
        assert worker.publish_all(logged.engine).entries == 1
        found = open_fresh(store).read_head()
        heads.append(found.number)
        collect_garbage(open_fresh(store), grace_seconds=0.0, emit=lambda *_: None)

    log = watch(logged, Beside(publish, Step.PUT_CHUNK, Step.PUT_MANIFEST))
    report = log.snapshot(logged.engine, open_fresh(store))
    assert (report.taken, report.sequence) == (True, 10)
    assert len(heads) >= 3
    head = open_fresh(store).read_head()
    assert (head.sequence, head.snapshots[-1].sequence) == (10 + len(heads), 10)
    # The one that names it lets go of what was reserved for it.
    assert head.horizon > head.snapshots[-1].sequence
    check_sound(logged, open_fresh(store))
    # The worker that was there before goes on, and its next snapshot is a layer over this one.
    add_customers(logged, 500, 500)
    assert worker.publish_all(logged.engine).entries == 1
    assert logged.log.snapshot(logged.engine, open_fresh(store)).taken
    collect_garbage(open_fresh(store), grace_seconds=0.0, emit=lambda *_: None)
    check_sound(logged, open_fresh(store))


def test_what_a_dead_snapshot_put_is_collected(logged: LoggedDatabase) -> None:
    """What was reserved for it is free again when its transaction has ended."""
    add_customers(logged, 1, 10)
    store = MemoryStore("test")

    def die(step: Step) -> None:
        raise KeyboardInterrupt(step)

    log = watch(logged, Beside(die, Step.PUT_MANIFEST))
    with pytest.raises(KeyboardInterrupt):
        log.snapshot(logged.engine, open_fresh(store))
    assert list(store.list("SNAPSHOT/"))
    add_customers(logged, 11, 11)
    logged.log.sync(logged.engine, open_fresh(store))
    collect_garbage(open_fresh(store), grace_seconds=0.0, emit=lambda *_: None)
    assert list(store.list("SNAPSHOT/")) == []
    check_sound(logged, open_fresh(store))


def test_a_snapshot_whose_view_is_gone_is_not_published(logged: LoggedDatabase) -> None:
    """Its lock went with the view, so its chunks may be gone by now."""
    add_customers(logged, 1, 10)
    store = MemoryStore("test")

    def cut(step: Step) -> None:
        del step
        with logged.engine.connect() as connection:
            ended = connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
                "current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            ).fetchall()
        assert len(ended) == 1

    log = watch(logged, Beside(cut, Step.PUT_MANIFEST))
    with pytest.raises(DBAPIError):
        log.snapshot(logged.engine, open_fresh(store))
    assert open_fresh(store).read_head().snapshots == ()
    check_sound(logged, open_fresh(store))


def test_two_snapshots_at_once(logged: LoggedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_view, "PATIENCE", Backoff(deadline_seconds=0.0))
    add_customers(logged, 1, 10)
    store = MemoryStore("test")
    refused: list[str] = []

    def take(step: Step) -> None:
        del step
        with pytest.raises(LeaseHeldError) as caught:
            logged.log.snapshot(logged.engine, open_fresh(store))
        refused.append(str(caught.value))

    log = watch(logged, Beside(take, Step.PUT_MANIFEST))
    assert log.snapshot(logged.engine, open_fresh(store)).taken
    assert len(refused) == 1
    assert "another snapshot is being taken" in refused[0]
    assert len(open_fresh(store).read_head().snapshots) == 1


def test_a_snapshot_waits_for_a_worker_in_its_turn(
    logged: LoggedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_customers(logged, 1, 4)
    archive = open_fresh(MemoryStore("test"))
    logged.log.sync(logged.engine, archive)
    archive_id = archive.read_head().archive_id
    pauses: list[float] = []
    with logged.engine.connect() as connection:
        connection.begin()
        assert ExportStore("oplog").try_lease(connection, archive_id) is Lease.OURS

        def end(seconds: float) -> None:
            pauses.append(seconds)
            if connection.in_transaction():
                connection.rollback()

        monkeypatch.setattr(exact_view, "PATIENCE", Backoff(sleep=end))
        assert logged.log.snapshot(logged.engine, archive).taken
    assert pauses


class Racing(ExportStore):
    """Lets another worker have its whole turn once, at a point of this one's transaction."""

    def __init__(self, point: str, other: Callable[[], Any]) -> None:
        super().__init__("oplog")
        self._point = point
        self._other = other

    def _reach(self, point: str) -> None:
        if point == self._point:
            self._point = ""
            self._other()

    def begin(self, connection: Connection) -> None:
        self._reach("before the snapshot")
        super().begin(connection)
        self._reach("after the snapshot")

    def try_lease(self, connection: Connection, archive_id: Any) -> Lease:
        self._reach("before the lease")
        return super().try_lease(connection, archive_id)

    def take_epoch(self, connection: Connection, row: Any) -> Any:
        self._reach("before the epoch")
        return super().take_epoch(connection, row)

    def try_reserve(self, connection: Connection, archive_id: Any) -> bool:
        self._reach("before the head")
        return super().try_reserve(connection, archive_id)


POINTS = ("before the snapshot", "after the snapshot", "before the lease")


@pytest.mark.parametrize("fork", ["stop", "fork"])
@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("point", POINTS)
def test_a_turn_of_another_worker_ends_nobody(
    logged: LoggedDatabase, point: str, known: bool, fork: str
) -> None:
    """Nor is what that one published taken for lost, since this transaction cannot see it."""
    store = MemoryStore("test")
    exporter = logged.log.make_exporter(open_fresh(store), fork=fork)
    other = logged.log.make_exporter(open_fresh(store))
    add_customers(logged, 1, 3)
    if known:
        exporter.publish_all(logged.engine)
        add_customers(logged, 4, 6)

    def turn() -> None:
        add_customers(logged, 11, 13)
        assert other.publish_all(logged.engine).entries
        add_customers(logged, 21, 22)

    exporter.store = exporter.epoch._store = Racing(point, turn)
    report = exporter.publish_all(logged.engine)
    assert (report.entries, report.lost, report.generation) == (2, 0, 0)
    # Both go on.
    for number, one in enumerate((other, exporter), 31):
        add_customers(logged, number, number)
        assert one.publish_all(logged.engine).entries == 1
    check_archive(store, logged.engine)


def test_no_epoch_is_taken_from_a_worker_in_its_turn(logged: LoggedDatabase) -> None:
    """Its receipt would be refused after its head was published."""
    store = MemoryStore("test")
    first = logged.log.make_exporter(open_fresh(store))
    add_customers(logged, 1, 3)
    logged.log.sync(logged.engine, open_fresh(store))
    add_customers(logged, 4, 6)
    second = logged.log.make_exporter(open_fresh(store))
    caught: list[str] = []

    def turn() -> None:
        with pytest.raises(LeaseHeldError) as refused:
            take_epoch(second, logged.engine)
        caught.append(str(refused.value))

    first.store = first.epoch._store = Racing("before the head", turn)
    assert first.publish_all(logged.engine).entries == 3
    assert len(caught) == 1
    check_archive(store, logged.engine)


def test_an_epoch_taken_before_the_lease_ends_nobody(logged: LoggedDatabase) -> None:
    """There is no head to see it by, and the receipt would be refused all the same."""
    store = MemoryStore("test")
    first = logged.log.make_exporter(open_fresh(store))
    add_customers(logged, 1, 3)
    first.publish_all(logged.engine)
    add_customers(logged, 4, 6)
    second = logged.log.make_exporter(open_fresh(store))
    turn = Racing("before the lease", lambda: take_epoch(second, logged.engine))
    first.store = first.epoch._store = turn
    assert first.publish_all(logged.engine).entries == 3
    check_archive(store, logged.engine)


def take_epoch(exporter: Exporter, engine: Engine) -> None:
    """Take one as a worker does that has found nobody publishing, a moment ago."""
    with engine.connect() as connection:
        with connection.begin():
            context = exporter.find_context(connection, seize=True)
        with connection.begin():
            exporter.epoch._take(connection, replace(context, seized=False))
