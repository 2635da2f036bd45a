"""Constraints that rows of a log break: NOT VALID, or narrowed after the rows were changed."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from oplog.errors import ReplayError
from oplog.replay import replay_log, verify_tables
from tests.kept import open_log
from tests.postgres.archived import open_memory
from tests.postgres.migrated import App, make_app, run_ddl

pytestmark = pytest.mark.postgres

BEFORE = (
    "CREATE DOMAIN pos AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN odd AS pos",
    "CREATE TABLE thing (id integer PRIMARY KEY, a odd, b text, c integer)",
)
UNPROVED = (
    "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20) NOT VALID",
    "ALTER TABLE thing ADD CONSTRAINT short CHECK (length(b) < 2) NOT VALID",
    "COMMENT ON CONSTRAINT small ON DOMAIN pos IS 'it''s small'",
    "COMMENT ON CONSTRAINT short ON thing IS 'short'",
)
ROWS = "INSERT INTO thing VALUES (1, 21, 'long', 1), (2, 3, 'x', 2)"
CONSTRAINTS = (
    "SELECT conname::text, convalidated, pg_get_constraintdef(oid), "
    "obj_description(oid, 'pg_constraint') FROM pg_constraint "
    "WHERE conname IN ('small', 'short') ORDER BY 1"
)


def list_constraints(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(CONSTRAINTS)]


@pytest.fixture
def app(engine: Engine) -> App:
    app = make_app(engine, *BEFORE)
    app.write(ROWS)
    return app


@pytest.mark.filterwarnings("ignore:Can't validate argument")
def test_a_restore_keeps_constraints_that_rows_break(app: App, spare_engine: Engine) -> None:
    archive = open_memory()
    migrated = app.migrate(*UNPROVED)
    migrated.note()
    migrated.write("UPDATE thing SET c = 3 WHERE id = 2")
    migrated.log.sync(migrated.engine, archive)
    target = make_app(spare_engine, *BEFORE, *UNPROVED, keyring=app.keyring)
    target.restore(archive)
    assert target.dump() == migrated.dump()
    assert target.verify().ok
    assert list_constraints(spare_engine) == list_constraints(app.engine)
    assert [row[1] for row in list_constraints(spare_engine)] == [False, False]
    for broken in ("(3, 20, 'x', 3)", "(3, 2, 'xx', 3)"):
        with pytest.raises(IntegrityError):
            target.write(f"INSERT INTO thing VALUES {broken}")
    target.write("INSERT INTO thing VALUES (3, 2, 'x', 3)")
    assert target.verify().ok


def test_rows_that_break_a_constraint_of_the_target_that_holds_are_refused(
    app: App, spare_engine: Engine
) -> None:
    archive = open_memory()
    app.log.sync(app.engine, archive)
    narrow = "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20)"
    target = make_app(spare_engine, *BEFORE, narrow, keyring=app.keyring)
    with pytest.raises(ReplayError, match="small"):
        target.restore(archive)


def test_a_domain_may_be_narrower_than_rows_were_on_the_way(app: App) -> None:
    """Each row is loaded by itself, so that no later one hides it."""
    app.write("UPDATE thing SET a = 5 WHERE id = 1")
    run_ddl(app.engine, "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20)")
    with app.engine.begin() as connection:
        replay_log(connection, open_log(app.log), into="again", batch_rows=1)
        types = connection.exec_driver_sql(
            "SELECT atttypid::regtype::text FROM pg_attribute "
            "WHERE attrelid = 'again.thing'::regclass AND attname = 'a'"
        ).scalars()
        assert list(types) == ["odd"]
    with app.engine.connect() as connection:
        assert verify_tables(connection, open_log(app.log), batch_rows=1).ok


def test_a_replay_says_which_rows_break_a_domain(app: App) -> None:
    with app.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'the test says so'")
        connection.exec_driver_sql("UPDATE thing SET a = 5 WHERE id = 1")
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        connection.exec_driver_sql("ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20)")
    with app.engine.begin() as connection, pytest.raises(ReplayError, match=r"of a domain.*small"):
        app.log.replay(connection, into="again")
    assert not app.verify().ok


def test_arrays_of_a_domain_that_was_narrowed(engine: Engine, spare_engine: Engine) -> None:
    made = (*BEFORE, "ALTER TABLE thing ADD d odd[]")
    app, archive = make_app(engine, *made), open_memory()
    app.write("INSERT INTO thing (id, d) VALUES (1, '{21,NULL}'), (2, NULL), (3, '{5,6}')")
    before, dump = app.position(), app.dump()
    migrated = app.migrate("ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20) NOT VALID")
    assert migrated.verify().ok
    migrated.note()
    migrated.write("UPDATE thing SET d = '{7}' WHERE id = 3")
    assert migrated.verify().ok
    assert migrated.replay() == migrated.dump()
    assert migrated.replay(through=before) == dump
    migrated.log.sync(migrated.engine, archive)
    narrow = "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20) NOT VALID"
    target = make_app(spare_engine, *made, narrow, keyring=app.keyring)
    target.restore(archive)
    assert target.dump() == migrated.dump()
    migrated.write("UPDATE thing SET d = '{1}' WHERE id = 1", "DELETE FROM thing WHERE id = 2")
    run_ddl(
        migrated.engine,
        "SET LOCAL oplog.bypass = 'the test says so'",
        "UPDATE thing SET d = '{2}' WHERE id = 1",
        "SET CONSTRAINTS ALL IMMEDIATE",
    )
    (difference,) = migrated.verify().differences
    assert (difference.column, difference.live, difference.logged) == ("d", "{2}", "{1}")
    with migrated.engine.begin() as connection:
        migrated.log.replay(connection, into="again")
        kind = connection.exec_driver_sql(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'again.thing'::regclass AND attname = 'd'"
        ).scalar_one()
        assert kind == "odd[]"


def test_rows_are_told_by_keys_that_are_arrays_of_a_domain(
    engine: Engine, spare_engine: Engine
) -> None:
    made = (
        "CREATE DOMAIN even AS integer CHECK (VALUE % 2 = 0)",
        "CREATE TABLE thing (id even[] PRIMARY KEY, a integer)",
    )
    app, archive = make_app(engine, *made), open_memory()
    app.write("INSERT INTO thing VALUES ('{2}', 1), ('{}', 2)")
    assert app.verify().ok
    app.write("UPDATE thing SET a = 3 WHERE cardinality(id) = 0")
    assert app.verify().ok
    app.log.sync(app.engine, archive)
    target = make_app(spare_engine, *made, keyring=app.keyring)
    target.restore(archive)
    assert target.dump() == app.dump()
    with engine.connect() as connection:
        rows = list(app.log.as_of(connection, "thing", at=1))
    assert sorted(row["a"] for row in rows) == [1, 2]
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'by hand'")
        connection.exec_driver_sql("UPDATE thing SET a = 4 WHERE cardinality(id) = 1")
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    (difference,) = app.verify().differences
    assert (difference.column, difference.live, difference.logged) == ("a", 4, 1)
