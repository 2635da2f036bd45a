"""Publishing, end to end: what was written is in the archive, once, and comes back."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import LoggedEntry
from oplog.archive.format.container import decode_container
from oplog.archive.format.path import LOG, parse_head
from oplog.errors import (
    ArchiveLagError,
    ChainBrokenError,
    ForeignArchiveError,
    ForeignServerError,
    LogForkedError,
)
from tests.postgres.archived import (
    dump_all,
    dump_objects,
    open_memory,
    publish,
    reopen,
    restore_into,
)
from tests.postgres.replay_models import (
    HISTORY,
    Bench,
    Task,
    dump_tables,
    make_bench,
    write_history,
)
from tests.postgres.restored import dump_log, empty, make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def read_entries(bench: Bench) -> list[LoggedEntry]:
    with bench.engine.connect() as connection:
        return list(bench.log.read(connection))


def count_records(bench: Bench) -> int:
    return len({entry.position for entry in read_entries(bench)})


def add_task(number: int) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.add(Task(id=number, project="p", title=f"task {number}"))

    return work


def test_what_was_written_comes_back(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    report = bench.log.sync(bench.engine, archive)
    entries = read_entries(bench)
    assert report.entries == len(entries)
    assert report.sequence == count_records(bench) < len(entries)
    assert report.position == max(entry.position for entry in entries)
    restored = restore_into(target, reopen(archive))
    assert dump_all(target) == dump_all(bench)
    assert restored.sequence == report.sequence


def test_a_pass_with_nothing_new_writes_nothing(bench: Bench) -> None:
    archive = open_memory()
    assert bench.log.sync(bench.engine, archive).entries == 0
    assert dump_objects(archive) == {}
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    before = dump_objects(archive)
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 0
    assert dump_objects(archive) == before


def test_each_pass_adds_what_is_new(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    total = 0
    for work in HISTORY:
        bench.write(work)
        report = publish(bench.log, bench.engine, reopen(archive), page_entries=2)
        total += report.entries
        assert report.sequence == count_records(bench)
    assert total == len(read_entries(bench))
    restore_into(target, archive)
    assert dump_all(target) == dump_all(bench)


def test_a_restored_database_goes_on_writing_and_publishing(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    restore_into(target, reopen(archive))
    target.write(add_task(901))
    report = target.log.sync(target.engine, reopen(archive))
    assert (report.entries, report.generation) == (1, 0)
    # The first to publish has taken the archive over: the old database is a stranger there.
    bench.write(add_task(902))
    with pytest.raises(ForeignServerError, match="belongs to database"):
        bench.log.sync(bench.engine, reopen(archive))
    with bench.engine.connect() as connection:
        bench.log.incarnate(connection, replaces_original=True)
    # It may take it back; what was published meanwhile is not in it.
    with pytest.raises(LogForkedError) as caught:
        bench.log.sync(bench.engine, reopen(archive))
    assert caught.value.lost_count == 1
    assert caught.value.sequence == report.sequence
    assert "published from another database" in caught.value.hint


def test_a_fork_goes_on_in_a_new_generation(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    ends = [0]
    for work in HISTORY:
        bench.write(work)
        ends.append(bench.last_position())
    bench.log.sync(bench.engine, archive)
    through = ends[len(ends) // 2]
    restore_into(target, reopen(archive), through=through)
    target.write(add_task(903))
    with pytest.raises(LogForkedError):
        target.log.sync(target.engine, reopen(archive))
    report = target.log.sync(target.engine, reopen(archive), fork="fork")
    assert report.generation == 1
    assert report.lost > 0
    head = archive.read_head()
    assert head.fork is not None
    assert head.fork.last == count_records(bench)
    # Again and again nothing is new.
    assert target.log.sync(target.engine, reopen(archive)).entries == 0


def test_another_logs_archive_is_refused(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    bench.write(add_task(1))
    bench.log.sync(bench.engine, archive)
    # Both databases were made from one template, and so is their log's identity.
    target.tamper(
        "ALTER TABLE oplog.oplog_log DISABLE TRIGGER ALL",
        "UPDATE oplog.oplog_log SET log_id = gen_random_uuid()",
        "ALTER TABLE oplog.oplog_log ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    target.write(add_task(2))
    with pytest.raises(ForeignArchiveError, match="holds the log"):
        target.log.sync(target.engine, reopen(archive))


def test_small_segments_and_many_heads_yield_the_same_log(bench: Bench) -> None:
    write_history(bench)
    for _ in range(3):
        bench.write(add_task(random.randrange(10_000, 1_000_000)))
    one, many = open_memory(), open_memory()
    bench.log.sync(bench.engine, one)
    publish(bench.log, bench.engine, many, page_entries=1, segment_bytes=200)
    with bench.engine.connect() as connection:
        logs = [list(bench.log.open_source(a).iterate_sequence()) for a in (one, many)]
        del connection
    flat = [[record for page in pages for record in page.records] for pages in logs]
    assert flat[0] == flat[1]
    assert len(logs[1]) > len(logs[0])


def test_the_same_records_give_the_same_objects(bench: Bench) -> None:
    write_history(bench)
    names = []
    for _ in range(2):
        archive = open_memory()
        publish(bench.log, bench.engine, archive, page_entries=5)
        names.append({path for path in dump_objects(archive) if path.startswith(LOG)})
    assert names[0] == names[1]


def test_headers_are_readable_without_keys(bench: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    objects = dump_objects(archive)
    (path,) = [path for path in objects if path.startswith(LOG)]
    header = json.loads(decode_container(objects[path], b"oplogseg", what=path).header)
    assert header["first"] == 1
    assert header["last"] == archive.read_head().sequence
    assert [parse_head(p) for p in objects if p.startswith("HEAD/")] == [1]


def test_a_restore_from_a_snapshot_and_what_came_after(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    half = len(HISTORY) // 2
    for work in HISTORY[:half]:
        bench.write(work)
    first = bench.log.snapshot(bench.engine, archive)
    assert first.taken
    assert not bench.log.snapshot(bench.engine, reopen(archive)).taken
    for work in HISTORY[half:]:
        bench.write(work)
    second = bench.log.snapshot(bench.engine, reopen(archive))
    assert second.taken
    bench.write(add_task(904))
    bench.log.sync(bench.engine, reopen(archive))
    restore_into(target, reopen(archive))
    assert dump_all(target) == dump_all(bench)


def test_restores_at_every_position_equal_the_replay_there(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    for number, work in enumerate(HISTORY):
        bench.write(work)
        bench.log.sync(bench.engine, archive)
        if number % 4 == 3:
            bench.log.snapshot(bench.engine, archive)
    with bench.engine.connect() as connection:
        whole = dump_log(connection)
    for position in range(1, bench.last_position() + 1):
        with bench.engine.connect() as connection:
            report = bench.log.replay(connection, through=position)
            replayed = dump_tables(connection, "replayed")
            connection.rollback()
        restored = restore_into(target, reopen(archive), through=position)
        assert (restored.rows, restored.position, restored.digest) == (
            report.rows,
            report.position,
            report.digest,
        )
        with target.engine.connect() as connection:
            assert dump_tables(connection) == replayed
            restored_log = dump_log(connection)
            assert target.log.verify(connection).ok
        # Where each table has the position.
        for table, place in {"record": 0, "part": 0, "entry": 2, "token": 1, "outcome": 1}.items():
            expected = [row for row in whole[table] if row[place] <= position]
            assert restored_log[table] == expected, table
        empty(target)


def test_recovery_at_start_up(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    assert target.log.recover(archive, target.engine) is None
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    assert bench.log.recover(archive, bench.engine) is None
    target.engine.dispose()
    # A process that starts: no application has looked at the empty database before.
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    report = target.log.recover(archive, engine)
    assert report is not None
    assert dump_all(target) == dump_all(bench)
    assert target.log.recover(archive, target.engine) is None


def test_waiting_until_a_record_is_archived(bench: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    session = bench.sessions()
    with session.begin():
        session.add(Task(id=905, project="p", title="t"))
    receipts = bench.log.receipts(session)
    with pytest.raises(ArchiveLagError):
        bench.log.wait_until_archived(receipts, reopen(archive), timeout=0.05)
    report = bench.log.sync(bench.engine, archive)
    assert bench.log.wait_until_archived(receipts, reopen(archive)).sequence == report.sequence
    altered = dataclasses.replace(receipts[0], entry_hash=bytes(32))
    for wanted in ([altered], [altered, *receipts], [*receipts, altered]):
        with pytest.raises(ChainBrokenError):
            bench.log.wait_until_archived(wanted, reopen(archive))
    unknown = dataclasses.replace(receipts[0], entry_hash=b"")
    found = bench.log.wait_until_archived([unknown, *receipts], reopen(archive))
    assert str(found) == report.expect_at_least
