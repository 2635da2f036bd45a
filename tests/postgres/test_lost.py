"""After a database lost what was published: looked at, left behind, done again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import Archive, LoggedEntry
from oplog.errors import ConfigurationError
from oplog.recovery.lost import REPLAYED
from tests.postgres.archived import open_memory, reopen, restore_into
from tests.postgres.replay_models import Bench, Task, dump_tables, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres

Work = Callable[[Session], None]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def add(*numbers: int) -> Work:
    def work(session: Session) -> None:
        session.add_all(Task(id=n, project="p", title=f"t{n}") for n in numbers)

    return work


def rename(number: int, title: str) -> Work:
    def work(session: Session) -> None:
        session.get_one(Task, number).title = title

    return work


def remove(number: int) -> Work:
    def work(session: Session) -> None:
        session.delete(session.get_one(Task, number))

    return work


def titles(bench: Bench) -> dict[int, str | None]:
    with bench.sessions() as session:
        return {task.id: task.title for task in session.query(Task)}


def read(bench: Bench) -> list[LoggedEntry]:
    with bench.engine.connect() as connection:
        return list(bench.log.read(connection))


@pytest.fixture
def archive_of_lost(bench: Bench, target: Bench) -> Archive:
    """An archive; of five transactions in it the target has the first two."""
    archive = open_memory()
    bench.write(add(1, 2))
    bench.write(add(3))
    through = bench.last_position()
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor="ann", reason=["a", "b"])
        session.get_one(Task, 1).title = "renamed"
    bench.write(add(4))
    bench.write(remove(3))
    bench.log.sync(bench.engine, archive)
    restore_into(target, reopen(archive), through=through)
    return archive


def test_what_was_lost_is_listed(target: Bench, archive_of_lost: Archive) -> None:
    report = target.log.inspect_fork(target.engine, reopen(archive_of_lost))
    assert report.forked
    assert (report.common_sequence, report.lost_count, report.sequence) == (2, 3, 5)
    assert [one.sequence for one in report.lost] == [3, 4, 5]
    assert report.branches == []


def test_what_was_lost_is_done_again_once(target: Bench, archive_of_lost: Archive) -> None:
    assert set(titles(target)) == {1, 2, 3}
    report = target.log.replay_lost(target.engine, reopen(archive_of_lost))
    assert (report.replayed, report.refused, report.generation) == (3, [], 0)
    assert titles(target) == {1: "renamed", 2: "t2", 4: "t4"}
    again = [entry for entry in read(target) if REPLAYED in entry.metadata]
    assert [entry.metadata[REPLAYED] for entry in again] == [["0/3"], ["0/4"], ["0/5"]]
    assert again[0].metadata["actor"] == ["ann"]
    assert again[0].metadata["reason"] == ["a", "b"]
    count = len(read(target))
    assert target.log.replay_lost(target.engine, reopen(archive_of_lost)).replayed == 3
    assert len(read(target)) == count
    with target.engine.connect() as connection:
        assert target.log.verify(connection).ok


def test_what_does_not_fit_any_more_is_left_alone(target: Bench, archive_of_lost: Archive) -> None:
    target.write(remove(1))
    target.write(add(4))
    report = target.log.replay_lost(target.engine, reopen(archive_of_lost))
    # All tasks of a project are one aggregate: what was decided on it as it was is all in doubt.
    assert [one.sequence for one in report.refused] == [3, 4, 5]
    assert "'project/p': version 4 was written since" in report.refused[0].reason
    assert "goes on from sequence 3, which was not done again" in report.refused[1].reason
    assert titles(target) == {2: "t2", 3: "t3", 4: "t4"}
    assert report.replayed == 0


def test_the_lost_branch_stays_readable(
    bench: Bench, target: Bench, archive_of_lost: Archive
) -> None:
    target.write(add(9))
    target.log.sync(target.engine, reopen(archive_of_lost), fork="fork")
    target.write(add(10))
    target.log.sync(target.engine, reopen(archive_of_lost))
    source = target.log.open_branch(reopen(archive_of_lost))
    lost = [record for page in source.iterate_sequence(after=2) for record in page.records]
    assert [one.record_hash for one in lost] == [one.entry_hash for one in read(bench)[2:]]
    foreseen = target.log.replay_lost(target.engine, reopen(archive_of_lost), dry_run=True)
    assert [one.sequence for one in foreseen.refused] == [3, 4, 5]
    report = target.log.inspect_fork(target.engine, reopen(archive_of_lost))
    assert (report.forked, report.generation) == (False, 1)
    assert [branch.last for branch in report.branches] == [5]


def test_the_new_generation_restores(bench: Bench, target: Bench, archive_of_lost: Archive) -> None:
    target.write(add(9))
    target.log.sync(target.engine, reopen(archive_of_lost), fork="fork")
    with target.engine.connect() as connection:
        live = dump_tables(connection)
        source = target.log.open_source(reopen(archive_of_lost))
        reader = target.log.open_reader(connection, source=source)
        records = [one.stored.record_hash for one in reader.iterate_records(source.read_snapshot())]
    assert records == [entry.entry_hash for entry in read(target)]
    assert live["task"]


def test_without_a_fork_there_is_no_branch(bench: Bench) -> None:
    archive = open_memory()
    bench.write(add(1))
    bench.log.sync(bench.engine, archive)
    assert not bench.log.inspect_fork(bench.engine, archive).forked
    with pytest.raises(ConfigurationError, match="no lost branch"):
        bench.log.open_branch(archive)
