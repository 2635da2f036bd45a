"""Restore is replay: what comes back is the source, row for row and chain for chain."""

from __future__ import annotations

import datetime as dt
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog.entry import PART_BYTES
from oplog.recovery import RestoreReport
from oplog.schema.locks import PARTITIONS_LOCK
from oplog.schema.partitions import PARTITION_POSITIONS
from tests.postgres.replay_models import (
    HISTORY,
    Account,
    Bench,
    Car,
    Line,
    Owner,
    Task,
    add_account,
    add_owner,
    check_law,
    dump_tables,
    make_bench,
    write_history,
)
from tests.postgres.restored import (
    describe_tables,
    dump_log,
    empty,
    keep,
    make_target,
    restore,
)
from tests.sampling import Sample

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def dump(bench: Bench) -> tuple[object, object]:
    with bench.engine.connect() as connection:
        return dump_tables(connection), dump_log(connection)


def annotate(bench: Bench) -> None:
    """Metadata, an idempotency key, several aggregates in a transaction, a mark."""
    with bench.sessions.begin() as session:
        bench.log.annotate(
            session, idempotency_key="one\t\\N", actor="ann\n", reason=["a", "", "ü"]
        )
        session.add_all([Task(id=50, project="\t\\", title="\n"), Car(id=50, maker="'")])
    with bench.engine.begin() as connection:
        connection.exec_driver_sql("SELECT oplog.oplog_mark(ARRAY['oplog.role'], ARRAY['x'])")


def test_everything_comes_back(bench: Bench, target: Bench) -> None:
    write_history(bench)
    annotate(bench)
    with target.engine.connect() as connection:
        definitions = describe_tables(connection)
        healthy = {(f.what, f.where) for f in target.log.diagnose(connection)}
    kept = keep(bench)
    report = restore(target, kept, batch_rows=4)
    assert dump(target) == dump(bench)
    with bench.engine.connect() as connection:
        replayed = bench.log.replay(connection)
    assert (report.rows, report.position, report.digest, report.entries) == (
        replayed.rows,
        replayed.position,
        replayed.digest,
        replayed.entries,
    )
    assert (report.sequence, report.generation) == (len(kept.records), 1)
    assert report.entries == kept.entry_count > len(kept.records)
    with target.engine.connect() as connection:
        assert describe_tables(connection) == definitions
        findings = target.log.diagnose(connection)
        assert {(f.what, f.where) for f in findings} - healthy == {("bypassed", "role x")}
        ids = connection.exec_driver_sql(
            "SELECT DISTINCT transaction_id::text FROM oplog.oplog_record"
        )
        assert list(ids.scalars()) == ["3"]
        secrets = connection.exec_driver_sql("SELECT DISTINCT secret FROM owner").scalars()
        assert list(secrets) == ["restored"]
    check_law(target)


@pytest.mark.sampled
def test_at_any_position_it_is_the_source_as_it_was(
    bench: Bench, spare_engine: Engine, sample: Sample
) -> None:
    choice = random.Random(5)
    dumps = {}
    for work in HISTORY:
        bench.write(work)
        dumps[bench.last_position()] = dump(bench)
    annotate(bench)
    kept = keep(bench)
    target = make_target(spare_engine, bench)
    for position in sample(sorted(dumps), 3):
        report = restore(target, kept, through=position, batch_rows=choice.choice([1, 3, 50]))
        tables, log = dump(target)
        expected_tables, expected_log = dumps[position]
        assert tables == expected_tables
        for name in ("record", "part", "entry", "token", "outcome", "head"):
            assert log[name] == expected_log[name]  # type: ignore[index]
        with bench.engine.connect() as connection:
            assert bench.log.replay(connection, through=position).digest == report.digest
        assert report.position == position
        empty(target)


def test_through_a_moment(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    with bench.engine.connect() as connection:
        moment: dt.datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        before = dump_tables(connection)
    bench.write(lambda s: add_owner(s, "bob"))
    report = restore(target, keep(bench), through=moment)
    assert (report.entries, report.sequence) == (1, 1)
    assert dump(target)[0] == before


def test_the_application_goes_on(bench: Bench, target: Bench) -> None:
    write_history(bench)
    last = bench.last_position()
    restore(target, keep(bench))
    target.write(lambda s: add_owner(s, "new"))
    target.write(lambda s: setattr(s.get_one(Owner, 1), "motto", "again"))
    target.write(lambda s: s.delete(s.get_one(Account, 1)))
    target.write(lambda s: add_account(s, 3))
    check_law(target)
    with target.engine.connect() as connection:
        history = target.log.history(connection, Owner, 1)
        assert len(history) == 3
        assert [change.position > last for change in history][-1]
        assert connection.exec_driver_sql("SELECT max(id) FROM owner").scalar_one() == 2
    stranger = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with pytest.raises(sa.exc.DBAPIError, match="does not log them"), stranger.begin() as raw:
        raw.exec_driver_sql("DELETE FROM task")


def test_idempotency_keys_hold_in_the_restored_database(bench: Bench, target: Bench) -> None:
    annotate(bench)
    restore(target, keep(bench))
    with target.sessions.begin() as session:
        receipts = target.log.annotate(session, idempotency_key="one\t\\N")
    assert {receipt.aggregate for receipt in receipts} >= {"project/\t\\"}


def test_what_lies_beyond_a_gap_counts_as_new(bench: Bench, target: Bench) -> None:
    """In the log's order the second transaction comes last: leaving out the third is a gap."""
    bench.write(add_owner)
    bench.write(lambda s: s.add(Task(id=1, project="p", title="x")))
    bench.write(lambda s: add_owner(s, "bob"))
    kept = keep(bench)
    kept.records[1], kept.records[2] = kept.records[2], kept.records[1]
    report = restore(target, kept, through=2)
    assert (report.entries, report.position, report.sequence) == (2, 2, 1)
    with target.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT position, transaction_id::text FROM oplog.oplog_record ORDER BY position"
        ).all()
    assert rows[0] == (1, "3")
    assert int(rows[1][1]) > 3


def test_a_record_of_several_parts_comes_back(bench: Bench, target: Bench) -> None:
    write_parts(bench)
    kept = keep(bench)
    assert max(len(record.parts) for record in kept.records) > 2
    restore(target, kept)
    assert dump(target) == dump(bench)
    check_law(target)


def write_parts(bench: Bench) -> None:
    """Rows that do not compress, of several aggregates, so many that one part cannot hold them."""
    chance = random.Random(3)
    bench.write(
        lambda s: s.add_all(
            Line(order_id=n, number="x", blob=chance.randbytes(PART_BYTES // 3)) for n in range(9)
        )
    )


def move_on(bench: Bench, position: int) -> None:
    """Let the next record get this position."""
    bench.tamper(
        f"SELECT oplog.oplog_make_partitions({position})",
        f"SELECT setval('oplog.oplog_position_seq', {position}, false)",
    )


def test_records_of_later_partitions_come_back(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    # In a partition that no migration makes, and the last position of one.
    for position in (20 * PARTITION_POSITIONS + 5, 30 * PARTITION_POSITIONS - 1):
        move_on(bench, position)
        bench.write(lambda s: setattr(s.get_one(Owner, 1), "motto", "late"))
        bench.write(write_again)
    write_parts(bench)
    restore(target, keep(bench))
    assert dump(target) == dump(bench)
    target.write(lambda s: add_owner(s, "new"))
    assert target.last_position() == bench.last_position() + 1
    check_law(target)


def write_again(session: Session) -> None:
    owner = session.get_one(Owner, 1)
    owner.motto = f"{owner.motto} again"


def test_who_makes_partitions_is_waited_for(bench: Bench, target: Bench) -> None:
    move_on(bench, 9 * PARTITION_POSITIONS)
    bench.write(add_owner)
    kept = keep(bench)
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as maker, ThreadPoolExecutor(1) as pool:
        maker.exec_driver_sql(
            "SELECT oplog.oplog_hold(%s)",
            (PARTITIONS_LOCK,),
        )
        restoring = pool.submit(restore, target, kept)
        wait_for_lock(target.engine)
        # The maker takes its locks on tables last of all; a restore has none of them yet.
        maker.exec_driver_sql("SELECT oplog.oplog_make_partitions(1)")
        maker.commit()
        assert restoring.result(60).position == 9 * PARTITION_POSITIONS
    check_law(target)


def wait_for_lock(engine: Engine) -> None:
    """Return when somebody waits for another transaction."""
    deadline = time.monotonic() + 60
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.exec_driver_sql(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND wait_event = 'transactionid')"
        ).scalar_one():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_positions_go_on_after_those_that_were_lost(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    bench.write(lambda s: add_owner(s, "bob"))
    restore(target, keep(bench), through=1, least_position=bench.last_position())
    target.write(lambda s: add_owner(s, "eve"))
    assert target.last_position() == bench.last_position() + 1


def test_a_new_consumer_gets_every_entry_once(bench: Bench, target: Bench) -> None:
    write_history(bench)
    restore(target, keep(bench))
    delivered = []
    for batch in target.log.subscribe(target.engine, name="all", max_entries=2):
        delivered += [entry.position for entry in batch]
        batch.commit()
    with target.engine.connect() as connection:
        assert delivered == [entry.position for entry in target.log.read(connection)]


def test_an_empty_log_comes_back_empty(bench: Bench, target: Bench) -> None:
    report = restore(target, keep(bench))
    assert (report.rows, report.entries, report.position, report.sequence) == (0, 0, 0, 0)
    target.write(add_owner)
    check_law(target)


def test_what_must_be_acknowledged_is_in_the_same_transaction(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    seen = []

    def finish(connection: Connection, report: RestoreReport) -> None:
        seen.append(report)
        assert connection.exec_driver_sql("SELECT count(*) FROM owner").scalar_one() == 1
        connection.exec_driver_sql(
            "INSERT INTO oplog.oplog_consumer (name, cursor, position) VALUES ('a', '{}', 1)"
        )

    report = restore(target, keep(bench), finish=finish)
    assert seen == [report]
    with target.engine.connect() as connection:
        names = connection.exec_driver_sql("SELECT name FROM oplog.oplog_consumer").scalars()
        assert list(names) == ["a"]
        places = connection.exec_driver_sql("SELECT position FROM oplog.oplog_restore").scalars()
        assert list(places) == [report.position]
