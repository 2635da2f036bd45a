"""A partition that is made after its table was tracked is guarded against TRUNCATE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from oplog import Oplog
from oplog.errors import UnloggedWriteError
from oplog.schema.guard import make_prefix
from oplog.schema.tables import create_statements
from oplog.store.partition_guards import GuardedPartitions, guard_partitions
from tests.logged import LoggedDatabase, open_logged
from tests.models.depot import AGGREGATES, OBJECTS, Base

pytestmark = pytest.mark.postgres

LATER = "CREATE TABLE reading_3 PARTITION OF reading FOR VALUES IN (3)"
NAME = "public.reading_3"


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True, objects=OBJECTS, aggregates=AGGREGATES)


def list_findings(db: LoggedDatabase) -> list[str]:
    with db.engine.connect() as connection:
        return [f.where for f in db.log.diagnose(connection) if f.what.startswith("guard-")]


def truncates(db: LoggedDatabase, table: str) -> bool:
    """Whether a session may, also one that switches ordinary triggers off."""
    try:
        db.execute("SET LOCAL session_replication_role = replica", f"TRUNCATE {table}")
    except UnloggedWriteError:
        return False
    return True


def store_types(db: LoggedDatabase) -> GuardedPartitions:
    with db.engine.begin() as connection:
        return db.log.store_types(connection).guards


def maintain(db: LoggedDatabase) -> GuardedPartitions:
    return db.log.maintain(db.engine).guards


WAYS = pytest.mark.parametrize("way", [store_types, maintain])


@WAYS
def test_one_that_was_made_later(
    db: LoggedDatabase, way: Callable[[LoggedDatabase], GuardedPartitions]
) -> None:
    db.execute(LATER)
    assert list_findings(db) == [NAME]
    assert truncates(db, "reading_3")
    assert way(db) == GuardedPartitions((NAME,), ())
    assert list_findings(db) == []
    assert not truncates(db, "reading_3")
    assert way(db) == GuardedPartitions()


def test_one_that_was_attached_and_has_partitions_itself(db: LoggedDatabase) -> None:
    db.execute(
        "CREATE TABLE later (LIKE reading INCLUDING ALL) PARTITION BY RANGE (id)",
        'CREATE TABLE "odd %s (part)\'s" PARTITION OF later DEFAULT',
        "ALTER TABLE reading ATTACH PARTITION later FOR VALUES IN (4)",
    )
    guards = maintain(db)
    assert guards.guarded == ("public.later", "public.odd %s (part)'s")
    assert list_findings(db) == []
    for table in ("later", '"odd %s (part)\'s"'):
        assert not truncates(db, table)


def test_tables_that_are_not_tracked_are_left_alone(db: LoggedDatabase) -> None:
    db.execute(
        "SELECT oplog.oplog_untrack_table('reading', 'loaded by others')",
        LATER,
        "CREATE TABLE other (id integer) PARTITION BY LIST (id)",
        "CREATE TABLE other_1 PARTITION OF other FOR VALUES IN (1)",
    )
    assert maintain(db) == GuardedPartitions()
    assert truncates(db, "reading_3")
    assert truncates(db, "other_1")


def test_one_that_is_in_use_waits(db: LoggedDatabase) -> None:
    """Who writes it goes on, and who comes after it waits for a moment only."""
    db.execute(LATER)
    with db.engine.begin() as writer:
        writer.exec_driver_sql("LOCK TABLE reading_3 IN ROW EXCLUSIVE MODE")
        assert maintain(db) == GuardedPartitions((), (NAME,))
        with db.engine.connect() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '7s'")
            assert guard_partitions(connection, "oplog") == GuardedPartitions((), (NAME,))
            # The session's own patience is its own again.
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"
    assert maintain(db) == GuardedPartitions((NAME,), ())


def test_a_dry_run_guards_nothing(db: LoggedDatabase) -> None:
    db.execute(LATER)
    with db.engine.connect() as connection, connection.begin() as transaction:
        assert db.log.store_types(connection).guards.guarded == (NAME,)
        transaction.rollback()
    assert list_findings(db) == [NAME]


@pytest.fixture
def role(db: LoggedDatabase) -> Iterator[Engine]:
    """A role that stores types, and owns nothing."""
    name = f"app_{uuid4().hex[:12]}"
    db.execute(f"CREATE ROLE {name} LOGIN", *db.log.grants("application", name).statements)
    db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}")
    engine = sa.create_engine(db.engine.url, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def become(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        connection.cursor().execute(f"SET SESSION AUTHORIZATION {name}")
        connection.commit()

    yield engine
    db.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_role_that_may_not_is_told(db: LoggedDatabase, role: Engine) -> None:
    db.execute(LATER)
    with role.begin() as connection:
        report = db.log.store_types(connection)
    assert report.guards == GuardedPartitions((), (NAME,))
    assert report.to_json()["unguarded"] == [NAME]


def test_each_log_has_its_own(db: LoggedDatabase) -> None:
    """The triggers of a log in another schema have other names."""
    log = Oplog(db.log.catalog, plaintext=True, schema="spare")
    with db.engine.begin() as connection:
        for statement in create_statements("spare"):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    db.execute("SELECT spare.oplog_track_table('reading', NULL)", LATER)
    assert log.maintain(db.engine).guards == GuardedPartitions((NAME,), ())
    with db.engine.connect() as connection:
        names = connection.exec_driver_sql(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'reading_3'::regclass "
            "AND tgname LIKE '%%truncate'"
        ).scalars()
        assert list(names) == [f"{make_prefix('spare')}_guard_truncate"]
