"""What a worker does now and then: beside publishing, and given up when it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.errors import LogForkedError
from oplog.facade.sync_worker import SyncWorker
from oplog.snapshot.policy import SnapshotPolicy
from oplog.sync.chores import Chore
from oplog.sync.exporter import SyncReport
from oplog.sync.wake import Wake, call_worker
from oplog.sync.worker import SyncLoop
from tests.databases import FreshDatabase
from tests.faulty_store import Call, Fault, FaultyStore
from tests.logged import LoggedDatabase
from tests.published import add_customers, check_archive, open_fresh, open_workload

pytestmark = pytest.mark.postgres

OFTEN = 1e-7
"""Hours: a check is due at once."""
SEGMENTS = 30


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


class Gate:
    """A store whose requests of one kind, by chores, wait at a gate until it is opened."""

    def __init__(self, inner: ObjectStore, operation: str, folder: str) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.passed = 0
        self._asked = (operation, folder)
        self._publisher = threading.get_ident()
        self.store = FaultyStore(inner, self._wait)

    def watch(self, publisher: int) -> None:
        """The thread that passes."""
        self._publisher = publisher

    def _wait(self, call: Call) -> Fault | None:
        operation, folder = self._asked
        if threading.get_ident() == self._publisher or call.operation != operation:
            return None
        if call.path.startswith(folder):
            self.reached.set()
            assert self.opened.wait(60)
            self.passed += 1
        return None


class Running:
    """A worker in a thread, whose chores meet a gate."""

    def __init__(self, logged: LoggedDatabase, gate: Gate, **settings: object) -> None:
        self.published = 0
        self.errors: list[BaseException] = []
        self._heard = threading.Condition()
        self.worker = SyncWorker(
            logged.log,
            logged.engine,
            open_fresh(gate.store),
            interval_seconds=3600.0,
            on_pass=self._hear,
            **settings,  # type: ignore[arg-type]
        )
        self._gate = gate
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self._gate.watch(threading.get_ident())
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.errors.append(error)

    def _hear(self, report: SyncReport) -> None:
        with self._heard:
            self.published += report.entries
            self._heard.notify_all()

    def wait_for(self, published: int) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: self.published >= published, 60)

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


def fill_segments(logged: LoggedDatabase, store: ObjectStore) -> None:
    """A log of many segments, each a request for who reads it."""
    add_customers(logged, 1, SEGMENTS)
    exporter = logged.log.make_exporter(open_fresh(store), segment_bytes=1)
    exporter.publish_all(logged.engine)


def list_open_transactions(logged: LoggedDatabase) -> list[str]:
    with logged.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
        )
        return [row[0] for row in found]


def test_publishing_goes_on_while_the_archive_is_checked(logged: LoggedDatabase) -> None:
    """And no transaction is open meanwhile: it would keep VACUUM from all that dies."""
    store = MemoryStore("test")
    fill_segments(logged, store)
    gate = Gate(store, "get", "LOG/")
    running = Running(logged, gate, check_hours=OFTEN)
    try:
        assert gate.reached.wait(60)
        for number in range(100, 103):
            add_customers(logged, number, number)
            call_worker(logged.engine)
            running.wait_for(number - 99)
        assert gate.passed == 0
        assert list_open_transactions(logged) == []
    finally:
        gate.opened.set()
        running.worker.stop()
        running.join()
    assert running.errors == []
    check_archive(store, logged.engine)


@pytest.mark.parametrize("kind", ["check", "snapshot"])
def test_a_chore_is_given_up_when_the_worker_stops(logged: LoggedDatabase, kind: str) -> None:
    """At its next request; what it has put names no head."""
    store = MemoryStore("test")
    fill_segments(logged, store)
    gate = Gate(store, *(("get", "LOG/") if kind == "check" else ("create", "BLOB/")))
    snapshots = SnapshotPolicy(records=1) if kind == "snapshot" else None
    hours = OFTEN if kind == "check" else None
    running = Running(logged, gate, check_hours=hours, snapshots=snapshots)
    assert gate.reached.wait(60)
    running.worker.stop()
    gate.opened.set()
    running.join()
    assert running.errors == []
    # What was under way, in as many threads as read at once, and nothing after that.
    assert 0 < gate.passed < SEGMENTS / 2
    assert open_fresh(store).read_head().snapshots == ()
    check_archive(store, logged.engine)


def test_a_chore_that_finds_the_log_forked_ends_the_worker(logged: LoggedDatabase) -> None:
    """Publishing on would hide it."""

    def find_fork() -> None:
        raise LogForkedError("planned", hint="a test")

    loop = make_loop(logged, find_fork)
    with pytest.raises(LogForkedError, match="planned"):
        loop.run()


def make_loop(logged: LoggedDatabase, run: Callable[[], None]) -> SyncLoop:
    exporter = logged.log.make_exporter(open_fresh(MemoryStore("test")))
    return SyncLoop(
        exporter,
        logged.engine,
        interval_seconds=0.01,
        chores=[Chore("planned", 3600.0, run)],
        wake=Wake(None),
    )
