"""A follower has what the log has, batch by batch, whatever happens to either."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog.errors import (
    ChainBrokenError,
    ConfigurationError,
    ConflictError,
    HeadRolledBackError,
    LogForkedError,
    SchemaVersionError,
)
from oplog.recovery import FollowReport, follow_log
from oplog.schema.partitions import PARTITION_POSITIONS
from oplog.store.rows import Part
from tests.kept import KeptLog, open_log
from tests.logged import track
from tests.postgres.replay_models import (
    HISTORY,
    Account,
    Base,
    Bench,
    Node,
    Owner,
    Task,
    add_account,
    add_owner,
    check_law,
    dump_tables,
    make_bench,
    unlock,
    write_history,
)
from tests.postgres.restored import describe_tables, dump_log, keep, make_target, restore
from tests.postgres.test_restore import move_on, write_parts
from tests.postgres.test_restore_snapshot import take as take_snapshot
from tests.sampling import Sample

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def follow(target: Bench, kept: KeptLog, **options: Any) -> FollowReport:
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return follow_log(
            connection,
            kept,
            log=open_log(target.log, kept),
            schema="oplog",
            **options,
        )


def take(bench: Bench, kept: KeptLog) -> None:
    with bench.engine.connect() as connection:
        kept.take(connection)


def check_equal(target: Bench, bench: Bench) -> None:
    with target.engine.connect() as there, bench.engine.connect() as here:
        assert dump_tables(there) == dump_tables(here)
        assert dump_log(there) == dump_log(here)
    check_law(target)


@pytest.mark.sampled
def test_every_kind_of_change_one_by_one(bench: Bench, target: Bench, sample: Sample) -> None:
    checked = {*sample(range(len(HISTORY)), 4), len(HISTORY) - 1}
    kept = keep(bench)
    assert follow(target, kept).rebuilt
    with target.engine.connect() as connection:
        definitions = describe_tables(connection)
    for number, work in enumerate(HISTORY):
        bench.write(work)
        take(bench, kept)
        report = follow(target, kept)
        assert not report.rebuilt
        assert report.sequence == len(kept.records)
        if number in checked:
            check_equal(target, bench)
    assert follow(target, kept).entries == 0
    with target.engine.connect() as connection:
        assert describe_tables(connection) == definitions


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_batches_of_any_size(bench: Bench, target: Bench, batch: int) -> None:
    bench.write(HISTORY[0])
    kept = keep(bench)
    follow(target, kept)
    for work in HISTORY[1:]:
        bench.write(work)
    take(bench, kept)
    reached: list[int] = []
    report = follow(target, kept, batch_entries=batch, reach=reached.append)
    assert reached == sorted(set(reached))
    assert (report.sequence, report.entries) == (len(kept.records), kept.entry_count - 1)
    check_equal(target, bench)


@pytest.mark.parametrize("batch", [1, 100])
def test_records_of_several_parts_and_later_partitions(
    bench: Bench, target: Bench, batch: int
) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    bench.write(partial(set_motto, motto="one"))
    move_on(bench, 7 * PARTITION_POSITIONS)
    bench.write(partial(set_motto, motto="two"))
    write_parts(bench)
    take(bench, kept)
    report = follow(target, kept, batch_entries=batch)
    assert (report.sequence, report.position) == (4, 7 * PARTITION_POSITIONS + 1)
    assert report.entries == kept.entry_count - 1
    check_equal(target, bench)


def test_tickets_that_are_there_keep_up(bench: Bench, target: Bench) -> None:
    """Of a database that was a primary, and of whoever took one here."""
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    unlock(target, "oplog_ticket", "INSERT INTO oplog.oplog_ticket VALUES ('owner/1', 1)")
    for motto in ("one", "two"):
        bench.write(partial(set_motto, motto=motto))
    take(bench, kept)
    follow(target, kept, batch_entries=1)
    with target.engine.connect() as connection:
        tickets = connection.exec_driver_sql(
            "SELECT aggregate_name, version, head_version FROM oplog.oplog_ticket"
        )
        assert [tuple(row) for row in tickets] == [("owner/1", 3, None)]
    check_equal(target, bench)
    # Once it is nobody's follower any more, its application goes on.
    target.write(partial(set_motto, motto="own"))
    check_law(target)


def test_a_restored_database_is_followed_on(bench: Bench, target: Bench) -> None:
    for work in HISTORY[:7]:
        bench.write(work)
    kept = keep(bench)
    restored = restore(target, kept)
    for work in HISTORY[7:]:
        bench.write(work)
    take(bench, kept)
    report = follow(target, kept)
    assert not report.rebuilt
    assert report.entries == kept.entry_count - restored.entries
    check_equal(target, bench)


def test_names_that_move_and_references_that_turn(bench: Bench, target: Bench) -> None:
    """Two owners swap their unique names: no order of statements will do."""
    write_history(bench)
    bench.write(lambda s: add_owner(s, "bob"))
    kept = keep(bench)
    follow(target, kept)
    target.tamper("ALTER TABLE owner DISABLE TRIGGER oplog_guard_update")
    target.tamper("ALTER TABLE owner DISABLE TRIGGER oplog_guard_armed")
    target.tamper("UPDATE owner SET secret = 'kept'")
    with target.engine.connect() as connection:
        definitions = describe_tables(connection)
    for key, name in ((1, "x"), (2, "ann"), (1, "bob")):
        bench.write(partial(rename_owner, key=key, name=name))
    bench.write(lambda s: add_owner(s, "carl"))
    take(bench, kept)
    follow(target, kept)
    check_equal(target, bench)
    with target.engine.connect() as connection:
        assert describe_tables(connection) == definitions
        secrets = connection.exec_driver_sql("SELECT secret FROM owner ORDER BY id").scalars()
        assert list(secrets) == ["kept", "kept", "restored"]


def test_ordinary_changes_leave_foreign_keys_alone(bench: Bench, target: Bench) -> None:
    """Dropped and made again they would be checked for all rows, each time."""
    write_history(bench)
    kept = keep(bench)
    follow(target, kept)
    before = list_foreign_keys(target)
    bench.write(lambda s: add_owner(s, "bob"))
    bench.write(lambda s: add_account(s, 7))
    bench.write(lambda s: s.add_all([Node(id=8), Node(id=9, parent_id=8)]))
    bench.write(lambda s: setattr(s.get_one(Owner, 1), "motto", "new"))
    bench.write(lambda s: s.delete(s.get_one(Account, 7)))
    take(bench, kept)
    for batch in (1, 100):
        follow(target, kept, batch_entries=batch)
    assert list_foreign_keys(target) == before
    check_equal(target, bench)


def list_foreign_keys(target: Bench) -> list[int]:
    with target.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT oid::bigint FROM pg_constraint WHERE contype = 'f' AND connamespace = "
            "'public'::regnamespace ORDER BY 1"
        )
        return list(rows.scalars())


def rename_owner(session: Session, key: int, name: str) -> None:
    session.get_one(Owner, key).name = name


def test_random_histories(bench: Bench, target: Bench) -> None:
    track(bench.engine, *Base.metadata.sorted_tables)
    bench.tamper("ALTER TABLE owner ALTER secret SET DEFAULT ''")
    choice = random.Random(11)
    kept = keep(bench)
    follow(target, kept)
    for _ in range(12):
        for _ in range(choice.randrange(6, 15)):
            change = choice.choice(CHANGES)
            numbers = [choice.randrange(1, 5) for _ in "ab"]
            with bench.sessions() as session, suppress(sa.exc.IntegrityError):
                session.execute(sa.text(change.format(*numbers)))
                session.commit()
        take(bench, kept)
        follow(target, kept, batch_entries=choice.choice([1, 3, 100]))
        with target.engine.connect() as there, bench.engine.connect() as here:
            assert dump_tables(there) == dump_tables(here)
    assert len(kept.records) > 15
    check_equal(target, bench)


CHANGES = [
    "INSERT INTO node VALUES ({0}, NULL, 'n{1}')",
    "INSERT INTO node VALUES ({0}, {1}, 'n{1}')",
    "UPDATE node SET parent_id = {1} WHERE id = {0}",
    "UPDATE node SET id = {1} WHERE id = {0}",
    "DELETE FROM node WHERE id = {0}",
    "INSERT INTO owner (name) VALUES ('o{0}')",
    "UPDATE owner SET name = 'o{1}' WHERE name = 'o{0}'",
    "DELETE FROM owner WHERE name = 'o{0}'",
    "INSERT INTO account (id, owner_id, balance) SELECT {0}, id, {1} FROM owner LIMIT 1",
    "UPDATE account SET owner_id = (SELECT max(id) FROM owner) WHERE id = {0}",
    "DELETE FROM account WHERE id = {0}",
    "INSERT INTO task VALUES ({0}, 'p{1}', 't')",
    "UPDATE task SET project = 'p{1}' WHERE id = {0}",
]


def test_keys_go_on_after_those_of_the_source(bench: Bench, target: Bench) -> None:
    kept = keep(bench)
    follow(target, kept)
    bench.write(lambda s: add_owner(s, "gone"))
    bench.write(lambda s: add_owner(s, "stays"))
    bench.write(lambda s: s.delete(s.get_one(Owner, 1)))
    take(bench, kept)
    follow(target, kept)
    with target.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT nextval('owner_id_seq')").scalar() == 3


def test_consumers_of_a_follower_get_what_is_new(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    delivered = consume(target)
    for number in range(4):
        bench.write(partial(add_owner, name=str(number)))
    take(bench, kept)
    follow(target, kept, batch_entries=2)
    assert delivered == [1]
    assert consume(target) == [2, 3, 4, 5]


def consume(target: Bench) -> list[int]:
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    got = []
    for batch in target.log.subscribe(engine, name="all"):
        got += [entry.position for entry in batch]
        batch.commit()
    return got


# -- when something is wrong ----------------------------------------------------------------


def test_whoever_writes_into_a_follower_is_noticed(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    target.write(lambda s: add_owner(s, "stranger"))
    bench.write(lambda s: add_owner(s, "bob"))
    take(bench, kept)
    with pytest.raises(LogForkedError, match="position 2 of this database did not come"):
        follow(target, kept)


def test_a_fork_before_what_is_here_replaces_everything(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    bench.write(lambda s: add_owner(s, "lost"))
    bench.write(lambda s: s.add(Task(id=1, project="lost", title="x")))
    follow(target, keep(bench))
    assert consume(target) == [1, 2, 3]
    other = fork(bench, kept)
    report = follow(target, other)
    assert report.rebuilt
    assert (report.generation, report.sequence) == (2, 2)
    with target.engine.connect() as connection:
        owners = connection.exec_driver_sql("SELECT id, name FROM owner ORDER BY 1").all()
        assert [tuple(row) for row in owners] == [(1, "ann"), (3, "other")]
        assert dump_tables(connection)["task"] == []
    check_law(target)
    assert consume(target) == [1, 4]


def test_a_fork_after_what_is_here_goes_on(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    bench.write(lambda s: add_owner(s, "lost"))
    bench.write(lambda s: s.add(Task(id=1, project="lost", title="x")))
    report = follow(target, fork(bench, kept))
    assert not report.rebuilt
    assert (report.generation, report.sequence) == (2, 2)
    check_law(target)


def fork(bench: Bench, kept: KeptLog) -> KeptLog:
    """What was kept, and then what happened after its restore instead of what had."""
    bench.write(lambda s: add_owner(s, "other"))
    other = KeptLog(bench.log.store)
    take(bench, other)
    del other.records[len(kept.records) : -1]
    other.generation = 2
    return other


def test_an_older_state_of_the_log_is_refused(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    old = keep(bench)
    bench.write(lambda s: add_owner(s, "bob"))
    follow(target, keep(bench))
    with pytest.raises(HeadRolledBackError, match="at sequence 1 of generation 1"):
        follow(target, old)


def test_another_past_in_the_same_generation_is_refused(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    bench.write(lambda s: add_owner(s, "bob"))
    kept = keep(bench)
    follow(target, kept)
    kept.records.reverse()
    with pytest.raises(ChainBrokenError, match="another past"):
        follow(target, kept)


def test_a_batch_that_fails_leaves_the_one_before(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    bench.write(lambda s: add_owner(s, "bob"))
    bench.write(lambda s: add_owner(s, "carl"))
    take(bench, kept)
    whole = list(kept.records)
    kept.records[2] = whole[2]._replace(parts=(Part(0, b"altered"),))
    with pytest.raises(ChainBrokenError, match="does not match its hash"):
        follow(target, kept, batch_entries=1)
    with target.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT max(id) FROM owner").scalar() == 2
    kept.records = whole
    assert follow(target, kept).entries == 1
    check_equal(target, bench)


def test_two_processes_do_not_apply_one_batch_twice(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    for name in ("bob", "carl"):
        bench.write(partial(add_owner, name=name))
    take(bench, kept)

    def meet(sequence: int) -> None:
        if sequence == 2:
            follow(target, kept)

    with pytest.raises(ConflictError, match="moved this database on"):
        follow(target, kept, batch_entries=1, reach=meet)
    check_equal(target, bench)


def test_an_unfinished_restore_is_not_followed(bench: Bench, target: Bench) -> None:
    bench.write(lambda s: add_account(s, 1))
    kept = keep(bench)
    follow(target, kept)
    target.tamper("COMMENT ON TABLE oplog.oplog_record IS 'oplog schema version 1, being restored'")
    with pytest.raises(SchemaVersionError, match="being restored"):
        follow(target, kept)


def test_a_database_with_a_log_of_its_own_is_not_followed(bench: Bench, target: Bench) -> None:
    target.write(add_owner)
    with pytest.raises(ConfigurationError, match="needs an empty database"):
        follow(target, keep(bench))


def test_a_record_that_follows_nothing_is_refused(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    for motto in ("one", "two"):
        bench.write(partial(set_motto, motto=motto))
    take(bench, kept)
    del kept.records[1]
    with pytest.raises(ChainBrokenError, match=r"version 3.* does not follow version 1"):
        follow(target, kept)


def set_motto(session: Session, motto: str) -> None:
    session.get_one(Owner, 1).motto = motto


def test_who_was_left_behind_begins_anew_from_a_snapshot(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    kept = keep(bench)
    follow(target, kept)
    for name in ("bob", "carl"):
        bench.write(partial(add_owner, name=name))
    snapshot = take_snapshot(bench)
    bench.write(lambda s: add_owner(s, "eve"))
    take(bench, kept)
    kept.first_sequence = 4
    with pytest.raises(ConfigurationError, match="no snapshot is given"):
        follow(target, kept)
    report = follow(target, kept, snapshot=snapshot)
    assert report.rebuilt
    assert report.sequence == 4
    with target.engine.connect() as there, bench.engine.connect() as here:
        assert dump_tables(there) == dump_tables(here)
        # What an aggregate goes on from; how it came there is told by records that are not here.
        assert dump_log(there)["head"] == dump_log(here)["head"]
