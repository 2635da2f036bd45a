"""The three ways to upload wrongly: out of order, interleaved, in part.

Beside the product stands a publisher as one would write it without thinking: what it loses on the
same faults shows that they are real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pytest

from oplog import ArchiveStepDone, Event, Oplog
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.step import Step
from oplog.backoff import Backoff
from oplog.errors import (
    ArchiveError,
    LeaseLostError,
    StorageConfigError,
)
from tests.concurrency.workload import Customer
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import (
    add_customers,
    check_archive,
    check_whole,
    open_fresh,
    open_workload,
    read_database,
)
from tests.s3stub import Fault, S3Stub

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

HURRIED = Backoff(deadline_seconds=1.0, first_seconds=0.001, longest_seconds=0.005)
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


@dataclass
class NaivePublisher:
    """Segments and a manifest that lists them: each step is fine, the order is not."""

    store: ObjectStore
    manifest_first: bool = False
    forgives: bool = False
    pause: Callable[[], None] = lambda: None

    def read_manifest(self) -> list[str]:
        data = self.store.get("naive/manifest", most=1 << 20)
        return [] if data is None else list(json.loads(data))

    def read(self) -> list[bytes | None]:
        return [self.store.get(path, most=1 << 20) for path in self.read_manifest()]

    def publish(self, name: str, parts: list[bytes]) -> None:
        known = self.read_manifest()
        self.pause()
        paths = [f"naive/{name}-{number}" for number in range(len(parts))]
        if self.manifest_first:
            self._put_manifest(known + paths)
        with ThreadPoolExecutor(1) as pool:
            uploads = [
                pool.submit(self.store.put, path, part)
                for path, part in zip(paths, parts, strict=True)
            ]
        for upload in uploads:
            with suppress(*(ArchiveError,) if self.forgives else ()):
                upload.result()
        if not self.manifest_first:
            self._put_manifest(known + paths)

    def _put_manifest(self, paths: list[str]) -> None:
        self.store.put("naive/manifest", json.dumps(paths).encode())


PARTS = [b"one", b"two", b"three"]


def test_a_manifest_before_its_content(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    """Out of order: whoever reads in between, or after a death in between, finds holes."""
    naive = NaivePublisher(store, manifest_first=True)
    stub.plan(DENIED, times=1, method="PUT", path="naive/a-1")
    with pytest.raises(StorageConfigError):
        naive.publish("a", PARTS)
    assert naive.read() == [b"one", None, b"three"]

    add_customers(logged, 1, 8)
    refused = 0
    for number in range(1, 6):
        stub.plan(Fault(), times=number, method="PUT")
        stub.plan(DENIED, times=1, method="PUT")
        try:
            sync(logged, store)
        except StorageConfigError:
            refused += 1
        check_whole(store)
        stub.forget()
    assert refused > 2
    sync(logged, store)
    check_archive(store, logged.engine)


def test_two_publishers_at_once(logged: LoggedDatabase, stub: S3Stub, store: ObjectStore) -> None:
    """Interleaved: both read, both write, and what the first one wrote is lost."""
    second = NaivePublisher(store)
    NaivePublisher(store, pause=lambda: second.publish("b", PARTS)).publish("a", PARTS)
    assert second.read_manifest() == ["naive/a-0", "naive/a-1", "naive/a-2"]

    steps = (Step.PUT_TYPES, Step.READ_NEWS, Step.PUT_SEGMENT, Step.CREATE_HEAD)
    for number, step in enumerate(steps):
        add_customers(logged, number * 10 + 1, number * 10 + 8)
        overtaken: list[int] = []

        def overtake(event: Event, step: Step = step, seen: list[int] = overtaken) -> None:
            if isinstance(event, ArchiveStepDone) and event.step == step and not seen:
                seen.append(seize(logged, store))

        log = Oplog(logged.log.catalog, plaintext=True, on_event=overtake)
        if step is Step.CREATE_HEAD:
            with pytest.raises(LeaseLostError) as caught:
                sync(logged, store, log)
            assert caught.value.exit_code == 11
            check_whole(store)
            sync(logged, store)
        else:
            # It sees the other's head before it creates its own, and goes on from there.
            assert sync(logged, store, log) == 8 - overtaken[0]
        assert overtaken[0] > 0
        check_archive(store, logged.engine)


def seize(logged: LoggedDatabase, store: ObjectStore) -> int:
    """Another process publishes a page although the lease is taken."""
    exporter = logged.log.make_exporter(open_fresh(store), page_entries=4, segment_bytes=300)
    return exporter.publish_page(logged.engine, seize=True).entries


def test_an_upload_that_fails_among_others(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    """Partial: one of several failed, and the rest was taken for the whole."""
    naive = NaivePublisher(store, forgives=True)
    stub.plan(DENIED, times=1, method="PUT", path="naive/a-1")
    naive.publish("a", PARTS)
    assert naive.read() == [b"one", None, b"three"]

    with logged.sessions.begin() as session:
        session.add_all([Customer(id=number, name="x" * 50) for number in range(20)])
    expected = read_database(logged.engine)
    segments = 0
    while True:
        stub.plan(Fault(), times=segments, method="PUT")
        stub.plan(DENIED, times=1, method="PUT")
        try:
            sync(logged, store)
        except StorageConfigError:
            # The transaction is there whole, or it is not there.
            assert check_whole(store) in ([], expected)
        segments += 1
        if segments > 12:
            break
    stub.forget()
    sync(logged, store)
    check_archive(store, logged.engine)
