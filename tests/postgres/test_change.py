"""Heads that hold something else than new entries: on the newest head, acknowledged, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog.archive.format.head import Head
from oplog.errors import ForeignServerError, LeaseHeldError
from oplog.store.export import Lease
from oplog.sync.head_update import publish_update
from oplog.sync.publisher import Publisher
from tests.postgres.archived import dump_objects, open_memory, reopen, restore_into
from tests.postgres.keeping import read_row, write_row
from tests.postgres.replay_models import Bench, Task, make_bench, write_history
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def add_task(number: int) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.add(Task(id=number, project="p", title=f"task {number}"))

    return work


def mark(_: Connection, head: Head, __: Publisher) -> Head:
    return replace(head, first_sequence=1)


def test_a_change_is_a_head_and_a_receipt(bench: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    before = archive.read_head()
    bench.write(add_task(801))
    head = publish_update(bench.log.make_exporter(reopen(archive)), bench.engine, mark)
    assert head == reopen(archive).read_head()
    assert (head.number, head.sequence) == (before.number + 1, before.sequence)
    # What was new is still new, and published once.
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 1
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 0


def test_with_catch_up_the_change_sees_everything(bench: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    exporter = bench.log.make_exporter(archive, page_entries=3)
    seen: list[int] = []

    def note(connection: Connection, head: Head, _: Publisher) -> Head:
        count = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record").scalar_one()
        seen.extend((head.sequence, count))
        return head

    head = publish_update(exporter, bench.engine, note, catch_up=True)
    assert head is not None
    assert seen[0] == seen[1] == head.sequence
    assert head.types is not None
    assert bench.log.sync(bench.engine, reopen(archive)).entries == 0


def test_no_change_no_head(bench: Bench) -> None:
    archive = open_memory()
    exporter = bench.log.make_exporter(archive)
    assert publish_update(exporter, bench.engine, mark) is None
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    before = dump_objects(archive)
    assert publish_update(exporter, bench.engine, lambda *_: None) is None
    assert dump_objects(archive) == before


@pytest.mark.parametrize("catch_up", [False, True])
def test_a_lost_receipt_makes_no_record_appear_twice(bench: Bench, catch_up: bool) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    row = read_row(bench)
    bench.write(add_task(802))
    bench.log.sync(bench.engine, archive)
    write_row(bench, row)
    bench.write(add_task(803))
    exporter = bench.log.make_exporter(reopen(archive))
    publish_update(exporter, bench.engine, mark, catch_up=catch_up)
    bench.log.sync(bench.engine, reopen(archive))
    pages = list(bench.log.open_source(reopen(archive)).iterate_sequence())
    positions = [record.position for page in pages for record in page.records]
    assert len(positions) == len(set(positions)) == archive.read_head().sequence
    with bench.engine.connect() as connection:
        logged = list(bench.log.read(connection))
    assert positions == sorted({entry.position for entry in logged})
    assert sum(len(r.aggregates) for page in pages for r in page.records) == len(logged)


def test_another_publisher_goes_first(bench: Bench) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    exporter = bench.log.make_exporter(archive)
    with bench.engine.connect() as connection, connection.begin():
        archive_id = archive.read_head().archive_id
        assert exporter.store.try_lease(connection, archive_id) is Lease.OURS
        with pytest.raises(LeaseHeldError):
            publish_update(exporter, bench.engine, mark)


def test_a_superseded_database_changes_nothing(bench: Bench, spare_engine: Engine) -> None:
    archive = open_memory()
    write_history(bench)
    bench.log.sync(bench.engine, archive)
    target = make_target(spare_engine, bench)
    restore_into(target, reopen(archive))
    target.write(add_task(901))
    target.log.sync(target.engine, reopen(archive))
    before = dump_objects(archive)
    with pytest.raises(ForeignServerError):
        publish_update(bench.log.make_exporter(reopen(archive)), bench.engine, mark)
    assert dump_objects(archive) == before
