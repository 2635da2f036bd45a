"""Restored tables of every awkward kind: keys that Postgres gives, triggers, partitions."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import sessionmaker

from oplog import Oplog, TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.errors import ReplayError
from oplog.postgres.quoting import (
    qualify,
)
from oplog.recovery import RestoreReport, restore_log
from oplog.schema.tables import (
    track_statements,
)
from tests.kept import KeptLog
from tests.kept import open_log as make_opener
from tests.postgres.restored import describe_tables, dump_log
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

TABLES = """
CREATE TABLE kind (id integer PRIMARY KEY, title text);
INSERT INTO kind VALUES (1, 'of migrations');
CREATE SEQUENCE shared INCREMENT 5;
CREATE SEQUENCE falling INCREMENT -2;
CREATE TABLE thing (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  turn integer GENERATED ALWAYS AS IDENTITY,
  old serial,
  shared bigint NOT NULL DEFAULT nextval('shared'),
  down integer NOT NULL DEFAULT nextval('falling'),
  name text UNIQUE,
  rank integer CONSTRAINT later UNIQUE DEFERRABLE INITIALLY DEFERRED,
  twice integer GENERATED ALWAYS AS (rank * 2) STORED,
  kind_id integer REFERENCES kind,
  up bigint CONSTRAINT upwards REFERENCES thing ON DELETE SET NULL DEFERRABLE,
  made timestamptz NOT NULL DEFAULT now());
COMMENT ON CONSTRAINT upwards ON thing IS 'it''s kept';
CREATE TABLE reading (id bigint, day date, value float8, thing_id bigint REFERENCES thing,
  PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE reading_a PARTITION OF reading FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE reading_b PARTITION OF reading FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
CREATE TABLE note (id integer PRIMARY KEY, body text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE 'a trigger of the application fired'; END $$;
"""
TRIGGERS = """
CREATE TRIGGER plain BEFORE INSERT ON thing FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE TRIGGER always AFTER INSERT ON thing EXECUTE FUNCTION refuse();
ALTER TABLE thing ENABLE ALWAYS TRIGGER always;
CREATE TRIGGER replica AFTER INSERT ON thing EXECUTE FUNCTION refuse();
ALTER TABLE thing ENABLE REPLICA TRIGGER replica;
CREATE TRIGGER off AFTER INSERT ON thing EXECUTE FUNCTION refuse();
ALTER TABLE thing DISABLE TRIGGER off;
CREATE TRIGGER parted BEFORE INSERT ON reading FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE reading_b DISABLE TRIGGER parted;
CREATE RULE silent AS ON INSERT TO note DO INSTEAD NOTHING;
"""
WRITES = """
INSERT INTO thing (name, rank, kind_id) VALUES ('a', 1, 1), ('b', 2, NULL), ('c', 3, NULL);
UPDATE thing SET name = 'tmp' WHERE id = 1;
UPDATE thing SET name = 'a' WHERE id = 2;
UPDATE thing SET name = 'b', up = 1 WHERE id = 1;
UPDATE thing SET rank = 4 - rank;
UPDATE thing SET turn = DEFAULT WHERE id = 3;
UPDATE thing SET up = 3 WHERE id = 2;
INSERT INTO reading VALUES (1, '2024-01-05', 0.5, 1), (2, '2024-02-05', 'NaN', 2);
UPDATE reading SET day = '2024-02-01' WHERE id = 1;
INSERT INTO note VALUES (1, 'x');
DELETE FROM thing WHERE id = 3;
"""
ROWS = (
    "SELECT row(t.*)::text FROM thing t ORDER BY 1",
    "SELECT row(tableoid::regclass, t.*)::text FROM reading t ORDER BY 1",
    "SELECT row(t.*)::text FROM note t ORDER BY 1",
)


def run(engine: Engine, script: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})


def read_rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [connection.exec_driver_sql(select).all() for select in ROWS]


def open_log(engine: Engine, keyring: Keyring) -> Oplog:
    """The tables, guarded, with what their own database says of them as models."""
    run(engine, TABLES)
    metadata = sa.MetaData()
    metadata.reflect(engine, only=["thing", "reading", "note", "kind"])
    with engine.begin() as connection:
        for statement in track_statements(qualify(["thing", "reading", "note"], None)):
            connection.exec_driver_sql(statement)
    catalog = TypeCatalog.from_models(metadata, untracked={"kind": "comes with migrations"})
    return Oplog(catalog, keyring=keyring)


@pytest.fixture
def source(engine: Engine) -> Oplog:
    log = open_log(engine, Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    for statement in WRITES.strip().split("\n"):
        with sessions.begin() as session:
            session.execute(sa.text(statement.replace(":", r"\:")))
    assert_replays(log, engine)
    return log


@pytest.fixture
def target(spare_engine: Engine, source: Oplog) -> Oplog:
    return open_log(spare_engine, source.keyring)  # type: ignore[arg-type]


def restore(source: Oplog, engine: Engine, target: Oplog, onto: Engine) -> RestoreReport:
    kept = KeptLog(source.store)
    with engine.connect() as connection:
        kept.take(connection)
    with onto.connect() as connection:
        return restore_log(
            connection,
            kept,
            log=make_opener(target, kept),
            schema="oplog",
            batch_rows=2,
        )


def describe(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return describe_tables(connection)


def test_rows_come_back_past_every_trigger_which_is_then_as_before(
    engine: Engine, spare_engine: Engine, source: Oplog, target: Oplog
) -> None:
    run(spare_engine, TRIGGERS)
    before = describe(spare_engine)
    restore(source, engine, target, spare_engine)
    assert read_rows(spare_engine) == read_rows(engine)
    assert describe(spare_engine) == before
    with engine.connect() as here, spare_engine.connect() as there:
        assert dump_log(there) == dump_log(here)
    assert_replays(target, spare_engine)


def test_keys_go_on_where_the_source_s_were(
    engine: Engine, spare_engine: Engine, source: Oplog, target: Oplog
) -> None:
    restore(source, engine, target, spare_engine)
    sessions = sessionmaker(spare_engine)
    target.attach(sessions)
    with sessions.begin() as session:
        session.execute(sa.text("INSERT INTO thing (name) VALUES ('new')"))
    with spare_engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT id > 2, turn > 2, old > 2, shared > 6, down < -3 FROM thing WHERE name = 'new'"
        ).one()
    assert list(found) == [True] * 5
    assert_replays(target, spare_engine)


def test_a_sequence_that_is_further_stays(
    engine: Engine, spare_engine: Engine, source: Oplog, target: Oplog
) -> None:
    run(spare_engine, "ALTER SEQUENCE shared RESTART 1000; SELECT nextval('thing_old_seq') + 1;")
    run(spare_engine, "SELECT setval('thing_id_seq', 500)")
    restore(source, engine, target, spare_engine)
    with spare_engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT nextval('shared'), nextval('thing_id_seq'), nextval('thing_old_seq')"
        ).one()
    assert list(found) == [1000, 501, 3]


def test_a_reference_to_an_unlogged_table_is_checked(
    engine: Engine, spare_engine: Engine, source: Oplog, target: Oplog
) -> None:
    run(spare_engine, "DELETE FROM kind")
    with pytest.raises(ReplayError, match=r"public\.thing break its foreign key") as caught:
        restore(source, engine, target, spare_engine)
    assert "public.kind is not logged" in caught.value.hint


def test_adopted_rows_come_back(engine: Engine, spare_engine: Engine) -> None:
    log = open_log(engine, Keyring.generate())
    run(engine, "SET LOCAL oplog.bypass = 'before the log'; " + WRITES)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.execute(sa.text("UPDATE thing SET name = 'early' WHERE id = 1"))
    with engine.connect() as connection:
        log.adopt(connection, chunk_rows=1)
    with sessions.begin() as session:
        session.execute(sa.text("UPDATE thing SET name = 'late' WHERE id = 2"))
    target = open_log(spare_engine, log.keyring)  # type: ignore[arg-type]
    report = restore(log, engine, target, spare_engine)
    assert read_rows(spare_engine) == read_rows(engine)
    with engine.connect() as connection:
        assert log.replay(connection).digest == report.digest
    assert_replays(target, spare_engine)


def test_a_swapped_name_does_not_stop_a_restore(
    engine: Engine, spare_engine: Engine, source: Oplog, target: Oplog
) -> None:
    """The two names never meet in the source, and in one batch they would."""
    restore(source, engine, target, spare_engine)
    with spare_engine.connect() as connection:
        assert _list_names(connection) == [(1, "b"), (2, "a")]


def _list_names(connection: Connection) -> list[tuple[int, str]]:
    rows = connection.exec_driver_sql("SELECT id, name FROM thing ORDER BY 1")
    return [(row[0], row[1]) for row in rows]
