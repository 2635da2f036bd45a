"""The worker in a thread: soon when there is something, quiet when there is nothing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import ArchiveStepDone, Event, Oplog, SyncReport
from oplog.archive.format.path import LATEST
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.step import Step
from oplog.errors import (
    ArchiveLagError,
    ChainBrokenError,
    ConfigurationError,
    StoreUnavailableError,
)
from oplog.facade.sync_worker import SyncWorker
from oplog.sync.exporter import Exporter
from oplog.sync.wake import Wake, call_worker
from oplog.sync.worker import SyncLoop
from tests.concurrency.workload import Customer
from tests.databases import FreshDatabase
from tests.faulty_store import LOSE_REQUEST, Call, Fault, FaultyStore
from tests.logged import LoggedDatabase
from tests.pgbouncer import open_pgbouncer
from tests.published import (
    add_customers,
    check_archive,
    open_fresh,
    open_workload,
    read_database,
    read_log,
)

pytestmark = pytest.mark.postgres

NEVER = 3600.0


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


class Passes:
    """What a worker reported, and waiting for more of it."""

    def __init__(self) -> None:
        self.reports: list[SyncReport] = []
        self._changed = threading.Condition()

    def __call__(self, report: SyncReport) -> None:
        with self._changed:
            self.reports.append(report)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 60)

    def wait_for_idle(self, count: int = 1) -> None:
        """Until that many more passes found nothing."""
        target = self._count_idle() + count
        self.wait_for(lambda: self._count_idle() >= target)

    def _count_idle(self) -> int:
        return sum(1 for report in self.reports if not report.entries)


@contextmanager
def running(
    logged: LoggedDatabase, store: ObjectStore, *, engine: Engine | None = None, **settings: Any
) -> Iterator[tuple[SyncWorker, Passes]]:
    """A worker that runs until the block ends, and ended well."""
    passes = Passes()
    failures: list[BaseException] = []
    worker = SyncWorker(
        logged.log,
        engine or logged.engine,
        open_fresh(store),
        on_pass=passes,
        check_hours=None,
        **settings,
    )

    def run() -> None:
        try:
            worker.run()
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker, passes
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


def test_whoever_waits_for_the_archive_wakes_the_worker(logged: LoggedDatabase) -> None:
    store = MemoryStore("test")
    with running(logged, store, interval_seconds=NEVER) as (_, passes):
        passes.wait_for_idle()
        for number in range(1, 6):
            with logged.sessions.begin() as session:
                session.add(Customer(id=number, name="x"))
            receipts = logged.log.receipts(session)
            archive = open_fresh(store)
            found = logged.log.wait_until_archived(
                receipts, archive, engine=logged.engine, timeout=60
            )
            assert found.sequence == number
        # Nobody calls, and it does not look by itself.
        with logged.sessions.begin() as session:
            session.add(Customer(id=99, name="x"))
        receipts = logged.log.receipts(session)
        with pytest.raises(ArchiveLagError, match="1 records are not in"):
            logged.log.wait_until_archived(receipts, open_fresh(store), timeout=0.05)
        call_worker(logged.engine)
        logged.log.wait_until_archived(receipts, open_fresh(store), timeout=60)
    check_archive(store, logged.engine)


def test_a_call_that_comes_before_it_waits_is_heard(
    logged: LoggedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pass is made, or a chore done."""
    store = MemoryStore("test")
    called: list[int] = []

    def call(worker: SyncWorker) -> None:
        if not called:
            add_customers(logged, 1, 1)
            call_worker(logged.engine)
        called.append(1)

    monkeypatch.setattr(SyncWorker, "_look_at_tables", call)
    with running(logged, store, interval_seconds=NEVER) as (_, passes):
        passes.wait_for(lambda: sum(report.entries for report in passes.reports) == 1)
    check_archive(store, logged.engine)


def test_it_looks_by_itself_where_it_hears_nothing(logged: LoggedDatabase) -> None:
    store = MemoryStore("test")
    with running(logged, store, interval_seconds=0.01, listen=False) as (_, passes):
        add_customers(logged, 1, 3)
        passes.wait_for(lambda: sum(report.entries for report in passes.reports) == 3)
    check_archive(store, logged.engine)


def test_it_publishes_through_a_pooler(logged: LoggedDatabase, database_url: sa.URL) -> None:
    """Which passes no notification on: time alone wakes the worker, and that is enough."""
    store = MemoryStore("test")
    with open_pgbouncer(database_url, size=2) as url:
        pooled = sa.create_engine(url, connect_args={"prepare_threshold": None})
        with running(logged, store, engine=pooled, interval_seconds=0.05) as (_, passes):
            passes.wait_for_idle()
            add_customers(logged, 1, 3)
            passes.wait_for(lambda: sum(report.entries for report in passes.reports) == 3)
        pooled.dispose()
    check_archive(store, logged.engine)


def test_stopped_while_it_waits_or_before_it_began(logged: LoggedDatabase) -> None:
    store = MemoryStore("test")
    for listen in (True, False):
        with running(logged, store, interval_seconds=NEVER, listen=listen) as (worker, passes):
            passes.wait_for_idle()
            worker.stop()
    worker = SyncWorker(logged.log, logged.engine, open_fresh(store), check_hours=None)
    worker.stop()
    worker.run()


def test_idle_it_writes_nothing_and_asks_little(logged: LoggedDatabase) -> None:
    add_customers(logged, 1, 3)
    store = FaultyStore(MemoryStore("test"))
    logged.log.sync(logged.engine, open_fresh(store))
    statements: Counter[str] = Counter()

    def count(*arguments: Any) -> None:
        statements[arguments[2].split()[0]] += 1

    sa.event.listen(logged.engine, "before_cursor_execute", count)
    store.calls.clear()
    with running(logged, store, interval_seconds=0.001, listen=False) as (_, passes):
        passes.wait_for_idle(10)
    idle = len(passes.reports)
    assert {call.operation for call in store.calls} <= {"get", "head"}
    # The hint, the newest head, that there is none after it, the one before.
    assert len(store.calls) <= 4 * idle
    # At its start, and then every hour, it looks at the tables: those of the log and of the models.
    assert statements.pop("WITH") == 2
    assert set(statements) <= {"SET", "SELECT"}
    look = 12
    assert sum(statements.values()) <= look + 11 * idle


def test_lag_in_numbers(logged: LoggedDatabase) -> None:
    store = MemoryStore("test")
    archive = open_fresh(store)
    worker = SyncWorker(logged.log, logged.engine, archive, check_hours=None)
    assert (worker.measure_lag().entries, worker.measure_lag().lag_seconds) == (0, 0.0)
    add_customers(logged, 1, 3)
    assert worker.measure_lag().entries == 3
    assert worker.measure_lag().sequence == 0
    logged.log.sync(logged.engine, archive)
    assert (worker.measure_lag().entries, worker.measure_lag().sequence) == (0, 3)
    add_customers(logged, 4, 5)
    lag = worker.measure_lag()
    assert (lag.entries, lag.sequence) == (2, 3)
    with logged.engine.connect() as connection:
        age = connection.exec_driver_sql(
            "SELECT extract(epoch FROM clock_timestamp() - created_at)::float8 "
            "FROM oplog.oplog_record ORDER BY position OFFSET 3 LIMIT 1"
        ).scalar_one()
    assert 0 < lag.lag_seconds <= age


def test_lag_in_the_middle_of_a_backlog(logged: LoggedDatabase) -> None:
    """C09: also while the place is inside a page, and with what commits late."""
    add_customers(logged, 1, 10)
    exporter = logged.log.make_exporter(open_fresh(MemoryStore("test")), page_entries=3)
    for done in (3, 6, 9, 10):
        exporter.publish_page(logged.engine)
        lag = logged.log.measure_lag(logged.engine, exporter.archive)
        assert (lag.entries, lag.sequence) == (10 - done, done)


def test_a_worker_that_is_slower_than_writers(logged: LoggedDatabase) -> None:
    """C09, C11: pages of bounded size, none skipped, and what commits late is not lost."""
    sizes: list[tuple[str, int]] = []

    def see(event: Event) -> None:
        if isinstance(event, ArchiveStepDone) and event.step in (Step.PUT_SEGMENT, Step.READ_NEWS):
            sizes.append((event.step, event.bytes))

    store = MemoryStore("test")
    log = Oplog(logged.log.catalog, plaintext=True, on_event=see)
    exporter = log.make_exporter(open_fresh(store), page_entries=10, segment_bytes=2000)
    with logged.sessions() as slow:
        slow.add(Customer(id=5000, name="open all the time"))
        slow.flush()
        add_customers(logged, 1, 25)
        for first in range(100, 400, 100):
            exporter.publish_page(logged.engine)
            add_customers(logged, first, first + 24)
        slow.commit()
    before = len(sizes)
    report = exporter.publish_all(logged.engine)
    assert report.entries > 30
    assert len(sizes) > before
    assert max(size for step, size in sizes if step == Step.PUT_SEGMENT) < 8000
    assert sum(1 for step, _ in sizes if step == Step.READ_NEWS) > 5
    check_archive(store, logged.engine)


def test_a_transaction_of_thousands(logged: LoggedDatabase) -> None:
    """C12: it is published at once, in a segment of its own, and never read in part."""
    names = {number: sha256(b"%d" % number).hexdigest() for number in range(1, 5001)}
    add_customers(logged, 8000, 8001)
    with logged.sessions.begin() as session:
        session.add_all(Customer(id=number, name=name) for number, name in names.items())
    add_customers(logged, 9000, 9000)
    store = MemoryStore("test")
    exporter = logged.log.make_exporter(open_fresh(store), page_entries=6000, segment_bytes=100_000)
    report = exporter.publish_page(logged.engine)
    assert (report.entries, report.segments, report.sequence) == (5002, 2, 3)
    assert exporter.publish_all(logged.engine).entries == 1
    head = check_archive(store, logged.engine)
    archive = open_fresh(store)
    segments = [segment for _, segment in archive.iterate_segments(head.levels)]
    assert [len(segment.records) for segment in segments] == [2, 1, 1]
    (huge,) = segments[1].records
    assert len(huge.aggregates) == 5000
    assert len(huge.parts) > 1
    assert huge.sealed_bytes > 100_000


def test_segments_are_cut_by_what_all_parts_have(logged: LoggedDatabase) -> None:
    """A small row before one that fills a part of its own: the first part says nothing."""
    blobs = [random.Random(n).randbytes(200_000).hex() for n in range(4)]
    for number, blob in enumerate(blobs):
        with logged.sessions.begin() as session:
            session.add(Customer(id=2 * number + 1, name="small"))
            session.add(Customer(id=2 * number + 2, name=blob))
    records = read_database(logged.engine)
    assert [len(record.parts) for record in records] == [2, 2, 2, 2]
    assert all(len(record.parts[0].data) < 1000 < len(record.parts[1].data) for record in records)
    size = records[0].sealed_bytes
    store = MemoryStore("test")
    exporter = logged.log.make_exporter(open_fresh(store), segment_bytes=5 * size // 2)
    report = exporter.publish_page(logged.engine)
    # As many as there are until the limit is passed.
    assert (report.entries, report.segments) == (6, 2)
    assert exporter.publish_page(logged.engine).entries == 2
    head = check_archive(store, logged.engine)
    segments = [s for _, s in open_fresh(store).iterate_segments(head.levels)]
    assert [len(segment.records) for segment in segments] == [2, 1, 1]


def test_segments_are_cut_by_metadata_too(logged: LoggedDatabase) -> None:
    """However much is said of small records, a segment can be written, and be read again."""
    for number in range(6):
        with logged.sessions.begin() as session:
            if number:
                logged.log.annotate(session, reason=[f"{n:04}" * 250 for n in range(number)])
            session.add(Customer(id=number + 1, name="small"))
    store = MemoryStore("test")
    exporter = logged.log.make_exporter(open_fresh(store), segment_bytes=4_500)
    assert exporter.publish_all(logged.engine).entries == 6
    head = check_archive(store, logged.engine)
    segments = [s for _, s in open_fresh(store).iterate_segments(head.levels)]
    counts = [[len(record.metadata) for record in s.records] for s in segments]
    assert counts == [[0, 1, 2], [3], [4], [5]]


def test_a_record_is_larger_than_a_page(logged: LoggedDatabase) -> None:
    """C12: whatever a page may hold, a record with more is published whole, and ends the page."""
    add_customers(logged, 1, 1)
    with logged.sessions.begin() as session:
        session.add_all(Customer(id=number, name="y") for number in range(10, 30))
    add_customers(logged, 40, 42)
    store = MemoryStore("test")
    exporter = logged.log.make_exporter(open_fresh(store), page_entries=2)
    assert [exporter.publish_page(logged.engine).entries for _ in range(4)] == [21, 2, 1, 0]
    check_archive(store, logged.engine)


# -- records that nobody can read -----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "data = overlay(data placing '\\x00'::bytea from 5)",
        "data = ''::bytea",
        "record_hash = overlay(record_hash placing '\\x00000000'::bytea from 3)",
        "format = 7, data = '\\xdeadbeef'::bytea",
    ],
)
def test_an_altered_record_is_not_published(logged: LoggedDatabase, change: str) -> None:
    """C10: the worker names it. What comes after it waits, and is published once it is put back."""
    add_customers(logged, 1, 5)
    logged.execute(
        "CREATE TABLE kept AS SELECT * FROM oplog.oplog_record",
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET {change} WHERE 'customer/3' = ANY (aggregates)",
    )
    store = MemoryStore("test")
    with pytest.raises(ChainBrokenError, match=r"position 3, record .*customer/3.*not published"):
        logged.log.sync(logged.engine, open_fresh(store))
    logged.execute(
        "UPDATE oplog.oplog_record r SET data = k.data, format = k.format, "
        "record_hash = k.record_hash FROM kept k WHERE k.position = r.position",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    logged.log.sync(logged.engine, open_fresh(store))
    archive = open_fresh(store)
    assert read_log(archive, archive.read_head()) == read_database(logged.engine)


# -- what ends it, and what does not --------------------------------------------------------


def test_an_engine_that_commits_by_itself_is_refused(logged: LoggedDatabase) -> None:
    """Nothing would be read, published and acknowledged in one transaction."""
    add_customers(logged, 1, 1)
    store = MemoryStore("test")
    engine = sa.create_engine(logged.engine.url, isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigurationError) as caught:
        logged.log.sync(engine, open_fresh(store))
    assert "AUTOCOMMIT" in str(caught.value)
    assert list(store.list("")) == []
    engine.dispose()


class Away(Exporter):
    """Fails for long, then publishes."""

    failures = 1100

    def publish_page(self, engine: Engine, *, seize: bool = False) -> SyncReport:
        self.failures -= 1
        if self.failures:
            raise StoreUnavailableError("away", hint="a planned fault")
        return super().publish_page(engine, seize=seize)


def test_an_outage_of_any_length_is_waited_out(logged: LoggedDatabase) -> None:
    """More failures than a number has bits: the pause grows to its limit and no further."""
    store = MemoryStore("test")
    add_customers(logged, 1, 1)
    exporter = Away(open_fresh(store), schema="oplog", emit=lambda *_: None)
    loop: SyncLoop

    def end(report: SyncReport) -> None:
        del report
        loop.stop()

    loop = SyncLoop(exporter, logged.engine, interval_seconds=0.0, wake=Wake(None), on_pass=end)
    loop.run()
    assert exporter.failures == 0
    check_archive(store, logged.engine)


def test_a_store_that_fails_while_another_has_the_lease(logged: LoggedDatabase) -> None:
    """Looking whether the other one gets on is a request as well, and may fail."""
    store = MemoryStore("test")
    add_customers(logged, 1, 4)
    logged.log.sync(logged.engine, open_fresh(store))
    add_customers(logged, 5, 8)
    hints: list[Call] = []
    waited = threading.Event()

    def plan(call: Call) -> Fault | None:
        if (call.operation, call.path) != ("get", LATEST):
            return None
        hints.append(call)
        if len(hints) == 3:
            waited.set()
        # The second one is that of a worker which was refused the lease.
        return LOSE_REQUEST if len(hints) == 2 else None

    reports: list[SyncReport] = []
    loop: SyncLoop

    def end(report: SyncReport) -> None:
        reports.append(report)
        loop.stop()

    loop = SyncLoop(
        logged.log.make_exporter(open_fresh(FaultyStore(store, plan))),
        logged.engine,
        interval_seconds=0.01,
        wake=Wake(None),
        on_pass=end,
    )
    thread = threading.Thread(target=loop.run)

    def run_beside(event: Event) -> None:
        if isinstance(event, ArchiveStepDone) and event.step == Step.PUT_SEGMENT:
            thread.start()
            assert waited.wait(60)

    log = Oplog(logged.log.catalog, plaintext=True, on_event=run_beside)
    exporter = log.make_exporter(open_fresh(store))
    assert exporter.publish_page(logged.engine).entries == 4
    thread.join(60)
    assert [report.entries for report in reports] == [0]
    check_archive(store, logged.engine)


def test_it_warns_of_what_could_not_be_restored(
    logged: LoggedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    add_customers(logged, 1, 3)
    logged.execute("DROP TABLE invoice CASCADE")
    with running(logged, MemoryStore("test")) as (_, passes):
        passes.wait_for_idle(1)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("public.invoice" in text and "oplog types sync" in text for text in warned)
