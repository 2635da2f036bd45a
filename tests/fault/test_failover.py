"""Servers that are replaced under a worker: what was published and is lost is told, and kept.

B06 and B07 for the archive. A lost record stays readable in the branch that it belongs to, the old
server's worker ends, and whoever follows the archive is set right.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.objectstore.memory import MemoryStore
from oplog.errors import LeaseLostError, LogForkedError
from oplog.recovery import FollowReport
from oplog.store import EntryFilter, StoredRecord
from oplog.sync.exporter import Exporter
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer
from tests.fault.test_promotion import attach, copy_data, set_up
from tests.logged import track
from tests.published import (
    check_archive,
    check_heads,
    copy_objects,
    open_fresh,
    read_database,
    read_head_at,
    read_log,
)
from tests.standby import Pair, open_pair
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with open_pair() as pair:
        yield pair


def add(sessions: sessionmaker[Session], *numbers: int) -> None:
    for number in numbers:
        with sessions.begin() as session:
            session.add(Customer(id=number, name=f"customer {number}"))


def sync(log: Oplog, engine: Engine, store: MemoryStore, *, fork: str = "stop") -> int:
    """A new process that publishes; entries published."""
    exporter = log.make_exporter(open_fresh(store), fork=fork, page_entries=3, segment_bytes=600)
    return exporter.publish_all(engine).entries


def list_names(log: Oplog, archive_source: ArchivedLog, connection: Connection) -> set[object]:
    return {
        operation.fields["name"]
        for entry in log.open_reader(connection, source=archive_source).read(
            EntryFilter(), snapshot=""
        )
        for operation in entry.operations
    }


def make_follower(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.sorted_tables)
    return sa.create_engine(engine.url, poolclass=NullPool)


def follow(log: Oplog, follower: Engine, store: MemoryStore) -> FollowReport:
    with follower.connect() as connection:
        return log.follow(open_fresh(store), connection)


def list_customers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT id FROM customer ORDER BY id").scalars())


def check_error(error: LogForkedError, lost: list[StoredRecord], here: list[StoredRecord]) -> None:
    """It names the first position that differs, both hashes, and every lost record."""
    assert (error.sequence, error.lost_count, error.common_sequence) == (5, 3, 4)
    assert error.position == lost[4].position
    assert error.archived_hash == lost[4].record_hash
    assert error.stored_hash == {e.position: e.record_hash for e in here}.get(lost[4].position)
    assert [one.position for one in error.lost] == [record.position for record in lost[4:]]


def check_branch(
    log: Oplog, engine: Engine, store: MemoryStore, *, lost: list[StoredRecord], number: int
) -> None:
    """The lost branch is as it was: by the head it ended with, and by what the newest one keeps."""
    archive = open_fresh(store)
    fork = archive.read_head().fork
    assert fork is not None
    assert (fork.sequence, fork.last, fork.head) == (4, 7, number)
    left = read_head_at(store, fork.head)
    assert read_log(archive, left) == lost
    segments = [archive.read_segment(item) for item in archive.iterate_items(fork.levels)]
    kept = {record.position for one in segments for record in one.records}
    assert kept >= {record.position for record in lost[4:]}
    with engine.connect() as connection:
        names = list_names(log, ArchivedLog(archive, left), connection)
    assert names == {f"customer {number}" for number in range(1, 8)}


def check_superseded(log: Oplog, old: Exporter, pair: Pair, store: MemoryStore) -> None:
    """The old primary goes on without anybody; nothing of it is published."""
    before = copy_objects(store)
    for _ in range(2):
        with pytest.raises(LeaseLostError, match="superseded") as caught:
            old.publish_all(pair.primary_engine)
        assert caught.value.exit_code == 11
    with pytest.raises(LeaseLostError, match="superseded"):
        sync(log, pair.primary_engine, store, fork="fork")
    assert copy_objects(store) == before


def test_published_commits_that_a_failover_lost(pair: Pair, spare_engine: Engine) -> None:
    store = MemoryStore("test")
    log, sessions = set_up(pair.primary_engine)
    add(sessions, 1, 2, 3)
    assert sync(log, pair.primary_engine, store) == 3
    add(sessions, 4)
    pair.catch_up()
    # A worker that was at it before, and is there after.
    old = log.make_exporter(open_fresh(store))
    old.publish_all(pair.primary_engine)
    follower = make_follower(spare_engine)
    follow(log, follower, store)
    pair.cut()
    add(sessions, 5, 6, 7)
    assert old.publish_all(pair.primary_engine).entries == 3
    assert follow(log, follower, store).sequence == 7
    lost = read_database(pair.primary_engine)
    before = copy_objects(store)
    branch = check_archive(store, pair.primary_engine)
    pair.promote()

    promoted = attach(log, pair.standby_engine)
    add(promoted, 50, 51)
    with pytest.raises(LogForkedError) as caught:
        sync(log, pair.standby_engine, store)
    assert copy_objects(store) == before
    check_error(caught.value, lost, read_database(pair.standby_engine))

    # Told to go on: a new generation, and the lost branch as it was.
    assert sync(log, pair.standby_engine, store, fork="fork") == 2
    assert check_archive(store, pair.standby_engine).generation == 1
    check_branch(log, pair.standby_engine, store, lost=lost, number=branch.number)
    add(sessions, 8)
    check_superseded(log, old, pair, store)

    # Who follows had what is lost.
    add(promoted, 52)
    assert sync(log, pair.standby_engine, store) == 1
    report = follow(log, follower, store)
    assert (report.rebuilt, report.generation, report.sequence) == (True, 1, 7)
    assert list_customers(follower) == [1, 2, 3, 4, 50, 51, 52]
    assert_replays(log, follower)
    add(promoted, 53)
    assert sync(log, pair.standby_engine, store) == 1
    report = follow(log, follower, store)
    assert (report.rebuilt, report.entries) == (False, 1)


def test_a_failover_that_lost_nothing(pair: Pair) -> None:
    """No fork, and nothing is passed over: neither what was open nor what took ids again."""
    store = MemoryStore("test")
    log, sessions = set_up(pair.primary_engine)
    add(sessions, 1, 2)
    entered, leave = threading.Event(), threading.Event()

    def write_slowly() -> None:
        with sessions.begin() as session:
            session.add(Customer(id=100, name="late"))
            session.flush()
            session.execute(sa.text("SELECT pg_current_xact_id()"))
            entered.set()
            leave.wait(60)

    slow = threading.Thread(target=write_slowly)
    slow.start()
    assert entered.wait(60)
    add(sessions, 3, 4)
    # Published while a transaction with a lower id is open; it commits before the failover.
    assert sync(log, pair.primary_engine, store) == 4
    leave.set()
    slow.join(60)
    pair.catch_up()
    pair.cut()
    # Ids that are lost with their transactions, and taken again on the other side.
    for _ in range(3):
        with pair.primary_engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_current_xact_id()")
    pair.primary.kill9()
    pair.promote()
    promoted = attach(log, pair.standby_engine)
    add(promoted, 5, 6, 7)
    assert sync(log, pair.standby_engine, store) == 4
    head = check_archive(store, pair.standby_engine)
    assert (head.generation, head.fork, head.origin.timeline) == (0, None, 2)


def test_only_the_receipt_was_lost(pair: Pair) -> None:
    """All records came over, the row that says they are published did not."""
    store = MemoryStore("test")
    log, sessions = set_up(pair.primary_engine)
    add(sessions, 1)
    sync(log, pair.primary_engine, store)
    add(sessions, 2, 3, 4, 5)
    pair.catch_up()
    pair.cut()
    assert sync(log, pair.primary_engine, store) == 4
    pair.primary.kill9()
    pair.promote()
    before = copy_objects(store)
    assert sync(log, pair.standby_engine, store) == 0
    assert copy_objects(store) == before
    promoted = attach(log, pair.standby_engine)
    add(promoted, 6)
    assert sync(log, pair.standby_engine, store) == 1
    assert check_archive(store, pair.standby_engine).generation == 0


def test_a_database_set_back_to_an_older_point() -> None:
    """B07: no timeline says so, and the same ids and positions are given again."""
    store = MemoryStore("test")
    with EmbeddedServer(fsync=True) as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        log, sessions = set_up(engine)
        add(sessions, 1, 2)
        sync(log, engine, store)
        add(sessions, 3)
        server.kill9()
        copy_data(server, back=False)
        server.restart()
        add(sessions, 4, 5)
        running = log.make_exporter(open_fresh(store))
        assert running.publish_all(engine).entries == 3
        lost = read_database(engine)
        server.kill9()
        copy_data(server, back=True)
        server.restart()

        add(sessions, 40, 50)
        before = copy_objects(store)
        # Be it a worker that ran all the time, or a new one.
        for publish in (
            lambda: running.publish_all(engine),
            lambda: sync(log, engine, store),
        ):
            with pytest.raises(LogForkedError) as caught:
                publish()
            assert (caught.value.common_sequence, caught.value.lost_count) == (3, 2)
            assert caught.value.sequence == 4
            assert copy_objects(store) == before
        assert sync(log, engine, store, fork="fork") == 2
        head = check_archive(store, engine)
        assert (head.generation, head.sequence) == (1, 5)
        assert head.fork is not None
        assert read_log(open_fresh(store), read_head_at(store, head.fork.head)) == lost
        assert check_heads(store) == head
        engine.dispose()
