"""A store that answers wrongly, late or not at all, under a whole worker: D01-D04, D08, D09.

The store is a real client's, the server a stub that does as it is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from oplog import Oplog
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.backoff import Backoff
from oplog.errors import (
    HeadRolledBackError,
    LeaseHeldError,
    ManifestInvalidError,
    ObjectConflictError,
    SegmentCorruptError,
    StorageConfigError,
    StoreUnavailableError,
)
from oplog.facade.sync_worker import SyncWorker
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import (
    add_customers,
    check_archive,
    check_whole,
    open_fresh,
    open_workload,
)
from tests.s3stub import Fault, Request, S3Stub

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

HURRIED = Backoff(deadline_seconds=1.0, first_seconds=0.001, longest_seconds=0.005)
PREFIX = "pre/fix/"
DENIED = Fault(403, "AccessDenied")


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


@pytest.fixture
def stub() -> Iterator[S3Stub]:
    with S3Stub() as stub:
        yield stub


@pytest.fixture
def store(stub: S3Stub) -> ObjectStore:
    return stub.open(backoff=HURRIED)


def sync(logged: LoggedDatabase, store: ObjectStore, log: Oplog | None = None) -> int:
    """A new process that publishes what is new, in segments of two or three entries."""
    exporter = (log or logged.log).make_exporter(
        open_fresh(store), page_entries=4, segment_bytes=300
    )
    return exporter.publish_all(logged.engine).entries


def list_puts(stub: S3Stub) -> list[Request]:
    return [request for request in stub.requests if request.method == "PUT"]


# -- every upload, every fault --------------------------------------------------------------

FAULTS = {
    "conflict": (Fault(409, "ConditionalRequestConflict"), 2),
    "conflict, and written": (Fault(409, "ConditionalRequestConflict", performed=True), 1),
    "refused, and written": (Fault(412, "PreconditionFailed", performed=True), 1),
    "error": (Fault(500, "InternalError"), 1),
    "error, and written": (Fault(500, "InternalError", performed=True), 1),
    "slow down": (Fault(503, "SlowDown"), 3),
    "answer lost": (Fault(dropped=True, performed=True), 1),
    "request lost": (Fault(dropped=True), 1),
    "request late": (Fault(late=True), 1),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAULTS)
def test_every_upload_is_seen_through(logged: LoggedDatabase, stub: S3Stub, name: str) -> None:
    """D02, D03: one's own write is recognised, whatever was said of it."""
    fault, times = FAULTS[name]
    add_customers(logged, 1, 5)
    first = stub.open("calm", backoff=HURRIED)
    sync(logged, first)
    expected = check_archive(first, logged.engine)
    uploads = len(list_puts(stub))
    assert uploads > 5
    for number in range(1, uploads + 1):
        store = stub.open(f"try/{number}", backoff=HURRIED)
        if number > 1:
            stub.plan(Fault(), times=number - 1, method="PUT")
        stub.plan(fault, times=times, method="PUT")
        assert sync(logged, store) == 5
        head = check_archive(store, logged.engine)
        assert (head.sequence, head.chain) == (expected.sequence, expected.chain)
        stub.land()
        assert sync(logged, store) == 0
        assert check_archive(store, logged.engine) == head


@pytest.mark.parametrize("taken", [True, False])
def test_a_late_head_of_a_process_that_is_gone(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore, *, taken: bool
) -> None:
    """It arrives when its number is taken, or as the newest: neither loses or doubles any."""
    add_customers(logged, 1, 3)
    sync(logged, store)
    newest = open_fresh(store).read_head().number
    add_customers(logged, 10, 10)
    path = f"HEAD/{newest + 1:016x}"
    stub.plan(Fault(late=True), times=1, method="PUT", path=path)
    # Whoever sent it is refused everything from then on.
    stub.plan(Fault(403, "AccessDenied"), times=1, method="PUT", path=path)
    with pytest.raises(StorageConfigError):
        sync(logged, store)
    assert len(check_whole(store)) == 3
    if taken:
        assert sync(logged, store) == 1
        before = check_archive(store, logged.engine)
        stub.land()
        assert check_archive(store, logged.engine) == before
    else:
        stub.land()
        # It counts now, and the database has not heard of it.
        add_customers(logged, 99, 99)
        assert sync(logged, store) == 1
        check_archive(store, logged.engine)


@pytest.mark.parametrize("name", ["conflict", "slow down", "request late", "error"])
def test_no_two_requests_for_a_head_are_alike(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore, name: str
) -> None:
    """One that arrives when heads were collected must not be what a head was built on."""
    fault, times = FAULTS[name]
    add_customers(logged, 1, 1)
    path = "HEAD/0000000000000001"
    stub.plan(fault, times=times, method="PUT", path=path)
    assert sync(logged, store) == 1
    bodies = [request.body for request in list_puts(stub) if request.path.endswith(path)]
    assert len(bodies) == len(set(bodies)) == times + 1
    stub.land()
    assert stub.objects[PREFIX + path] == bodies[-1]


# -- a store that is away -------------------------------------------------------------------


@dataclass
class Running:
    """A worker in a thread of its own."""

    worker: SyncWorker
    ended: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.ended.append(error)


@contextmanager
def running(logged: LoggedDatabase, store: ObjectStore) -> Iterator[Running]:
    worker = SyncWorker(
        logged.log,
        logged.engine,
        open_fresh(store),
        interval_seconds=0.01,
        check_hours=None,
        listen=False,
    )
    started = Running(worker)
    thread = threading.Thread(target=started.run)
    thread.start()
    try:
        yield started
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to pass")


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_writers_do_not_notice_a_store_that_is_away(
    logged: LoggedDatabase, stub: S3Stub, method: str
) -> None:
    """D01: the worker waits and tries again; what was written meanwhile is published after."""
    impatient = Backoff(deadline_seconds=0.1, first_seconds=0.001, longest_seconds=0.002)
    store, patient = stub.open(backoff=impatient), stub.open(backoff=HURRIED)
    add_customers(logged, 1, 2)
    with running(logged, store) as worker:
        wait_until(lambda: f"{PREFIX}HEAD/{1:016x}" in stub.objects)
        stub.plan(Fault(503, "SlowDown"), times=1_000_000, method=method)
        asked = len(stub.requests)
        add_customers(logged, 10, 15)
        wait_until(lambda: len(stub.requests) > asked + 20)
        add_customers(logged, 20, 25)
        with pytest.raises(StoreUnavailableError, match="given up after"):
            sync_in_turn(logged, store)
        assert worker.ended == []
        stub.forget()
        wait_until(lambda: count_published(patient) == 14)
    assert worker.ended == []
    check_archive(patient, logged.engine)


def sync_in_turn(logged: LoggedDatabase, store: ObjectStore) -> int:
    """A pass as soon as the worker leaves the lease for a moment."""
    while True:
        with suppress(LeaseHeldError):
            return sync(logged, store)


def count_published(store: ObjectStore) -> int:
    head = open_fresh(store).find_head()
    return 0 if head is None else head.sequence


def test_pauses_grow_while_the_store_is_away(logged: LoggedDatabase, stub: S3Stub) -> None:
    slept: list[float] = []
    backoff = Backoff(
        deadline_seconds=60, first_seconds=1, longest_seconds=8, sleep=slept.append, draw=lambda: 1
    )
    add_customers(logged, 1, 1)
    store = stub.open(backoff=backoff)
    stub.plan(Fault(503, "SlowDown"), times=6, method="PUT")
    sync(logged, store)
    assert slept == [1, 2, 4, 8, 8, 8]


def test_a_hint_that_cannot_be_written(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    """A store that lets nothing be overwritten: the hint stays old, and the receipt is given."""
    stub.plan(DENIED, times=1_000_000, method="PUT", path="LATEST")
    for number in range(1, 4):
        add_customers(logged, number, number)
        assert sync(logged, store) == 1
        row = logged.log.measure_lag(logged.engine, open_fresh(store))
        assert (row.entries, row.sequence) == (0, number)
    check_archive(store, logged.engine)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId"])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_wrong_setting_is_told_at_once(
    logged: LoggedDatabase, stub: S3Stub, method: str, code: str
) -> None:
    """D09: nobody waits for a permission to come back by itself."""
    store = stub.open(backoff=HURRIED)
    add_customers(logged, 1, 2)
    sync(logged, store)
    before = dict(stub.objects)
    add_customers(logged, 10, 12)
    stub.plan(Fault(403, code), times=1_000_000, method=method)
    asked = len([r for r in stub.requests if r.method == method])
    with running(logged, store) as worker:
        wait_until(lambda: bool(worker.ended))
    (error,) = worker.ended
    assert isinstance(error, StorageConfigError)
    assert error.exit_code == 13
    assert error.hint
    assert len([r for r in stub.requests if r.method == method]) == asked + 1
    assert stub.objects == before
    # Mended, another worker goes on.
    stub.forget()
    assert sync(logged, store) == 3
    check_archive(store, logged.engine)


def test_a_bucket_that_is_not_there(logged: LoggedDatabase, stub: S3Stub) -> None:
    add_customers(logged, 1, 1)
    stub.plan(Fault(404, "NoSuchBucket"), times=1_000_000)
    with pytest.raises(StorageConfigError):
        sync(logged, stub.open(backoff=HURRIED))
    assert len(stub.requests) == 1


# -- what is read is wrong ------------------------------------------------------------------


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


@pytest.mark.parametrize("path", ["HEAD/0000000000000001", "HEAD/0000000000000002"])
def test_a_head_that_arrives_in_part(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore, path: str
) -> None:
    """D04: never taken for a shorter archive."""
    for number in (1, 2):
        add_customers(logged, number, number)
        sync(logged, store)
    add_customers(logged, 3, 3)
    before = dict(stub.objects)
    # The header admits the length: nothing but the content can tell.
    length = len(before[PREFIX + path]) // 2
    stub.plan(Fault(change=cut, length=length), times=1_000_000, method="GET", path=path)
    with pytest.raises(ManifestInvalidError):
        sync(logged, store)
    assert stub.objects == before
    stub.forget()
    # The header promises more than comes: the client notices, and asks again.
    stub.plan(Fault(change=cut), times=2, method="GET", path=path)
    assert sync(logged, store) == 1
    check_archive(store, logged.engine)


def test_a_segment_that_arrives_in_part(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    add_customers(logged, 1, 3)
    sync(logged, store)
    path = next(path for path in stub.objects if "/LOG/" in path)
    stub.plan(
        Fault(change=cut, length=len(stub.objects[path]) // 2),
        times=1_000_000,
        method="GET",
        path=path,
    )
    with pytest.raises(SegmentCorruptError, match=path.removeprefix(PREFIX)):
        check_whole(store)


def test_other_bytes_under_a_segments_name(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    add_customers(logged, 1, 3)
    sync(logged, stub.open("other", backoff=HURRIED))
    path = next(path for path in stub.objects if path.startswith("other/LOG/"))
    stub.objects[path.replace("other/", PREFIX)] = b"somebody else's"
    with pytest.raises(ObjectConflictError, match="LOG/"):
        sync(logged, store)
    assert open_fresh(store).find_head() is None


def reverse(names: list[str]) -> list[str]:
    return sorted(names, reverse=True)


def hide_newest(names: list[str]) -> list[str]:
    return sorted(names)[:-1]


def hide_all(names: list[str]) -> list[str]:
    del names
    return []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("arrange", [reverse, hide_newest, hide_all])
@pytest.mark.parametrize("hint", ["kept", "gone", "old", "nonsense"])
def test_lists_that_leave_out_or_mix(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore, hint: str, arrange: object
) -> None:
    """D08: nothing rests on a list, or on the hint; only requests are spent."""
    assert callable(arrange)
    add_customers(logged, 1, 1)
    sync(logged, store)
    old = stub.objects[f"{PREFIX}LATEST"]
    stub.arrange, stub.page_length = arrange, 2
    for number in range(2, 8):
        add_customers(logged, number, number)
        if hint == "gone":
            stub.objects.pop(f"{PREFIX}LATEST", None)
        elif hint != "kept":
            stub.objects[f"{PREFIX}LATEST"] = old if hint == "old" else b"\xff\n-1\n"
        assert sync(logged, store) == 1
    stub.arrange = sorted
    assert check_archive(store, logged.engine).number == 7


def test_an_emptied_bucket_is_no_new_archive(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    add_customers(logged, 1, 2)
    sync(logged, store)
    stub.objects.clear()
    add_customers(logged, 3, 3)
    with pytest.raises(HeadRolledBackError):
        sync(logged, store)
    assert stub.objects == {}
