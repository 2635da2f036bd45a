"""What a restore refuses, and that it leaves nothing behind when it does."""

from __future__ import annotations

from collections.abc import Callable
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
    OplogError,
    ReplayError,
    SchemaDriftError,
    SchemaVersionError,
)
from oplog.recovery import restore_log
from oplog.recovery.restore import RestoreStep
from oplog.schema.row_checks import HIGHEST_POSITION
from oplog.store.rows import Part
from tests.archived import seal_record
from tests.kept import KeptLog, open_log
from tests.postgres.replay_models import (
    Bench,
    Owner,
    Task,
    add_account,
    add_owner,
    check_law,
    dump_tables,
    make_bench,
    write_history,
)
from tests.postgres.restored import describe_tables, dump_log, keep, make_target, restore

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def add_task(bench: Bench) -> None:
    bench.write(lambda s: s.add(Task(id=1, project="p", title="x")))


def state(target: Bench) -> tuple[Any, Any, Any]:
    with target.engine.connect() as connection:
        described = describe_tables(connection)
        return dump_tables(connection), dump_log(connection), described


def fill_log(target: Bench) -> None:
    add_task(target)


def fill_table(target: Bench) -> None:
    target.tamper("SET LOCAL oplog.bypass = 'test'", "INSERT INTO task VALUES (1, 'p', 'x')")


def fill_types(target: Bench) -> None:
    def abandon(session: Session) -> None:
        session.add(Task(id=1, project="p"))
        session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        target.write(abandon)


@pytest.mark.parametrize(
    ("fill", "named"),
    [
        (fill_log, "oplog.oplog_record has 1 row,.*public.task has 1 row"),
        (fill_table, "oplog.oplog_record has 1 row,.*public.task has 1 row"),
        (fill_types, "oplog.oplog_type has"),
    ],
)
def test_a_target_with_rows_is_left_alone(
    bench: Bench, target: Bench, fill: Callable[[Bench], None], named: str
) -> None:
    write_history(bench)
    kept = keep(bench)
    fill(target)
    before = state(target)
    with pytest.raises(ConfigurationError, match=named):
        restore(target, kept)
    assert state(target) == before
    target.write(lambda s: add_owner(s, "still works"))


def test_a_table_that_the_source_never_logged_must_be_empty_too(
    bench: Bench, target: Bench
) -> None:
    kept = keep(bench)
    fill_table(target)
    with pytest.raises(ConfigurationError, match=r"public\.task has 1 row"):
        restore(target, kept)


def test_whoever_wrote_after_the_mark_keeps_his_database(bench: Bench, target: Bench) -> None:
    add_task(bench)
    kept = keep(bench)

    def write(step: RestoreStep) -> None:
        if step is RestoreStep.MARKED:
            with target.engine.begin() as connection:
                connection.exec_driver_sql("SELECT oplog.oplog_mark(ARRAY['a'], ARRAY['b'])")

    with pytest.raises(ConfigurationError, match=r"oplog\.oplog_record has 1 row"):
        restore(target, kept, reach=write)
    add_task(target)


def test_applications_are_refused_until_the_end(bench: Bench, target: Bench) -> None:
    add_task(bench)
    kept = keep(bench)

    def stop(step: RestoreStep) -> None:
        if step is RestoreStep.MARKED:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        restore(target, kept, reach=stop)
    with pytest.raises(SchemaVersionError, match="being restored"):
        add_task(target)
    with target.engine.connect() as connection:
        with pytest.raises(SchemaVersionError, match="being restored"):
            target.log.verify(connection)
        assert "log-restoring" in {f.what for f in target.log.diagnose(connection)}
    restore(target, kept)
    target.write(lambda s: add_owner(s, "works"))
    check_law(target)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("step", list(RestoreStep)[1:])
def test_an_error_at_any_step_leaves_an_empty_marked_database(
    bench: Bench, target: Bench, step: RestoreStep
) -> None:
    write_history(bench)
    kept = keep(bench)

    def stop(reached: RestoreStep) -> None:
        if reached is step:
            raise ZeroDivisionError

    before = state(target)
    with pytest.raises(ZeroDivisionError):
        restore(target, kept, reach=stop)
    target.tamper("COMMENT ON TABLE oplog.oplog_record IS 'oplog schema version 1'")
    assert state(target) == before


def test_two_restores_do_not_meet(bench: Bench, target: Bench) -> None:
    add_task(bench)
    kept = keep(bench)
    met = []

    def meet(step: RestoreStep) -> None:
        if step is RestoreStep.EMPTIED:
            with pytest.raises(ConflictError, match="another restore"):
                restore(target, kept)
            met.append(step)

    restore(target, kept, reach=meet)
    assert met
    check_law(target)


def test_in_an_open_transaction_the_caller_commits(bench: Bench, target: Bench) -> None:
    write_history(bench)
    kept = keep(bench)
    restore = partial(restore_log, source=kept, log=open_log(target.log, kept), schema="oplog")
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with target.engine.connect() as connection:
        before = describe_tables(connection)
    for end in ("rollback", "commit"):
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            restore(connection)
            assert connection.in_transaction()
            getattr(connection, end)()
        with target.engine.connect() as connection, bench.engine.connect() as source:
            empty = not dump_log(connection)["record"]
            assert empty == (end == "rollback")
            # Triggers, constraints and the comment are as they were, either way.
            assert describe_tables(connection) == before
            if end == "commit":
                assert dump_log(connection) == dump_log(source)
    check_law(target)
    with engine.begin() as connection, pytest.raises(ConfigurationError, match="empty database"):
        restore(connection)


def test_a_frozen_view_is_no_place_for_a_restore(bench: Bench, target: Bench) -> None:
    kept = keep(bench)
    engine = sa.create_engine(
        target.engine.url, poolclass=sa.NullPool, isolation_level="REPEATABLE READ"
    )
    with engine.begin() as connection, pytest.raises(ConfigurationError, match="REPEATABLE READ"):
        restore_log(
            connection,
            kept,
            log=open_log(target.log, kept),
            schema="oplog",
        )


def test_a_schema_without_the_log_is_refused(bench: Bench, target: Bench) -> None:
    kept = keep(bench)
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with (
        engine.connect() as connection,
        pytest.raises(SchemaVersionError, match="no oplog tables"),
    ):
        restore_log(
            connection,
            kept,
            log=open_log(target.log, kept),
            schema="elsewhere",
        )


# -- what is wrong with the log -------------------------------------------------------------


def alter(kept: KeptLog, place: int, **values: Any) -> None:
    kept.records[place] = kept.records[place]._replace(**values)


def alter_data(kept: KeptLog) -> None:
    (part,) = kept.records[0].parts
    alter(kept, 0, parts=(part._replace(data=part.data + b"x"),))


def alter_metadata(kept: KeptLog) -> None:
    alter(kept, 0, metadata=(("actor", "eve"),))


def lose_first(kept: KeptLog) -> None:
    del kept.records[0]


def lose_middle(kept: KeptLog) -> None:
    del kept.records[1]


def double(kept: KeptLog) -> None:
    kept.records.append(kept.records[-1])


def lose_an_aggregate(kept: KeptLog) -> None:
    last = kept.records[-1]
    assert last.aggregates == ("project/2", "project/3")
    alter(kept, -1, aggregates=("project/2",), versions=(1,), prev_hashes=last.prev_hashes[:1])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (alter_data, ChainBrokenError, "does not match its hash"),
        (alter_metadata, ChainBrokenError, "does not match its hash"),
        (lose_first, OplogError, "not known|not there"),
        (lose_middle, OplogError, "version 2 is missing|not there"),
        (double, OplogError, "twice|already there"),
        (lose_an_aggregate, ChainBrokenError, "does not match its hash"),
    ],
)
def test_an_altered_log_is_refused(
    bench: Bench,
    target: Bench,
    damage: Callable[[KeptLog], None],
    error: type[OplogError],
    said: str,
) -> None:
    add_task(bench)
    bench.write(lambda s: setattr(s.get_one(Task, 1), "title", "y"))
    bench.write(lambda s: setattr(s.get_one(Task, 1), "title", "z"))
    bench.write(lambda s: s.add_all([Task(id=n, project=str(n), title="x") for n in (2, 3)]))
    kept = keep(bench)
    damage(kept)
    with pytest.raises(error, match=said):
        restore(target, kept)
    with target.engine.connect() as connection:
        assert dump_log(connection)["record"] == []


def test_a_log_that_ends_early_is_refused(bench: Bench, target: Bench) -> None:
    add_task(bench)

    class Short(KeptLog):
        @property
        def sequence(self) -> int:
            return len(self.records) + 1

    kept = Short(bench.log.store)
    with bench.engine.connect() as connection:
        kept.take(connection)
    with pytest.raises(ChainBrokenError, match="has 2 records, and gave 1"):
        restore(target, kept)


def test_a_log_without_its_beginning_needs_a_snapshot(bench: Bench, target: Bench) -> None:
    add_task(bench)
    kept = keep(bench)
    kept.first_sequence = 2
    with pytest.raises(ConfigurationError, match="no snapshot is given"):
        restore(target, kept)


def reseal(kept: KeptLog, place: int, **values: Any) -> None:
    """A record that whoever wrote the log gave a hash that fits."""
    kept.records[place] = seal_record(kept.records[place]._replace(**values))


def use_up_positions(kept: KeptLog) -> None:
    reseal(kept, 1, position=HIGHEST_POSITION)


def go_back_before_the_first_position(kept: KeptLog) -> None:
    reseal(kept, 0, position=0)


def use_an_id_twice(kept: KeptLog) -> None:
    reseal(kept, 1, record_id=kept.records[0].record_id)


def write_a_version_twice(kept: KeptLog) -> None:
    reseal(kept, 1, versions=(1,), prev_hashes=(bytes(32),))


def use_an_unknown_format(kept: KeptLog) -> None:
    reseal(kept, 1, format=1 << 15)


def begin_late(kept: KeptLog) -> None:
    reseal(kept, 1, parts=tuple(Part(1, part.data) for part in kept.records[1].parts))


def have_no_parts(kept: KeptLog) -> None:
    reseal(kept, 1, parts=())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (use_up_positions, "a row that no record can be"),
        (go_back_before_the_first_position, "a row that no record can be"),
        (use_an_unknown_format, "a row that no record can be"),
        (use_an_id_twice, r"a record twice: .*\(record_id\)"),
        (write_a_version_twice, r"a record twice: .*\(aggregate_name, version\)"),
        (begin_late, "does not begin with its first aggregate"),
        (have_no_parts, "does not begin with its first aggregate"),
    ],
)
def test_records_that_no_log_takes_are_refused(
    bench: Bench, target: Bench, damage: Callable[[KeptLog], None], said: str
) -> None:
    add_task(bench)
    bench.write(lambda s: setattr(s.get_one(Task, 1), "title", "y"))
    kept = keep(bench)
    damage(kept)
    before = state(target)
    with pytest.raises(ChainBrokenError, match=said) as refused:
        restore(target, kept)
    assert refused.value.hint
    assert state(target)[:2] == before[:2]


# -- what is wrong with the tables ----------------------------------------------------------


def test_a_broken_foreign_key_is_named(bench: Bench, target: Bench) -> None:
    bench.write(lambda s: add_account(s, 1))
    bench.tamper("ALTER TABLE account DROP CONSTRAINT account_owner_id_fkey")
    bench.write(lambda s: s.delete(s.get_one(Owner, 1)))
    with pytest.raises(ReplayError, match=r"account_owner_id_fkey.*\(owner_id\)=\(1\)"):
        restore(target, keep(bench))


def test_a_broken_check_is_named(bench: Bench, target: Bench) -> None:
    bench.write(lambda s: add_account(s, 1, "-5.00"))
    target.tamper("ALTER TABLE account ADD CONSTRAINT rich CHECK (balance > 0)")
    with pytest.raises(ReplayError, match=r"public\.account do not fit it: .*rich"):
        restore(target, keep(bench))


def test_an_excluded_column_that_must_not_be_null_is_named(bench: Bench, target: Bench) -> None:
    bench.write(add_owner)
    target.tamper("ALTER TABLE owner ALTER secret DROP DEFAULT")
    with pytest.raises(ReplayError, match=r"owner\.secret is excluded") as caught:
        restore(target, keep(bench))
    assert "server default" in caught.value.hint


def test_a_table_that_is_not_there_is_named(bench: Bench, target: Bench) -> None:
    add_task(bench)
    target.tamper("DROP TABLE task")
    with pytest.raises(SchemaDriftError, match=r"public\.task"):
        restore(target, keep(bench))
