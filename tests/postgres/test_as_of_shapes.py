"""Tables as they were, whatever became of them: columns, keys, partitions, tenants."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, OplogError, SchemaDriftError
from tests.logged import open_logged
from tests.postgres.tenants import Line, Note, Plan, make_office
from tests.postgres.test_renamed_columns import Release

pytestmark = pytest.mark.postgres

CHANGES: dict[str, tuple[str, dict[str, int | None]]] = {
    "nothing": ("SELECT 1", {"a": 10, "b": 100}),
    "renamed": ("ALTER TABLE acct RENAME a TO x", {"x": 10, "b": 100}),
    "added": ("ALTER TABLE acct ADD c integer", {"a": 10, "b": 100, "c": None}),
    "added with a default": (
        "ALTER TABLE acct ADD c integer DEFAULT 9",
        {"a": 10, "b": 100, "c": 9},
    ),
    "dropped": ("ALTER TABLE acct DROP b", {"a": 10}),
    "swapped": (
        (
            "ALTER TABLE acct RENAME a TO t;ALTER TABLE acct RENAME b TO a;"
            "ALTER TABLE acct RENAME t TO b"
        ),
        {"a": 100, "b": 10},
    ),
    "dropped and added again": (
        "ALTER TABLE acct DROP b;ALTER TABLE acct ADD b integer DEFAULT 5",
        {"a": 10, "b": 5},
    ),
    # What the value would be now is in no log.
    "converted": (
        "ALTER TABLE acct ALTER a TYPE bigint USING a * 10",
        {"a": None, "b": 100},
    ),
    "all of it": (
        (
            "ALTER TABLE acct RENAME a TO x;ALTER TABLE acct DROP b;"
            "ALTER TABLE acct ADD c integer DEFAULT 9"
        ),
        {"x": 10, "c": 9},
    ),
}


@pytest.fixture
def first(engine: Engine) -> Release:
    release = Release(engine, Keyring.generate(), "a", "b")
    release.create()
    release.insert((1, 10, 100), (2, 20, 200), (3, 30, 300))
    return release


def check(
    release: Release, connection: Connection, at: int, *, noted: bool
) -> list[dict[str, Any]]:
    """All rows are each row by itself, in both shapes, and those of a select; the rows of now.

    A single row has the columns of now only when the change was noted in the log.
    """
    found: dict[str, list[Any]] = {}
    for shape in ("now", "then"):
        rows: Any = release.log.as_of(connection, "acct", at=at, shape=shape)
        found[shape] = list(rows)
        connection.rollback()
        each = [
            release.log.as_of(connection, "acct", key=key, at=at, shape=shape)
            for key in range(1, 6)
        ]
        if noted or shape == "then":
            assert found[shape] == [row for row in each if row is not None]
        connection.rollback()
    select = sa.select(release.table).order_by(release.table.c.id)
    assert list(release.log.as_of(connection, select, at=at)) == found["now"]
    connection.rollback()
    return found["now"]


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_table_that_was_changed(first: Release, name: str, *, noted: bool) -> None:
    before = first.find_position()
    ddl, columns = CHANGES[name]
    second = first.migrate(ddl, *columns)
    if noted:
        second.note()
        second.insert((4, *(7 for _ in columns)))
        second.delete(2)
    with second.engine.connect() as connection:
        rows = check(second, connection, before, noted=noted)
        assert [row["id"] for row in rows] == [1, 2, 3]
        assert rows[0] == {"id": 1, **columns}
        check(second, connection, second.find_position(), noted=noted)
        moved = second.log.diff(connection, "acct", before=before)
        assert [one.key["id"] for one in moved if one.kind != "changed"] == (
            [2, 4] if noted else []
        )


def test_columns_of_then(first: Release) -> None:
    before = first.find_position()
    ddl, columns = CHANGES["all of it"]
    second = first.migrate(ddl, *columns)
    second.note()
    with second.engine.connect() as connection:
        now = list(second.log.as_of(connection, "acct", at=before))
        connection.rollback()
        then = list(second.log.as_of(connection, "acct", at=before, shape="then"))
    assert now[0] == {"id": 1, "x": 10, "c": 9}
    assert then[0] == {"id": 1, "a": 10, "b": 100}


def test_a_table_that_is_gone(first: Release) -> None:
    before = first.find_position()
    second = first.migrate("DROP TABLE acct")
    with second.engine.connect() as connection:
        with pytest.raises(OplogError) as caught:
            second.log.as_of(connection, "acct", at=before)
        assert isinstance(caught.value, SchemaDriftError)
        connection.rollback()
        rows = list(second.log.as_of(connection, "acct", at=before, shape="then"))
    assert rows[0] == {"id": 1, "a": 10, "b": 100}


def test_a_key_that_was_replaced(first: Release) -> None:
    before = first.find_position()
    second = first.migrate(
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey;ALTER TABLE acct ADD PRIMARY KEY (id, a)",
        "a",
        "b",
    )
    columns = [sa.Column(n, sa.Integer, primary_key=n != "b") for n in ("id", "a", "b")]
    metadata = sa.MetaData()
    sa.Table("acct", metadata, *columns)
    log = Oplog(TypeCatalog.from_models(metadata), keyring=first.keyring)
    with second.engine.begin() as connection:
        log.replace_type(connection, "acct", reason="another key")
    with second.engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="shape='then'"):
            log.as_of(connection, "acct", at=before)
        connection.rollback()
        rows = list(log.as_of(connection, "acct", at=before, shape="then"))
        assert rows[0] == {"id": 1, "a": 10, "b": 100}


# -- other tables ---------------------------------------------------------------------------------


@pytest.fixture
def parted() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table(
        "Reading %",
        metadata,
        sa.Column("Place", sa.Text, primary_key=True),
        sa.Column("no:de", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("100%", sa.Text),
        postgresql_partition_by='LIST ("Place")',
    )
    return metadata


def test_partitions_odd_names_and_keys_that_change(engine: Engine, parted: sa.MetaData) -> None:
    db = open_logged(
        engine,
        parted,
        guarded=True,
        aggregates={"Reading %": "readings"},
        objects=[
            "CREATE TABLE reading_a PARTITION OF \"Reading %\" FOR VALUES IN ('a')",
            'CREATE TABLE reading_rest PARTITION OF "Reading %" DEFAULT',
        ],
    )
    (table,) = parted.tables.values()
    place, node, words = table.columns
    with db.sessions.begin() as session:
        session.execute(table.insert(), [{"Place": p, "no:de": 1, "100%": "%s"} for p in "abc"])
    before = db.read()[-1].position
    with db.sessions.begin() as session:
        session.execute(table.update().where(place == "a").values({"Place": "d"}))
        session.execute(table.delete().where(place == "b"))
        session.execute(table.insert(), {"Place": "e", "no:de": 1, "100%": "late"})
    first = {"Place": "a", "no:de": 1, "100%": "%s"}
    with engine.connect() as connection, db.log.moment(connection, at=before) as then:
        assert [row["Place"] for row in then.rows(table)] == ["a", "b", "c"]
        select = sa.select(table).where(words.like("%s"), place + "%" == "a%")
        assert list(then.rows(select)) == [first]
        assert list(then.rows(table, limit=1)) == [first]
        counted = sa.select(sa.func.count(node)).select_from(table)
        assert [tuple(row.values()) for row in then.rows(counted)] == [(3,)]
    with engine.connect() as connection:
        found = {
            one.key["Place"]: one.kind for one in db.log.diff(connection, table, before=before)
        }
        assert found == {"a": "deleted", "b": "deleted", "d": "created", "e": "created"}


@pytest.fixture
def translated(engine: Engine) -> Engine:
    return engine.execution_options(schema_translate_map={None: "t2"})


def test_tenants(engine: Engine, translated: Engine) -> None:
    office = make_office(engine, guarded=True)
    for tenant in ("t1", "t2"):
        with office.translated(tenant) as session:
            session.add(Plan(id=ord(tenant[1]), name=tenant))
            session.flush()
            session.add(Note(id=1, body=f"of {tenant}", plan_id=ord(tenant[1])))
            session.flush()
            session.add(Line(id=1, note_id=1, text="first"))
    with engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT max(position) FROM oplog.oplog_record").scalar()
    assert isinstance(before, int)
    with office.translated("t2") as session:
        session.get_one(Note, 1).body = "changed"
        session.get_one(Line, 1).text = "second"
    select = sa.select(Note.body, Plan.name, Line.text).join(Plan).join(Line)
    row = {"body": "of t2", "name": "t2", "text": "first"}
    with translated.connect() as connection:
        assert list(office.log.as_of(connection, select, at=before)) == [row]
        connection.rollback()
        assert [n["body"] for n in office.log.as_of(connection, Note, at=before)] == ["of t2"]
    with office.under("t2") as session:
        assert list(office.log.as_of(session, select, at=before)) == [row]
        (one,) = office.log.diff(session, Note, before=before)
        assert one.changes == {"body": ("of t2", "changed")}
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="in each of several schemas"):
            office.log.as_of(connection, select, at=before)
        connection.rollback()
        assert [n["body"] for n in office.log.as_of(connection, "t1.note", at=before)] == ["of t1"]


def test_tables_of_one_name_in_two_schemas(engine: Engine) -> None:
    office = make_office(engine, guarded=True)
    for tenant in ("t1", "t2"):
        with office.translated(tenant) as session:
            session.add(Note(id=1, body=f"of {tenant}"))
    with engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT max(position) FROM oplog.oplog_record").scalar()
    assert isinstance(before, int)
    for tenant in ("t1", "t2"):
        with office.translated(tenant) as session:
            session.get_one(Note, 1).body = "changed"
    # Table objects of somebody else's, as a reflection makes them.
    first, second = (
        Note.metadata.tables["note"].to_metadata(sa.MetaData(), schema=schema)
        for schema in ("t1", "t2")
    )
    select = sa.select(first.c.body, second.c.body.label("other")).join(
        second, first.c.id == second.c.id
    )
    with engine.connect() as connection:
        assert list(office.log.as_of(connection, select, at=before)) == [
            {"body": "of t1", "other": "of t2"}
        ]
