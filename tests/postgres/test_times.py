"""Places given as times, in a log whose clock was set back and forth."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from oplog.store.records import read_records
from oplog.store.rows import StoredRecord, compute_hash
from tests.postgres.archived import open_memory, restore_into
from tests.postgres.replay_models import Bench, Task, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres

YEAR = timedelta(days=366)


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def write(bench: Bench, *shifts: timedelta) -> list[StoredRecord]:
    """A transaction for each shift of the clock, with a row and an aggregate of its own."""
    positions = []
    for number in range(1, len(shifts) + 1):
        with bench.sessions.begin() as session:
            session.add(Task(id=number, project=f"p{number}"))
        positions.append(bench.last_position())
    with bench.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL")
        records = []
        for record, shift in zip(read_records(connection, "oplog", positions), shifts, strict=True):
            moved = record._replace(recorded_at=record.recorded_at + shift)
            moved = moved._replace(record_hash=compute_hash(moved) or b"")
            connection.exec_driver_sql(
                "UPDATE oplog.oplog_record SET created_at = %s, record_hash = %b "
                "WHERE position = %s",
                (moved.recorded_at, moved.record_hash, moved.position),
            )
            records.append(moved)
        connection.exec_driver_sql("ALTER TABLE oplog.oplog_record ENABLE TRIGGER ALL")
    return records


def look(bench: Bench, at: datetime) -> dict[str, list[int]]:
    """The tasks that there were then, by each way to ask."""
    archive = open_memory()
    bench.log.sync(bench.engine, archive)
    with bench.engine.connect() as connection:
        seen = {
            "read": [o for e in bench.log.read(connection, through=at) for o in e.operations],
            "tail": [o for e in bench.log.tail(connection, through=at) for o in e.operations],
            "both": [
                o
                for e in bench.log.read(connection, through=at, archive=archive)
                for o in e.operations
            ],
            "archive": [
                o for e in bench.log.read(None, through=at, archive=archive) for o in e.operations
            ],
        }
        found = {way: [int(o.key["id"]) for o in told] for way, told in seen.items()}
        for way, source in {"as_of": None, "as_of an archive": archive}.items():
            found[way] = [
                key
                for key in (1, 2, 3)
                if bench.log.as_of(connection, Task, key=key, at=at, archive=source) is not None
            ]
        connection.rollback()
        bench.log.replay(connection, through=at)
        rows = connection.exec_driver_sql("SELECT id FROM replayed.task ORDER BY 1").scalars()
        found["replay"] = list(rows)
    return found


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        # A record from the past, after one that is younger: nothing is seen before its cause.
        ((0, 0, -1), {-1: [], 0: [1, 2, 3]}),
        # A record from the future: what comes after it waits for it.
        ((0, 1, 0), {-1: [], 0: [1], 1: [1, 2, 3]}),
        ((1, 0, 0), {0: [], 1: [1, 2, 3]}),
        ((-1, 1, -1), {-1: [1], 0: [1], 1: [1, 2, 3]}),
    ],
)
def test_nothing_is_seen_that_is_younger(
    bench: Bench, shifts: tuple[int, ...], expected: dict[int, list[int]]
) -> None:
    records = write(bench, *(YEAR * shift for shift in shifts))
    now = records[-1].recorded_at - YEAR * shifts[-1]
    for years, ids in expected.items():
        found = look(bench, now + YEAR * years)
        assert found == dict.fromkeys(found, ids), years


def test_a_restore_of_a_time_has_nothing_younger(bench: Bench, spare_engine: Engine) -> None:
    archive = open_memory()
    one, _, three = write(bench, timedelta(0), YEAR, timedelta(0))
    bench.log.sync(bench.engine, archive)
    target = make_target(spare_engine, bench)
    report = restore_into(target, archive, through=three.recorded_at)
    assert report.position == one.position
    with target.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM task").scalars().all() == [1]
