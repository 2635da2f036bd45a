"""An archive of every kind of object, and what may happen to it."""

from __future__ import annotations

import random

from sqlalchemy.orm import Session

from oplog import Archive
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.upkeep.problem import ArchiveProblem, ArchiveReport
from tests.postgres.archived import dump_objects, publish
from tests.postgres.replay_models import HISTORY, Bench, Task


def fill(bench: Bench, archive: Archive, *, snapshots: bool = True) -> None:
    """Many segments, an index, types, two snapshots that share chunks, a pin."""
    for place, work in enumerate(HISTORY):
        bench.write(work)
        if place % 3 == 0:
            publish(bench.log, bench.engine, archive, page_entries=1, segment_bytes=300)
        if snapshots and place in {4, 8}:
            bench.log.snapshot(bench.engine, archive)
    publish(bench.log, bench.engine, archive, page_entries=1, segment_bytes=300)
    bench.log.pin(archive, "first")


def add_task(session: Session) -> None:
    """One more record, whenever."""
    session.add(Task(id=random.randrange(10_000, 1_000_000_000), project="p", title="t"))


def rebuild(objects: dict[str, bytes]) -> Archive:
    """A store with these objects, as somebody finds it who has seen nothing before."""
    store = MemoryStore("test")
    for path, data in objects.items():
        store.put(path, data)
    return Archive(store, verdict=Verdict.ATOMIC)


def copy(archive: Archive) -> dict[str, bytes]:
    """All objects, by path."""
    return dump_objects(archive)


def harmful(report: ArchiveReport) -> list[ArchiveProblem]:
    """What does harm."""
    return [problem for problem in report.problems if not problem.harmless]


def named(report: ArchiveReport) -> set[str]:
    """The objects that something is wrong with."""
    return {problem.path for problem in report.problems}


def read_row(bench: Bench) -> str:
    """What the database knows of its archive."""
    with bench.engine.connect() as connection:
        found: str = connection.exec_driver_sql(
            "SELECT a::text FROM oplog.oplog_archive a"
        ).scalar_one()
    return found


def write_row(bench: Bench, row: str) -> None:
    """Let the database know what it knew before."""
    with bench.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM oplog.oplog_archive")
        connection.exec_driver_sql(
            "INSERT INTO oplog.oplog_archive SELECT (%s::oplog.oplog_archive).*", (row,)
        )
