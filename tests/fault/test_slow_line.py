"""An uplink on which a large request times out, for ever; a small one goes through."""

from __future__ import annotations

import secrets

import pytest

from oplog.archive.archive import Archive
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.objectstore.store_url import open_store
from oplog.backoff import Backoff
from oplog.errors import StoreUnavailableError
from oplog.sync.exporter import FIRST_SEGMENT_BYTES, LEAST_SEGMENT_BYTES, Exporter
from tests.concurrency.workload import Customer
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import check_archive, open_workload
from tests.s3stub import BUCKET, CREDENTIALS, Fault, S3Stub

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

RECORD = 110_000
RECORDS = 40


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    logged = open_workload(fresh_database)
    for number in range(RECORDS):
        with logged.sessions.begin() as session:
            session.add(Customer(id=number, name=secrets.token_hex(RECORD // 2)))
    return logged


def open_impatient(stub: S3Stub) -> Archive:
    """What times out soon, and is not tried again by the client."""
    store = open_store(
        f"s3://{BUCKET}/line",
        options={"endpoint": stub.endpoint, **CREDENTIALS},
        timeout_seconds=0.5,
        backoff=Backoff(first_seconds=0.0, longest_seconds=0.0, deadline_seconds=0.5),
    )
    return Archive(store, verdict=Verdict.ATOMIC)


def publish_stubbornly(exporter: Exporter, logged: LoggedDatabase, tries: int) -> int:
    """As a worker does: how often it failed before everything was published."""
    for failed in range(tries):
        try:
            exporter.publish_all(logged.engine)
        except StoreUnavailableError:
            continue
        return failed
    pytest.fail("it never gets through")


def test_what_times_out_is_sent_in_smaller_pieces(logged: LoggedDatabase) -> None:
    with S3Stub() as stub:
        stub.plan(Fault(stalled=True), times=10_000, method="PUT", larger=LEAST_SEGMENT_BYTES)
        archive = open_impatient(stub)
        exporter = logged.log.make_exporter(archive)
        # From the first size to the least one, and one more where it has tried to grow again.
        halvings = (FIRST_SEGMENT_BYTES // LEAST_SEGMENT_BYTES).bit_length() + 3
        failed = publish_stubbornly(exporter, logged, halvings)
        assert failed > 0
        stub.forget()
        assert check_archive(archive.store, logged.engine).sequence == RECORDS
        sent = [len(r.body) for r in stub.requests if "/LOG/" in r.path and r.method == "PUT"]
        assert max(sent) > LEAST_SEGMENT_BYTES >= sorted(sent)[len(sent) // 2]


def test_each_process_begins_small_and_grows(logged: LoggedDatabase) -> None:
    """A pass that begins with what the line does not take would fail the same way every time."""
    with S3Stub() as stub:
        stub.plan(Fault(stalled=True), times=10_000, method="PUT", larger=2 * FIRST_SEGMENT_BYTES)
        archive = open_impatient(stub)
        logged.log.make_exporter(archive).publish_all(logged.engine)
        sent = [len(r.body) for r in stub.requests if "/LOG/" in r.path and r.method == "PUT"]
        assert FIRST_SEGMENT_BYTES * 0.9 < sent[0] <= FIRST_SEGMENT_BYTES < max(sent)
        assert check_archive(archive.store, logged.engine).sequence == RECORDS
