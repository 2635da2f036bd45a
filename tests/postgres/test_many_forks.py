"""An archive that keeps as many lost branches as a head can name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.archive.format.head import MAX_BRANCHES, MAX_SNAPSHOTS, Head
from oplog.errors import ConfigurationError, ManifestInvalidError
from oplog.sync.head_update import publish_update
from tests.postgres.archived import dump_objects, open_memory, reopen, restore_into
from tests.postgres.keeping import add_task, harmful
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def fork(bench: Bench, target: Bench, archive: Archive) -> None:
    """A drill that publishes: the restored database takes the archive over without a record."""
    bench.write(add_task)
    through = bench.last_position()
    bench.write(add_task)
    bench.log.sync(bench.engine, archive)
    restore_into(target, reopen(archive), through=through)
    target.write(add_task)
    assert target.log.sync(target.engine, archive, fork="fork").lost == 1


def fill_branches(bench: Bench, archive: Archive, count: int) -> None:
    """As after so many forks: copies of the branch that there is, of generations before it."""

    def add(connection: object, head: Head, publisher: object) -> Head:
        del connection, publisher
        (branch,) = head.branches
        copies = [replace(branch, generation=number) for number in range(count - 1)]
        newest = replace(branch, generation=count - 1)
        return replace(head, generation=count, branches=(*copies, newest))

    assert publish_update(bench.log.make_exporter(archive), bench.engine, add)


def lose_again(target: Bench, archive: Archive) -> None:
    """The database forgets its newest record, which is published."""
    target.log.sync(target.engine, archive)
    with target.engine.begin() as connection:
        for name in ("oplog_record", "oplog_archive"):
            connection.exec_driver_sql(f"ALTER TABLE oplog.{name} DISABLE TRIGGER USER")
        connection.exec_driver_sql(
            "DELETE FROM oplog.oplog_record WHERE position = "
            "(SELECT max(position) FROM oplog.oplog_record)"
        )
        # Else the receipt, which a server that forgot the record does not have, would vouch for it.
        connection.exec_driver_sql("DELETE FROM oplog.oplog_archive")


def test_a_full_list_is_refused_before_anything_is_written(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    fork(bench, target, archive)
    fill_branches(target, archive, MAX_BRANCHES)
    target.write(add_task)
    lose_again(target, archive)
    before = dump_objects(archive)
    with pytest.raises(ConfigurationError, match="keeps 100 lost branches") as caught:
        target.log.sync(target.engine, reopen(archive), fork="fork")
    assert "oplog fork retire --through" in str(caught.value.hint)
    assert dump_objects(archive) == before
    # Readers read on, and the way out leads out.
    assert reopen(archive).read_head().generation == MAX_BRANCHES
    report = target.log.retire_branches(target.engine, reopen(archive), through=41)
    assert (report.generations, report.records, report.kept) == (tuple(range(42)), 42, 58)
    assert target.log.sync(target.engine, reopen(archive), fork="fork").lost == 1
    head = reopen(archive).read_head()
    assert [branch.generation for branch in head.branches] == list(range(42, MAX_BRANCHES + 1))


def test_what_only_a_retired_branch_had_is_collected(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    fork(bench, target, archive)
    (branch,) = archive.read_head().branches
    kept = {item.path for row in archive.read_head().levels for item in row}
    (lost,) = {item.path for row in branch.levels for item in row} - kept
    foreseen = target.log.retire_branches(target.engine, archive, through=0, dry_run=True)
    assert (foreseen.generations, foreseen.records, foreseen.dry_run) == ((0,), 1, True)
    assert archive.read_head().branches != ()
    target.log.retire_branches(target.engine, archive, through=0)
    assert archive.read_head().branches == ()
    assert lost in dump_objects(archive)
    assert harmful(target.log.check(reopen(archive), target.engine)) == []
    with pytest.raises(ConfigurationError, match="no lost branch of generation 5 or before"):
        target.log.retire_branches(target.engine, archive, through=5)


def test_a_head_that_could_not_be_read_is_not_written(bench: Bench) -> None:
    """Whatever made it: no head could come after it."""
    archive = open_memory()
    bench.write(add_task)
    bench.log.snapshot(bench.engine, archive)
    before = dump_objects(archive)

    def overfill(connection: object, head: Head, publisher: object) -> Head:
        del connection, publisher
        return replace(head, snapshots=head.snapshots * 2)

    exporter = bench.log.make_exporter(reopen(archive))
    with pytest.raises(ManifestInvalidError, match="not in order"):
        publish_update(exporter, bench.engine, overfill)
    assert dump_objects(archive) == before


def test_a_full_list_of_snapshots_stops_only_snapshots(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_SNAPSHOTS > 1
    monkeypatch.setattr("oplog.snapshot.publishing.MAX_SNAPSHOTS", 1)
    archive = open_memory()
    bench.write(add_task)
    bench.log.snapshot(bench.engine, archive)
    bench.write(add_task)
    with pytest.raises(ConfigurationError, match="has 1 snapshots") as caught:
        bench.log.snapshot(bench.engine, archive)
    assert "oplog collect --keep-snapshots" in str(caught.value.hint)
    assert archive.read_head().sequence == 2
