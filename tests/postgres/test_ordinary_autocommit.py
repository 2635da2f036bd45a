"""Engines in AUTOCOMMIT: each statement that writes rows commits with its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import Engine

from tests.older import name_cases
from tests.postgres.autocommitted import DOC, ITEM, NOTE, Database, open_database, status

pytestmark = pytest.mark.postgres


@pytest.fixture
def guarded(engine: Engine) -> Iterator[Database]:
    yield from open_database(engine, guarded=True)


@pytest.fixture(params=["guarded", "unguarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from open_database(engine, guarded=request.param == "guarded")


def test_constructs(db: Database) -> None:
    by_key = ITEM.c.id == sa.bindparam("k")
    statements: list[tuple[Any, Any]] = [
        (sa.insert(ITEM).values(id=1, name="a"), None),
        (sa.insert(ITEM), [{"id": n, "name": str(n), "n": n} for n in range(2, 7)]),
        (sa.insert(ITEM).values(name="new"), None),
        (sa.update(ITEM).where(ITEM.c.id == 1).values(n=8), None),
        (sa.update(ITEM).where(by_key).values(n=9), [{"k": 2}, {"k": 99}, {"k": 3}]),
        (sa.delete(ITEM).where(by_key), [{"k": 4}, {"k": 98}]),
        (sa.delete(ITEM).where(ITEM.c.id == 97), None),
    ]
    logged = []
    with db.auto.connect() as connection:
        connection.exec_driver_sql("SELECT setval('item_id_seq', 100)")
        for statement, parameters in statements:
            result = connection.execute(statement, parameters)
            # Everybody sees it, and nothing waits.
            assert status(connection) == "IDLE"
            logged.append(len({entry.position for entry in db.read()}))
            assert result.rowcount >= 0
    # The last one changed nothing.
    assert logged == [1, 2, 3, 4, 5, 6, 6]
    db.check()


WRITES: dict[str, Any] = {
    "text": sa.text("INSERT INTO item (id, name) VALUES (5, 'x')"),
    "text that returns": sa.text("INSERT INTO item (name) VALUES ('x') RETURNING id"),
    "several": sa.text("INSERT INTO item (name) VALUES ('x'); DELETE FROM item WHERE name = '2'"),
    "comment first": sa.text("/* who */ -- why\n UPDATE item SET n = n + 1"),
    "WITH": sa.text("WITH gone AS (DELETE FROM item WHERE id = 1 RETURNING id) SELECT * FROM gone"),
    "EXPLAIN": sa.text("EXPLAIN ANALYZE DELETE FROM item WHERE id = 1"),
    "function": sa.text("SELECT add_note('x')"),
    "construct of a function": sa.select(sa.func.add_note("x")),
    "MERGE": sa.text(
        "MERGE INTO item t USING (VALUES (1), (9)) AS s(id) ON t.id = s.id "
        "WHEN MATCHED THEN UPDATE SET n = 1 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'm', 2)"
    ),
    "ON CONFLICT": upsert(ITEM).values(id=1, name="z").on_conflict_do_nothing(),
    "condition": sa.update(ITEM).where(ITEM.c.n == 7).values(n=8),
    "CTE": sa.select(sa.delete(ITEM).returning(ITEM.c.id).cte("gone")),
    "INSERT SELECT": sa.insert(NOTE).from_select(["text"], sa.select(ITEM.c.name)),
    "deferred trigger": sa.insert(DOC).values(id=1, item_id=1, version=1),
}


@pytest.mark.parametrize("name", name_cases(WRITES))
def test_writes_that_guards_capture(guarded: Database, name: str) -> None:
    with guarded.auto.connect() as connection:
        connection.execute(sa.insert(ITEM), [{"name": str(n)} for n in (1, 2)])
        before = len(guarded.read())
        result = connection.execute(WRITES[name])
        assert status(connection) == "IDLE"
        if result.returns_rows:
            result.fetchall()
    with guarded.auto.connect() as connection:
        connection.exec_driver_sql("UPDATE item SET n = 3 WHERE id = 2")
    guarded.check()
    assert len(guarded.read()) > before or name == "ON CONFLICT"


READS: dict[str, Any] = {
    "text": sa.text("SELECT count(*) FROM item"),
    "WITH": sa.text("WITH a AS (SELECT 1) SELECT * FROM a"),
    "select": sa.select(ITEM),
    "SHOW": sa.text("SHOW search_path"),
    "server-side": sa.text("SELECT generate_series(1, 10)").execution_options(stream_results=True),
    "VACUUM": sa.text("VACUUM item"),
    "index": sa.text("CREATE INDEX CONCURRENTLY item_n ON item (n)"),
    "its own transaction": sa.text("BEGIN; SELECT 1; COMMIT"),
}


@pytest.mark.parametrize("name", READS)
def test_other_statements_are_sent_as_they_are(guarded: Database, name: str) -> None:
    guarded.sent.clear()
    with guarded.auto.connect() as connection:
        if name == "server-side":
            # As without the log.
            with pytest.raises(Exception, match=r"transaction block"):
                connection.execute(READS[name])
        else:
            connection.execute(READS[name])
            assert [found for _, found in guarded.sent] == ["IDLE"]
    guarded.check()


def test_returned_keys_in_batches(guarded: Database) -> None:
    with guarded.auto.connect() as connection:
        insert = sa.insert(ITEM).returning(ITEM.c.id, sort_by_parameter_order=True)
        rows = [{"name": str(n)} for n in range(5)]
        assert connection.execute(insert, rows).scalars().all() == [1, 2, 3, 4, 5]
    assert len({entry.position for entry in guarded.read()}) == 1
    guarded.check()
