"""What `make histories` makes up and compares, on a schema of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.histories.endings import compare_by_number
from tests.histories.ledger import Ledger, StepError
from tests.histories.rows import Generator
from tests.histories.tables import compare_content, read_content, read_tables

pytestmark = pytest.mark.postgres

SCHEMA = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE DOMAIN short AS varchar(4) NOT NULL;
CREATE TABLE parent (
    place int, code short, mood mood NOT NULL, kind text NOT NULL CHECK (kind IN ('it''s', 'b')),
    price numeric(5, 2) CHECK (price > 0), twice int GENERATED ALWAYS AS (place * 2) STORED,
    PRIMARY KEY (place, code));
CREATE TABLE child (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, place int NOT NULL, code varchar(4) NOT NULL,
    above int REFERENCES child, one_only uuid UNIQUE NOT NULL, marks text[] NOT NULL,
    body jsonb NOT NULL, at timestamptz NOT NULL, "odd %name:" bytea NOT NULL,
    FOREIGN KEY (place, code) REFERENCES parent);
CREATE TABLE hopeless (id int PRIMARY KEY, a int CHECK (a < 0 AND a > 0), b text NOT NULL);
ALTER TABLE hopeless ALTER a SET NOT NULL;
INSERT INTO parent VALUES (1, 'seed', 'sad', 'b', 1);
"""


@pytest.fixture
def ledger(bare_database_url: URL, tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(bare_database_url, tmp_path / "archive")
    with ledger.connect() as connection:
        connection.exec_driver_sql(SCHEMA.replace("%", "%%"))
    ledger.begin("first")
    yield ledger
    ledger.release()


def write(ledger: Ledger, generator: Generator) -> int:
    tables = ledger.read()
    with ledger.attached() as engine, engine.begin() as connection:
        done = generator.fill(connection, tables, rows=4)
        done += generator.change(connection, tables)
        done += generator.remove(connection, tables, above=3)
    return done


def test_made_up_rows_are_accepted_logged_and_compared(ledger: Ledger) -> None:
    generator = Generator()
    for _ in range(4):
        assert write(ledger, generator)
        ledger.check(replayed=True)
    with ledger.connect() as connection:
        content = read_content(connection, ledger.read())
    assert content["parent"].rows.total() >= 3
    assert content["child"].rows.total() >= 3
    assert generator.refused.keys() == {"hopeless"}
    assert "violates check constraint" in generator.refused["hopeless"]
    # What a migration inserted stays as it is.
    assert ("seed", "b", "sad", "1", "1.00", "2") in content["parent"].rows


def test_own_rows_are_taken_away_and_others_stay(ledger: Ledger) -> None:
    generator = Generator()
    write(ledger, generator)
    tables = ledger.read()
    with ledger.attached() as engine, engine.begin() as connection:
        for name in ("child", "child", "parent"):
            generator.forget(connection, tables[name])
    with ledger.connect() as connection:
        content = read_content(connection, tables)
    assert content["child"].rows.total() == 0
    assert content["parent"].rows.total() == 1
    ledger.check(replayed=True)


def test_a_row_behind_the_logs_back_is_found(ledger: Ledger) -> None:
    write(ledger, Generator())
    with ledger.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE parent DISABLE TRIGGER USER")
        connection.exec_driver_sql("UPDATE parent SET kind = 'it''s' WHERE code = 'seed'")
    with pytest.raises(StepError, match="1 differences") as caught:
        ledger.check(replayed=True)
    assert caught.value.stage == "verify"
    with pytest.raises(StepError, match="parent: 1 rows missing, 1 rows more"):
        ledger.compare_replay(ledger.make_log())


def test_contents_are_compared_by_name_and_by_number(ledger: Ledger) -> None:
    with ledger.connect() as connection:
        before = read_content(connection, ledger.read())
    with ledger.connect() as connection:
        connection.exec_driver_sql("DROP SCHEMA oplog CASCADE")
        connection.exec_driver_sql("ALTER TABLE parent RENAME kind TO sort")
        connection.exec_driver_sql("ALTER TABLE parent RENAME TO parents")
        after = read_content(connection, read_tables(connection))
    assert compare_by_number(before, after) == []
    assert compare_content(before, after) == ["parent is missing"]
    with ledger.connect() as connection:
        connection.exec_driver_sql("UPDATE parents SET sort = 'it''s'")
        changed = read_content(connection, read_tables(connection))
    (difference,) = compare_by_number(before, changed)
    assert difference.startswith("parent: 1 rows missing, 1 rows more")
    assert len(compare_content(after, changed)) == 1
