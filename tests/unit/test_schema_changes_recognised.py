"""Which statements may alter a table, as their text alone says."""

from __future__ import annotations

import pytest

from oplog.capture.control import (
    calls_function,
    changes_schema,
    ends_transaction,
    may_alter,
    runs_routine,
    sets_constraints,
    writes_rows,
)

pytestmark = pytest.mark.unit

CHANGES = [
    "ALTER TABLE a ADD b int",
    "/* why */ -- and\n alter table a add b int",
    "DROP TABLE a",
    "TRUNCATE a",
    "CREATE INDEX i ON a (b)",
    "CREATE UNIQUE INDEX i ON a (b)",
    "CREATE TRIGGER t AFTER INSERT ON a EXECUTE FUNCTION f()",
    "CREATE TABLE b (a int REFERENCES a)",
    "CREATE TABLE b PARTITION OF a FOR VALUES IN (1)",
    "REINDEX TABLE a",
    "CLUSTER a",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "UPDATE a SET b = 1; ALTER TABLE a ADD c int",
    'SELECT "oplog".oplog_track_table(\'"a"\'::regclass, NULL)',
    "SOMETHING NEW",
]
LEAVES = [
    "SELECT 1",
    "WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x",
    "INSERT INTO a VALUES ('; ALTER TABLE a')",
    "UPDATE a SET b = 1; DELETE FROM a",
    "COPY a FROM STDIN",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "COMMIT",
    "SET LOCAL search_path = b",
    "SET CONSTRAINTS mine DEFERRED",
    "CREATE TEMP TABLE t (a int)",
    "CREATE LOCAL TEMPORARY TABLE t AS SELECT 1",
    "CREATE TABLE b (a int)",
    "COMMENT ON TABLE a IS 'x'",
    "GRANT SELECT ON a TO b",
    "EXPLAIN ANALYZE UPDATE a SET b = 1",
    "DO $$ BEGIN END $$",
    "CALL p()",
    "  -- nothing",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_what_may_change_a_table(statement: str) -> None:
    assert changes_schema(statement)


@pytest.mark.parametrize("statement", LEAVES)
def test_what_leaves_tables_alone(statement: str) -> None:
    assert not changes_schema(statement)


def test_in_a_migration_whatever_does_not_concern_rows_counts() -> None:
    for statement in (*CHANGES, "CREATE FUNCTION f() RETURNS int", "COMMENT ON TABLE a IS 'x'"):
        assert changes_schema(statement, strict=True)
    for statement in ("SELECT 1", "DO $$ BEGIN END $$", "SET LOCAL a = 1", "INSERT INTO a", ""):
        assert not changes_schema(statement, strict=True)


def test_what_makes_another_binding_needed() -> None:
    for statement in ("ALTER TABLE a ADD b int", "CREATE OR REPLACE TRIGGER t AFTER INSERT ON a"):
        assert may_alter(statement)
        assert may_alter(f"UPDATE a SET b = ';'; {statement}")
    for statement in ("CREATE INDEX i ON a (b)", "CREATE TEMP TABLE t (a int)", "DROP TABLE a"):
        assert not may_alter(statement)


def test_functions_and_routines() -> None:
    for statement in ("SELECT f()", 'select "s" . "f x" (1, 2)', "/**/ SELECT s.f(a => 1)"):
        assert calls_function(statement)
    for statement in ("SELECT f() FROM a", "SELECT 1", "UPDATE a SET b = f()", "SELECT (f())"):
        assert not calls_function(statement)
    assert runs_routine("DO $$ BEGIN END $$")
    assert runs_routine("call p()")
    assert not runs_routine("DOMAIN")
    assert sets_constraints("set  constraints a immediate")
    assert not sets_constraints("SET constraint_exclusion = on")


def test_what_writes_rows() -> None:
    for statement in (
        "INSERT INTO a VALUES (1)",
        "/* who */ -- why\n update a SET b = 1",
        "WITH gone AS (DELETE FROM a RETURNING *) SELECT * FROM gone",
        "EXPLAIN ANALYZE MERGE INTO a",
        "EXECUTE p(1)",
        "COPY a FROM '/b'",
        "CREATE TEMP TABLE t (a int); INSERT INTO a VALUES (';')",
    ):
        assert writes_rows(statement)
        assert writes_rows(statement, functions=False)
    assert writes_rows("SELECT f()")
    assert not writes_rows("SELECT f()", functions=False)
    for statement in (
        "SELECT 1",
        "SELECT 'insert' FROM a",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "EXPLAIN SELECT 1",
        "VACUUM a",
        "CREATE INDEX CONCURRENTLY i ON a (b)",
        "DO $$ BEGIN INSERT INTO a VALUES (1); END $$",
        "CALL p()",
        "",
        # They say themselves when they commit.
        "BEGIN; INSERT INTO a VALUES (1); COMMIT",
        "start transaction; INSERT INTO a VALUES (1)",
        "INSERT INTO a VALUES (1); SAVEPOINT s",
    ):
        assert not writes_rows(statement)


def test_what_ends_a_transaction() -> None:
    assert ends_transaction("COMMIT") == "commit"
    assert ends_transaction("/* x */ END WORK") == "commit"
    assert ends_transaction("PREPARE TRANSACTION 'x'") == "commit"
    assert ends_transaction("rollback") == "rollback"
    assert ends_transaction("ABORT") == "rollback"
    assert ends_transaction("ROLLBACK TO SAVEPOINT x") is None
    assert ends_transaction("UPDATE a SET b = 1") is None
