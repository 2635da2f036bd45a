"""What replay refuses: a log with holes, drifted tables, schemas that are not its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from oplog.errors import ChainBrokenError, ConfigurationError, ReplayError, SchemaDriftError
from oplog.replay import replay_log
from tests.kept import open_log
from tests.postgres.replay_models import (
    Bench,
    Node,
    Task,
    add_account,
    add_owner,
    dump_tables,
    make_bench,
    unlock,
    write_history,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


# -- alarms --------------------------------------------------------------------------------


def test_a_changed_entry_is_named(bench: Bench) -> None:
    write_history(bench)
    unlock(
        bench,
        "oplog_record",
        "UPDATE oplog.oplog_record SET data = set_byte(data, 60, get_byte(data, 60) # 1) "
        "WHERE position = 3",
    )
    with bench.engine.connect() as connection, pytest.raises(ChainBrokenError, match="position 3"):
        bench.log.replay(connection)


def test_a_missing_record_is_named(bench: Bench) -> None:
    bench.write(lambda s: s.add_all([Node(id=1), Node(id=2)]))
    unlock(
        bench,
        "oplog_record",
        "DELETE FROM oplog.oplog_record WHERE aggregates @> ARRAY['node/2']",
    )
    with (
        bench.engine.connect() as connection,
        pytest.raises(ChainBrokenError, match=r"'node/2' version 1 .*: oplog_entry names a record"),
    ):
        bench.log.replay(connection)


def test_a_missing_entry_of_the_index_is_named(bench: Bench) -> None:
    bench.write(lambda s: s.add_all([Node(id=1), Node(id=2)]))
    unlock(bench, "oplog_entry", "DELETE FROM oplog.oplog_entry WHERE aggregate_name = 'node/2'")
    with (
        bench.engine.connect() as connection,
        pytest.raises(ChainBrokenError, match=r"'node/2' version 1 .*: its row in oplog_entry"),
    ):
        bench.log.replay(connection)


def write_unlogged(bench: Bench, work: Callable[[Session], object]) -> None:
    with Session(sa.create_engine(bench.engine.url)) as session, session.begin():
        work(session)
    session.get_bind().dispose()  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_rows", [1, 1000])
@pytest.mark.parametrize(
    ("behind", "logged", "what"),
    [
        (
            lambda s: s.add(Task(id=5, project="p")),
            lambda s: setattr(s.get_one(Task, 5), "title", "t"),
            r"position 2 updates a row that is not there: public.task \(id=5\)",
        ),
        (
            lambda s: s.add(Task(id=5, project="p")),
            lambda s: s.delete(s.get_one(Task, 5)),
            r"position 2 deletes a row that is not there: public.task \(id=5\)",
        ),
        (
            lambda s: s.delete(s.get_one(Task, 1)),
            lambda s: s.add(Task(id=1, project="other")),
            r"position 2 creates a row that is already there: public.task \(id=1\)",
        ),
    ],
)
def test_a_log_with_a_hole_does_not_replay(
    bench: Bench,
    batch_rows: int,
    behind: Callable[[Session], object],
    logged: Callable[[Session], object],
    what: str,
) -> None:
    bench.write(lambda s: s.add(Task(id=1, project="p")))
    write_unlogged(bench, behind)
    bench.write(logged)
    bench.write(lambda s: s.add(Task(id=77, project="p")))
    with bench.engine.connect() as connection:
        with pytest.raises(ReplayError, match=what):
            replay_log(connection, open_log(bench.log), batch_rows=batch_rows)
        assert not connection.in_transaction()
        schema = "SELECT to_regnamespace('replayed')"
        assert connection.exec_driver_sql(schema).scalar() is None


def test_rows_that_break_a_constraint_are_an_alarm(bench: Bench) -> None:
    write_history(bench)
    bench.tamper("ALTER TABLE account ADD CONSTRAINT poor CHECK (balance < 1) NOT VALID")
    with bench.engine.connect() as connection:
        # Not even the live table was checked for this one.
        bench.log.replay(connection)
        connection.rollback()
    bench.tamper("UPDATE account SET balance = 0", "ALTER TABLE account VALIDATE CONSTRAINT poor")
    with bench.engine.connect() as connection, pytest.raises(ReplayError, match="constraint poor"):
        bench.log.replay(connection)


def test_a_parent_never_logged_breaks_the_foreign_key(bench: Bench) -> None:
    write_unlogged(bench, add_owner)
    bench.write(lambda s: add_account(s, 1))
    with (
        bench.engine.connect() as connection,
        pytest.raises(ReplayError, match=r"public\.account break its constraint .*owner"),
    ):
        bench.log.replay(connection)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE task DROP COLUMN title",
        "ALTER TABLE task ADD COLUMN extra int",
        "DROP TABLE task",
    ],
)
def test_what_the_database_shows_of_a_change_is_no_drift(bench: Bench, statement: str) -> None:
    write_history(bench)
    bench.tamper(statement)
    with bench.engine.connect() as connection:
        bench.log.replay(connection)
        connection.rollback()
        assert bench.log.verify(connection).ok


def test_drift_names_the_table(bench: Bench) -> None:
    write_history(bench)
    bench.tamper("ALTER TABLE task DROP CONSTRAINT task_pkey")
    with (
        bench.engine.connect() as connection,
        pytest.raises(SchemaDriftError, match=r"public\.task has primary key \(\)"),
    ):
        bench.log.verify(connection)


# -- manners -------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["public", "oplog", "pg_catalog", "information_schema", ""])
def test_schemas_that_are_not_ours_are_refused(bench: Bench, into: str) -> None:
    bench.write(add_owner)
    with bench.engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="cannot replay into schema"):
            bench.log.replay(connection, into=into)
        assert dump_tables(connection)["owner"] == [("(1,ann,)",)]


def test_tables_of_others_are_refused_and_earlier_replays_replaced(bench: Bench) -> None:
    bench.write(add_owner)
    bench.tamper("CREATE SCHEMA mine", "CREATE TABLE mine.owner (id int)")
    with bench.engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="owner there was not made by a replay"):
            bench.log.replay(connection, into="mine")
        bench.log.replay(connection, into='odd "name%s')
        bench.log.replay(connection, into='odd "name%s')
        bench.tamper('CREATE VIEW watching AS SELECT * FROM "odd ""name%%s".owner')
        with pytest.raises(ConfigurationError, match=r"in use: view .*watching"):
            bench.log.replay(connection, into='odd "name%s')


def test_the_callers_transaction_is_the_callers(bench: Bench) -> None:
    bench.write(add_owner)
    with bench.engine.connect() as connection:
        connection.exec_driver_sql("SET TIME ZONE 'Asia/Tokyo'")
        bench.log.replay(connection)
        assert connection.in_transaction()
        assert connection.exec_driver_sql("SHOW timezone").scalar() == "Asia/Tokyo"
        connection.rollback()
        found = connection.exec_driver_sql("SELECT to_regclass('replayed.owner')").scalar()
        assert found is None
        connection.rollback()
        bench.log.replay(connection)
        assert not connection.in_transaction()
        assert connection.exec_driver_sql("SELECT name FROM replayed.owner").all() == [("ann",)]


def test_settings_of_the_session_do_not_matter(bench: Bench) -> None:
    write_history(bench)
    with bench.engine.connect() as connection:
        plain = bench.log.replay(connection)
        connection.exec_driver_sql(
            "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET bytea_output = "
            "'escape'; SET extra_float_digits = -3; SET timezone = 'Asia/Kathmandu'"
        )
        assert bench.log.replay(connection) == plain
        connection.exec_driver_sql("SET datestyle = 'ISO, MDY'")


def test_progress_ends_at_the_last_position(bench: Bench) -> None:
    write_history(bench)
    seen: list[tuple[int, int]] = []
    with bench.engine.connect() as connection:
        report = replay_log(
            connection,
            open_log(bench.log),
            batch_rows=2,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (report.position, report.position)


def test_autocommit_is_refused(bench: Bench) -> None:
    engine = bench.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="autocommit"):
        bench.log.replay(connection)


async def test_an_async_connection_is_refused(bench: Bench, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="async connection"):
            await connection.run_sync(bench.log.replay)
    await engine.dispose()
