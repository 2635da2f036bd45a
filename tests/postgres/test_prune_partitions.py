"""Partitions that go as a whole: when they do, when they do not, and that nothing else goes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive, Outcome
from oplog.backoff import Backoff
from oplog.errors import ChainBrokenError, ConflictError, PrunedError
from oplog.upkeep import partition_drop
from oplog.upkeep.prune import PruneReport, PruneStep
from tests.concurrency.workload import waiting_for_lock
from tests.partitioned import list_firsts, shrink_partitions
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import (
    ask_everything,
    list_positions,
    open_plain,
    prune_small,
    sync,
    write_anything,
)
from tests.postgres.replay_models import Bench, Task, make_bench
from tests.postgres.restored import dump_log

pytestmark = pytest.mark.postgres

POSITIONS = 8
SOON = Backoff(first_seconds=0.01, jitter=0, deadline_seconds=0.02)
"""Gives up after two or three attempts."""


@pytest.fixture
def bench(engine: Engine) -> Bench:
    bench = make_bench(engine)
    shrink_partitions(open_plain(engine), POSITIONS)
    return bench


def maintain(bench: Bench) -> None:
    bench.log.maintain(open_plain(bench.engine))


def add_task(bench: Bench, number: int, *, title: str = "t", key: str | None = None) -> None:
    maintain(bench)
    with bench.sessions.begin() as session:
        bench.log.annotate(session, idempotency_key=key, actor="ann")
        session.add(Task(id=number, project=f"project {number % 3}", title=title))


def fill(bench: Bench, count: int = 20, **settings: int) -> Archive:
    """So many records at positions from 1 on, all of them published."""
    for number in range(1, count + 1):
        add_task(bench, number, key=f"key {number}" if number % 4 == 0 else None)
    archive = open_memory()
    sync(bench, archive, **settings)
    return archive


def prune(bench: Bench, archive: Archive, **options: object) -> PruneReport:
    return prune_small(bench, archive, **{"pauses": SOON, **options})


def count(bench: Bench, table: str) -> int:
    with open_plain(bench.engine).connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM oplog.{table}").scalar_one())


def name_tables(*numbers: int) -> list[str]:
    """The tables of these partitions, in the order in which they go."""
    tables = ("record", "part", "token")
    return [f"oplog.oplog_{table}_p{number}" for number in numbers for table in tables]


def verify(bench: Bench, archive: Archive) -> None:
    """The whole log is there, in the archive and here; and what is here fits together."""
    with open_plain(bench.engine).connect() as connection:
        assert bench.log.verify(connection, archive=reopen(archive)).ok
        assert bench.log.store.list_broken_links(connection) == []


@contextmanager
def watching() -> Iterator[list[str]]:
    """Statements of every connection that is made in the block."""
    statements: list[str] = []

    def see(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    sa.event.listen(Engine, "before_cursor_execute", see)
    try:
        yield statements
    finally:
        sa.event.remove(Engine, "before_cursor_execute", see)


# -- what goes ----------------------------------------------------------------------------


def test_partitions_of_which_all_goes_are_dropped(bench: Bench) -> None:
    archive = fill(bench)
    assert list_firsts(bench.engine) == [0, 8, 16, 24]
    with open_plain(bench.engine).connect() as connection:
        heads = dump_log(connection)["head"]
    report = prune(bench, archive)
    assert report.dropped == tuple(name_tables(0, 1))
    assert (report.entries, report.kept, report.total_entries) == (20, 5, 20)
    assert (report.through_sequence, report.through_position) == (20, 20)
    # The next record goes into the third, of which all is gone as well.
    assert list_firsts(bench.engine) == [16, 24]
    for table in ("record", "part", "token"):
        assert count(bench, f"oplog_{table}") == 0, table
    with open_plain(bench.engine).connect() as connection:
        assert dump_log(connection)["head"] == heads
    verify(bench, archive)
    for number in (21, 22, 23, 24):
        add_task(bench, number)
    verify(bench, archive)
    sync(bench, archive)
    assert prune(bench, archive).dropped == tuple(name_tables(2))
    verify(bench, archive)
    plain = open_plain(bench.engine)
    for number in (4, 8, 20):
        assert len(bench.log.inquire(f"key {number}", plain).receipts) == 1
    assert bench.log.resolve("key 5", plain) is Outcome.ABORTED


def test_no_record_of_a_dropped_partition_is_deleted(bench: Bench) -> None:
    archive = fill(bench, 23, page_entries=1000, segment_bytes=1 << 20)
    with watching() as statements:
        assert prune(bench, archive).dropped == tuple(name_tables(0, 1, 2))
    for table in ("record", "part", "token"):
        deleting = f'DELETE FROM "oplog".oplog_{table}'
        assert not [one for one in statements if one.startswith(deleting)], table
    assert len([one for one in statements if one.startswith("DROP TABLE")]) == 1
    assert count(bench, "oplog_pruned") == 1


def test_a_record_of_several_parts_goes_with_its_partition(bench: Bench) -> None:
    title = random.Random(1).randbytes(200_000).hex()
    add_task(bench, 1)
    maintain(bench)
    bench.write(
        lambda s: s.add_all(Task(id=n, project=f"{n}", title=title[n:]) for n in range(10, 13))
    )
    assert count(bench, "oplog_part") > 0
    archive = fill_more(bench)
    assert prune(bench, archive).dropped[:3] == tuple(name_tables(0))
    assert count(bench, "oplog_part") == 0
    verify(bench, archive)


def fill_more(bench: Bench) -> Archive:
    for number in range(100, 110):
        add_task(bench, number)
    archive = open_memory()
    sync(bench, archive)
    return archive


def test_what_was_pruned_before_is_no_obstacle(bench: Bench) -> None:
    archive = fill(bench, 5)
    report = prune(bench, archive)
    assert (report.dropped, report.entries) == ((), 5)
    for number in range(6, 18):
        add_task(bench, number)
    sync(bench, archive)
    assert prune(bench, archive).dropped == tuple(name_tables(0, 1))
    verify(bench, archive)


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_stays(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    archive = open_memory()
    moments = []
    for _ in range(3):
        for _ in range(9):
            maintain(bench)
            key = f"key {chance.random()}" if chance.random() < 0.3 else None
            with bench.sessions() as session:
                bench.log.annotate(session, idempotency_key=key, actor=chance.choice("xy"))
                write_anything(session, chance)
                session.commit()
        sync(bench, archive)
        moments.append(bench.last_position())
    before = ask_everything(bench, moments)
    report = prune(bench, archive)
    assert len(report.dropped) >= 9
    assert ask_everything(bench, moments, archive=reopen(archive)) == before


def test_a_dry_run_drops_nothing_and_says_the_same(bench: Bench) -> None:
    archive = fill(bench)
    with open_plain(bench.engine).connect() as connection:
        before = dump_log(connection)
    said = prune(bench, archive, dry_run=True)
    with open_plain(bench.engine).connect() as connection:
        assert dump_log(connection) == before
    assert said.dropped == ()
    done = prune(bench, archive)
    assert done.to_json() == {**said.to_json(), "dropped": done.dropped}


# -- what does not ------------------------------------------------------------------------


def test_something_in_it_that_is_not_archived(bench: Bench) -> None:
    """A transaction that took its position early, and commits after all others were published."""
    hold = "BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END"
    bench.tamper(
        f"CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ {hold} $$",
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON task DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW WHEN (NEW.title = 'slow') EXECUTE FUNCTION hold()",
    )
    add_task(bench, 1)
    slow = threading.Thread(
        target=lambda: bench.write(lambda s: s.add(Task(id=99, project="slow", title="slow")))
    )
    with open_plain(bench.engine).begin() as gate:
        gate.exec_driver_sql("SELECT pg_advisory_xact_lock(42)")
        with waiting_for_lock(bench.engine):
            slow.start()
        archive = open_memory()
        for number in range(3, 20):
            add_task(bench, number)
        sync(bench, archive)
    slow.join()
    assert 2 in list_positions(bench)
    report = prune(bench, archive)
    assert report.dropped == tuple(name_tables(1))
    assert list_positions(bench) == [2]
    verify(bench, archive)
    sync(bench, archive)
    assert prune(bench, archive).dropped == tuple(name_tables(0))
    verify(bench, archive)


def test_somebody_who_still_writes_into_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = fill(bench)
    monkeypatch.setattr(partition_drop, "_PATIENCE_MILLISECONDS", 100)
    with open_plain(bench.engine).begin() as writer:
        writer.exec_driver_sql("LOCK TABLE ONLY oplog.oplog_part_p0 IN ROW EXCLUSIVE MODE")
        report = prune(bench, archive)
    assert report.dropped == tuple(name_tables(1))
    assert report.entries == 20
    assert list_positions(bench) == []
    assert list_firsts(bench.engine) == [0, 16, 24]
    assert prune(bench, archive).dropped == tuple(name_tables(0))
    verify(bench, archive)


def test_nobody_writes_into_what_was_counted(bench: Bench) -> None:
    archive = fill(bench)
    engine = open_plain(bench.engine)
    refused: list[str] = []

    def reach(step: PruneStep) -> None:
        # Between the count and the drop.
        if step is PruneStep.COMPARED and not refused:
            with engine.connect() as connection:
                connection.exec_driver_sql("SET lock_timeout = '50ms'")
                with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                    connection.exec_driver_sql("INSERT INTO oplog.oplog_token VALUES (1, 3)")
            refused.append("p0")
            # Elsewhere life goes on.
            add_task(bench, 99)

    assert prune(bench, archive, reach=reach).dropped == tuple(name_tables(0, 1))
    assert refused == ["p0"]
    verify(bench, archive)


def test_somebody_who_reads(bench: Bench) -> None:
    """He is not disturbed: records are deleted, and the tables dropped another time."""
    archive = fill(bench)
    engine = open_plain(bench.engine)
    before = ask_everything(bench, [])
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reading = bench.log.read(reader)
        first = next(reading)
        report = prune(bench, archive)
        assert (report.dropped, report.entries) == ((), 20)
        assert len([first, *reading]) == 20
    assert list_firsts(bench.engine) == [0, 8, 16, 24]
    assert ask_everything(bench, [], archive=reopen(archive)) == before
    assert prune(bench, archive).dropped == tuple(name_tables(0, 1))
    verify(bench, archive)


def test_somebody_who_reads_for_a_moment(bench: Bench) -> None:
    archive = fill(bench)
    reader = open_plain(bench.engine).connect()
    reader.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record")

    def end(_: float) -> None:
        reader.close()

    report = prune(bench, archive, pauses=Backoff(sleep=end))
    assert report.dropped == tuple(name_tables(0, 1))
    verify(bench, archive)


@pytest.mark.parametrize(
    "extra",
    [
        "INSERT INTO oplog.oplog_token VALUES (1, 3)",
        "INSERT INTO oplog.oplog_part VALUES (3, 1, 0, 'x')",
    ],
)
def test_rows_that_nothing_was_compared_with(bench: Bench, extra: str) -> None:
    archive = fill(bench)
    bench.tamper(extra)
    report = prune(bench, archive)
    # Deleted with the record at their position, as any other of its rows.
    assert report.dropped == tuple(name_tables(1, 0))
    assert report.entries == 20
    verify(bench, archive)


def test_rows_of_no_record_stay_with_their_partition(bench: Bench) -> None:
    for number in range(1, 3):
        add_task(bench, number)
    # A position that was never used.
    bench.tamper("SELECT nextval('oplog.oplog_position_seq')")
    for number in range(4, 20):
        add_task(bench, number)
    archive = open_memory()
    sync(bench, archive)
    bench.tamper("INSERT INTO oplog.oplog_token VALUES (1, 3)")
    assert prune(bench, archive).dropped == tuple(name_tables(1))
    assert list_firsts(bench.engine)[0] == 0
    assert count(bench, "oplog_token_p0") == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("UPDATE oplog.oplog_record SET record_hash = sha256(data)", "is another one than"),
        ("DELETE FROM oplog.oplog_record", "is not in the database"),
    ],
)
def test_a_row_that_is_not_what_the_archive_has(bench: Bench, change: str, match: str) -> None:
    archive = fill(bench)
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"{change} WHERE position = 5",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    with pytest.raises(ChainBrokenError, match=match):
        prune(bench, archive)
    assert list_firsts(bench.engine) == [0, 8, 16, 24]
    assert count(bench, "oplog_pruned") == 0


def test_a_consumer_that_has_not_seen_it(bench: Bench) -> None:
    archive = fill(bench)
    consumer = bench.log.subscribe(open_plain(bench.engine), name="mail", max_entries=2)
    batches = iter(consumer)
    next(batches).commit()
    for _ in range(2):
        with pytest.raises(ConflictError, match="'mail'"):
            prune(bench, archive, batch_entries=100)
        assert list_firsts(bench.engine) == [0, 8, 16, 24]
        assert len(list_positions(bench)) == 20
        next(batches).commit()
    for batch in batches:
        batch.commit()
    assert prune(bench, archive).dropped == tuple(name_tables(0, 1))


def test_a_consumer_that_begins_anew_while_it_is_compared(bench: Bench) -> None:
    """After every batch was compared, and before the partitions are closed."""
    archive = fill(bench)
    for batch in bench.log.subscribe(open_plain(bench.engine), name="mail"):
        batch.commit()
    plain = open_plain(bench.engine)
    with plain.connect() as connection:
        cursor = connection.exec_driver_sql("SELECT cursor FROM oplog.oplog_consumer").scalar_one()

    seen: list[str] = []

    def see(*arguments: object) -> None:
        if str(arguments[2]).startswith("LOCK TABLE") and not seen:
            seen.append(str(arguments[2]))
            bench.tamper(
                "UPDATE oplog.oplog_consumer SET cursor = jsonb_set(cursor, '{snapshot}', 'null')"
            )

    sa.event.listen(Engine, "before_cursor_execute", see)
    try:
        with pytest.raises(ConflictError, match="'mail'"):
            prune(bench, archive)
    finally:
        sa.event.remove(Engine, "before_cursor_execute", see)
    assert cursor["snapshot"] is not None
    assert len(seen) == 1
    assert len(list_positions(bench)) == 20


# -- snapshots from before ----------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
def test_an_old_snapshot_does_not_miss_records_in_silence(bench: Bench, joined: bool) -> None:
    """A dropped table is gone for every snapshot."""
    archive = fill(bench)
    given: dict[str, Any] = {"archive": reopen(archive)} if joined else {}
    engine = open_plain(bench.engine).execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        # The snapshot is taken, and the log was not touched.
        connection.exec_driver_sql("SELECT 1")
        assert prune(bench, archive).dropped == tuple(name_tables(0, 1))
        with pytest.raises(ConflictError, match="pruned after this transaction began") as caught:
            bench.log.verify(connection, **given)
        assert "new transaction" in caught.value.hint
        connection.rollback()
        if joined:
            assert bench.log.verify(connection, **given).ok
        else:
            with pytest.raises(PrunedError):
                bench.log.verify(connection)


# -- interrupted, and beside others -------------------------------------------------------


def test_an_interrupted_run_is_run_again(bench: Bench) -> None:
    archive = fill(bench)
    before = ask_everything(bench, [])

    class _StopError(Exception):
        pass

    for step in (PruneStep.COMPARED, PruneStep.DECLARED, PruneStep.REMOVED):

        def reach(reached: PruneStep, step: PruneStep = step) -> None:
            if reached is step:
                raise _StopError

        with pytest.raises(_StopError):
            prune(bench, archive, reach=reach)
        assert list_firsts(bench.engine) == [0, 8, 16, 24]
        assert count(bench, "oplog_pruned") == 0
        assert ask_everything(bench, []) == before

    def stop(reached: PruneStep) -> None:
        if reached is PruneStep.COMMITTED:
            raise _StopError

    with pytest.raises(_StopError):
        prune(bench, archive, reach=stop)
    assert list_firsts(bench.engine)[0] == 8
    assert ask_everything(bench, [], archive=reopen(archive)) == before
    assert prune(bench, archive).total_entries == 20
    assert ask_everything(bench, [], archive=reopen(archive)) == before


def test_one_at_a_time(bench: Bench) -> None:
    archive = fill(bench)

    def reach(step: PruneStep) -> None:
        if step is PruneStep.DECLARED:
            with pytest.raises(ConflictError, match="another process is pruning"):
                prune(bench, archive)

    assert prune(bench, archive, reach=reach).entries == 20


def test_beside_writers_and_a_publisher(bench: Bench) -> None:
    archive = open_memory()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(30):
                add_task(bench, number * 1000 + turn)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    dropped: list[str] = []
    alive = True
    while alive:
        alive = any(thread.is_alive() for thread in threads)
        sync(bench, archive)
        if archive.find_head() is not None:
            dropped += prune(bench, archive, batch_entries=10, pauses=Backoff()).dropped
            verify(bench, archive)
    for thread in threads:
        thread.join()
    assert errors == []
    assert list_positions(bench) == []
    assert dropped == name_tables(*range(len(dropped) // 3))
    assert len(dropped) >= 3 * 9
    with open_plain(bench.engine).connect() as connection:
        entries = connection.exec_driver_sql("SELECT max(entries) FROM oplog.oplog_pruned")
        assert entries.scalar_one() == 90
