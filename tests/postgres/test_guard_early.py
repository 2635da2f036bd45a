"""A check of COMMIT that came too early, or found its settings gone, refuses; honest work goes on.

Statements run in one transaction of a session that knows nothing of the log, or of an attached one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session

from oplog.errors import UnloggedWriteError
from oplog.schema.tables import create_statements, track_statements
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.older import mark_cases

pytestmark = pytest.mark.postgres

NOW = "SET CONSTRAINTS ALL IMMEDIATE"
NAMED = "SET CONSTRAINTS oplog_guard_armed IMMEDIATE"
LATER = "SET CONSTRAINTS ALL DEFERRED"
INSERT = "INSERT INTO account (owner, balance) VALUES ('raw', 1)"
UPDATE = "UPDATE account SET note = 'x'"
DELETE = "DELETE FROM account"
PARTS = (
    "INSERT INTO whole SELECT m.n + g FROM (SELECT coalesce(max(id), 0) AS n FROM whole) m, "
    "generate_series(1, 2) g"
)
ANNOUNCED = "/*oplog:{oid}*/ DELETE FROM account"
ROWS = {
    "insert": INSERT,
    "update": UPDATE,
    "delete": DELETE,
    "announced": ANNOUNCED,
    "partitioned": PARTS,
    "cascade": "DELETE FROM parent",
    "by a trigger": "INSERT INTO free VALUES (1)",
    "merge": "MERGE INTO account USING (SELECT 1) v ON true WHEN MATCHED THEN DELETE",
    "in a function": f"DO $$ BEGIN {UPDATE}; END $$",
}
WRITTEN_EARLY = (
    (NOW, "{write}"),
    (NAMED, "{write}"),
    (NOW, "{write}", LATER),
    (NOW, LATER, NOW, "{write}"),
    ("SAVEPOINT a", NOW, "RELEASE a", "{write}"),
    (NOW, "SAVEPOINT a", "{write}", "RELEASE a"),
    (NOW, "{write}", "{write}"),
)
WRITTEN_AND_RESET = (
    ("{write}", "RESET ALL"),
    ("SAVEPOINT a", "{write}", "RELEASE a", "RESET ALL"),
    ("{write}", "RESET oplog.armed"),
    ("{write}", "SAVEPOINT a", "RESET ALL", "RELEASE a"),
    ("{write}", "RESET oplog.tally"),
    ("{write}", "RESET ALL", "{write}"),
    ("SELECT set_config('oplog.armed', '', false)", "{write}", "RESET ALL"),
)


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    db.execute(
        "CREATE TABLE parent (id integer PRIMARY KEY)",
        "CREATE TABLE child (id integer PRIMARY KEY, parent integer NOT NULL "
        "REFERENCES parent ON DELETE CASCADE)",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO child VALUES (1, 1)",
        "CREATE TABLE free (id integer)",
        f"CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {UPDATE}; RETURN NULL; END $$",
        "CREATE TRIGGER write AFTER INSERT ON free FOR EACH ROW EXECUTE FUNCTION write()",
        "CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (2)",
        "CREATE TABLE rest PARTITION OF whole DEFAULT",
        *track_statements(["child", "whole"]),
    )
    with db.sessions.begin() as session:
        session.add_all([Account(id=n, owner="ada", balance=n) for n in (101, 102)])
    return db


@pytest.fixture
def raw(db: LoggedDatabase, database_url: URL) -> Iterator[psycopg.Connection[Any]]:
    """A session that knows nothing of the log, as psql's."""
    conninfo = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo) as connection:
        yield connection
        connection.rollback()


def commit(raw: psycopg.Connection[Any], *statements: str) -> None:
    oid = raw.execute("SELECT 'account'::regclass::oid").fetchone()
    for statement in statements:
        raw.execute(statement.replace("{oid}", str(oid and oid[0])).encode())
    raw.commit()


def refuse(raw: psycopg.Connection[Any], *statements: str) -> psycopg.Error:
    with pytest.raises(psycopg.DatabaseError) as refused:
        commit(raw, *statements)
    raw.rollback()
    assert refused.value.sqlstate == "OP003"
    return refused.value


def execute(session: Session, *statements: str) -> None:
    for statement in statements:
        session.execute(sa.text(statement))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("write", mark_cases(ROWS))
def test_a_check_that_came_too_early_refuses(
    db: LoggedDatabase, raw: psycopg.Connection[Any], write: str
) -> None:
    for statements in WRITTEN_EARLY:
        error = refuse(raw, *(statement.format(write=write) for statement in statements))
        assert "before the change of" in str(error)
        assert "name your constraints" in str(error.diag.message_hint)
    db.assert_replays()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("write", mark_cases(ROWS))
def test_settings_that_are_gone_refuse(
    db: LoggedDatabase, raw: psycopg.Connection[Any], write: str
) -> None:
    for statements in WRITTEN_AND_RESET:
        refuse(raw, *(statement.format(write=write) for statement in statements))
    error = refuse(raw, write, "RESET ALL")
    assert "settings were reset" in str(error)
    assert "RESET ALL" in str(error.diag.message_hint)
    db.assert_replays()


def write_and_commit(session: Session, *statements: str) -> None:
    """An object is written besides, after the first of them."""
    execute(session, statements[0])
    session.add(Account(owner="x", balance=1))
    session.flush()
    execute(session, *statements[1:])
    session.commit()


def test_attached_sessions_are_refused_the_same(db: LoggedDatabase) -> None:
    for before, after in ((NOW, "SELECT 1"), ("SELECT 1", "RESET ALL")):
        for write in (UPDATE, "SELECT 1"):
            session = db.sessions()
            with pytest.raises(UnloggedWriteError):
                write_and_commit(session, before, write, after)
            session.rollback()
    db.assert_replays()
    db.assert_pool_is_clean()


# -- what goes on ---------------------------------------------------------------------------------


def test_what_is_not_the_logs_may_be_immediate(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    raw.execute(NOW)
    raw.execute("UPDATE account SET note = 'x' WHERE false")
    raw.execute("RESET ALL")
    raw.commit()
    with db.sessions.begin() as session:
        session.execute(sa.text(NOW))
        session.execute(sa.text(LATER))
        session.execute(sa.text("RESET ALL"))
        session.execute(sa.text(UPDATE))
    assert db.tell()[2:] == ["UPDATE account 101", "UPDATE account 102"]
    db.assert_replays()


def test_what_was_rolled_back_may_be_reset(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    for undone in (UPDATE, PARTS):
        raw.execute("SAVEPOINT a")
        raw.execute(undone.encode())
        raw.execute("RESET ALL")
        raw.execute("ROLLBACK TO a")
        raw.execute("RESET ALL")
        raw.commit()
    with db.sessions.begin() as session:
        with pytest.raises(UnloggedWriteError), session.begin_nested():
            execute(session, NOW, UPDATE)
        session.execute(sa.text(INSERT))
    assert db.tell()[2:] == ["CREATE account 1"]
    db.assert_replays()


def test_a_deferred_trigger_that_writes_at_commit(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    """The check is armed again by rows that come after it."""
    db.execute(
        "DROP TRIGGER write ON free",
        "CREATE CONSTRAINT TRIGGER write AFTER INSERT ON free DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION write()",
    )
    db.log.refresh()
    assert "public.account (2 rows)" in str(refuse(raw, "INSERT INTO free VALUES (1)"))
    with db.sessions.begin() as session:
        session.add(Account(owner="x", balance=1))
        session.flush()
        session.execute(sa.text("INSERT INTO free VALUES (1)"))
    assert sorted(db.tell()[2:]) == [
        "CREATE account 1",
        "UPDATE account 101",
        "UPDATE account 102",
    ]
    raw.execute("SET LOCAL oplog.bypass = 'repair'")
    raw.execute("INSERT INTO free VALUES (1)")
    raw.execute("INSERT INTO account (owner, balance) VALUES ('y', 1)")
    raw.commit()
    assert db.read()[-1].aggregate == "oplog/bypass"


def test_two_logs_check_for_themselves(db: LoggedDatabase, raw: psycopg.Connection[Any]) -> None:
    db.execute(*create_statements("other"), *track_statements(["account"], schema="other"))
    for statements in ((UPDATE,), (NOW, UPDATE), (UPDATE, "RESET ALL")):
        refuse(raw, *statements)
    raw.execute("SET LOCAL oplog.bypass = 'one of both'")
    refuse(raw, UPDATE)
    (setting,) = [
        row[0]
        for row in raw.execute(
            "SELECT replace(substring(tgname from '.*(?=_guard_armed)'), '_guard', '') "
            "FROM pg_trigger WHERE tgrelid = 'account'::regclass "
            "AND tgname LIKE 'oplog\\_%\\_guard_armed'"
        ).fetchall()
    ]
    raw.execute(f"SET LOCAL {setting}.bypass = 'the other'".encode())
    raw.execute("SET LOCAL oplog.bypass = 'one of both'")
    raw.execute(UPDATE)
    raw.commit()


def test_two_phase_commit(db: LoggedDatabase, raw: psycopg.Connection[Any]) -> None:
    name = f"early_{db.engine.url.database}"
    refuse(raw, UPDATE, "RESET ALL", f"PREPARE TRANSACTION '{name}'")
    refuse(raw, NOW, UPDATE, f"PREPARE TRANSACTION '{name}'")
    session = db.sessions(twophase=False)
    session.execute(sa.text(UPDATE))
    session.commit()
    db.assert_replays()
