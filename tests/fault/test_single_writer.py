"""Stores that cannot keep two writers apart: refused, unless one is told that there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oplog import ArchiveStepDone, Event, Oplog
from oplog.archive.archive import Archive
from oplog.archive.format.head import decode_head
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.step import Step
from oplog.backoff import Backoff
from oplog.errors import (
    ConfigurationError,
    LeaseHeldError,
    StorageConfigError,
    StoreUnavailableError,
)
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import add_customers, check_archive, open_workload
from tests.s3stub import Fault, S3Stub

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

UNSIGNED = HeadTrust(unsigned=True)
HURRIED = Backoff(deadline_seconds=1.0, first_seconds=0.001, longest_seconds=0.005)


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


@pytest.fixture(params=["refuses", "lies"])
def stub(request: pytest.FixtureRequest) -> Iterator[S3Stub]:
    with S3Stub() as stub:
        stub.refuses_conditions = request.param == "refuses"
        stub.ignores_conditions = request.param == "lies"
        yield stub


@pytest.fixture
def store(stub: S3Stub) -> ObjectStore:
    return stub.open(backoff=HURRIED)


def sync(logged: LoggedDatabase, store: ObjectStore, log: Oplog | None = None) -> int:
    """A new process that is told that it is alone."""
    exporter = (log or logged.log).make_exporter(
        Archive(store, single_writer=True, trust=UNSIGNED), page_entries=3, segment_bytes=600
    )
    return exporter.publish_all(logged.engine).entries


def test_it_has_to_be_said(logged: LoggedDatabase, stub: S3Stub, store: ObjectStore) -> None:
    add_customers(logged, 1, 4)
    with pytest.raises(ConfigurationError, match="undo each other") as caught:
        logged.log.sync(logged.engine, Archive(store, trust=UNSIGNED))
    assert "single_writer=True" in str(caught.value)
    assert not [path for path in stub.objects if "PROBE" not in path]
    assert sync(logged, store) == 4
    for number in range(5, 9):
        add_customers(logged, number, number)
        assert sync(logged, store) == 1
    head = check_archive(store, logged.engine, contiguous=False)
    # Each process had an epoch of its own, and numbers of its own.
    assert head.number >> 32 == head.epoch >= 5
    before = dict(stub.objects)
    assert sync(logged, store) == 0
    assert stub.objects == before


def test_the_lease_is_never_seized(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore
) -> None:
    add_customers(logged, 1, 2)
    refused: list[LeaseHeldError] = []

    def intrude(event: Event) -> None:
        if isinstance(event, ArchiveStepDone) and event.step == Step.PUT_SEGMENT:
            other = logged.log.make_exporter(Archive(store, single_writer=True, trust=UNSIGNED))
            with pytest.raises(LeaseHeldError) as caught:
                other.publish_page(logged.engine, seize=True)
            refused.append(caught.value)

    log = Oplog(logged.log.catalog, plaintext=True, on_event=intrude)
    assert sync(logged, store, log) == 2
    assert refused
    check_archive(store, logged.engine, contiguous=False)
    del stub


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seen_through", [True, False])
def test_two_epochs_never_write_one_head(
    logged: LoggedDatabase, stub: S3Stub, store: ObjectStore, *, seen_through: bool
) -> None:
    """A head's request that arrives late must not replace what another epoch has put."""
    add_customers(logged, 1, 3)
    sync(logged, store)
    bodies: dict[str, set[bytes]] = {}
    for number in range(4):
        add_customers(logged, 10 + number, 10 + number)
        # The next epoch's first head.
        epoch = (
            logged.log.open_source(Archive(store, single_writer=True, trust=UNSIGNED)).head.epoch
            + 1
        )
        path = f"HEAD/{epoch << 32 | 1:016x}"
        stub.plan(Fault(late=True), times=1, method="PUT", path=path)
        if seen_through:
            assert sync(logged, store) == 1
        else:
            # The process ends, and another has another epoch.
            stub.plan(Fault(403, "AccessDenied"), times=1, method="PUT", path=path)
            with pytest.raises((StorageConfigError, StoreUnavailableError)):
                sync(logged, store)
            assert sync(logged, store) == 1
        before = check_archive(store, logged.engine, contiguous=False)
        stub.land()
        assert check_archive(store, logged.engine, contiguous=False) == before
    for request in stub.requests:
        if request.method == "PUT" and "/HEAD/" in request.path:
            bodies.setdefault(request.path, set()).add(request.body)
            head = decode_head(request.body, what=request.path)
            assert head.number >> 32 == head.epoch
    assert len(bodies) >= 5
    assert all(len(one) == 1 for one in bodies.values())
    add_customers(logged, 99, 99)
    assert sync(logged, store) == 1
    check_archive(store, logged.engine, contiguous=False)
