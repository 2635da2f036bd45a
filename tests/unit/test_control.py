"""Which statements may change what a table's name means, told by their text."""

from __future__ import annotations

import pytest

from oplog.capture.control import may_redirect

pytestmark = pytest.mark.unit

REDIRECTING = [
    "SET search_path = t2",
    "set local Search_Path to t2, public",
    "SET SESSION search_path = t2",
    "SET SCHEMA 't2'",
    "SET ROLE other",
    "SET LOCAL ROLE other",
    "SET SESSION AUTHORIZATION other",
    "SET LOCAL SESSION AUTHORIZATION other",
    "RESET search_path",
    "RESET ALL",
    "DISCARD ALL",
    "  -- tenant\n /* a /* b */ */ SET search_path = t2",
    "SELECT set_config('search_path', 't2', true)",
    "SELECT pg_catalog.set_config ( 'role', 'x', true)",
    "SELECT set_config(%s, %s, true)",
    "SELECT 1 FROM set_config($1, 't2', false)",
    "CREATE TEMP TABLE note (id int)",
    "CREATE SCHEMA t0",
    "ALTER TABLE note SET SCHEMA t2",
    "ALTER TABLE note RENAME TO other",
    "DROP TABLE note",
    "SELECT * INTO TEMP note FROM t1.note",
    "WITH x AS (SELECT 1) SELECT * INTO note FROM x",
    "CALL enter_tenant('t2')",
    "DO $$ BEGIN SET search_path = t2; END $$",
    "EXECUTE prepared",
    "SELECT 1; SET search_path = t2",
    "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z",
]
NEUTRAL = [
    "SELECT 1",
    "SELECT 1;",
    "SELECT 1 ; \n",
    "SELECT set_config('app.tenant', %s, true)",
    "SELECT set_config('TimeZone', 'UTC', true)",
    "SET LOCAL app.tenant = 'a'",
    "SET timezone = 'UTC'",
    "SET LOCAL statement_timeout = 5",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "INSERT INTO note SELECT * FROM other",
    "UPDATE note SET body = 'x'",
    "DELETE FROM note",
    "MERGE INTO note USING x ON true WHEN MATCHED THEN DELETE",
    "COPY note FROM STDIN",
    "LOCK TABLE note",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "RELEASE a",
    "SHOW search_path",
    "WITH x AS (SELECT 1) SELECT * FROM x",
]


@pytest.mark.parametrize("statement", REDIRECTING)
def test_statements_after_which_a_name_may_mean_another_table(statement: str) -> None:
    assert may_redirect(statement)


@pytest.mark.parametrize("statement", NEUTRAL)
def test_statements_that_leave_names_alone(statement: str) -> None:
    assert not may_redirect(statement)
