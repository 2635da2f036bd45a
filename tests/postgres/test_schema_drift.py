"""Tables that were altered behind the log's back: named, and right again after a migration."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Oplog, TypeCatalog
from oplog.errors import OplogError, SchemaDriftError
from tests.logged import LoggedDatabase, open_logged
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

A, B, D = sa.Column("a", sa.Text), sa.Column("b", sa.Integer), sa.Column("d", sa.Date)
DRIFTS: dict[str, tuple[str, list[sa.Column[Any]], list[object]]] = {
    "column added": (
        "ALTER TABLE thing ADD COLUMN extra text",
        [A, B, D, sa.Column("extra", sa.Text)],
        [],
    ),
    "column added with a value for every row": (
        "ALTER TABLE thing ADD COLUMN extra integer NOT NULL DEFAULT 5",
        [A, B, D, sa.Column("extra", sa.Integer)],
        [],
    ),
    "column dropped": ("ALTER TABLE thing DROP COLUMN b", [A, D], []),
    "column renamed": (
        "ALTER TABLE thing RENAME COLUMN a TO c",
        [sa.Column("c", sa.Text), B, D],
        [],
    ),
    "column retyped": (
        "ALTER TABLE thing ALTER COLUMN b TYPE text USING b::text || ' pieces'",
        [A, sa.Column("b", sa.Text), D],
        ["1 pieces"],
    ),
}


def declare(columns: list[sa.Column[Any]]) -> sa.MetaData:
    metadata = sa.MetaData()
    fresh = [sa.Column(c.name, c.type) for c in columns]
    sa.Table("thing", metadata, sa.Column("id", sa.Integer, primary_key=True), *fresh)
    return metadata


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, declare([A, B, D]), guarded=True)
    with db.sessions.begin() as session:
        session.execute(sa.text("INSERT INTO thing VALUES (1, 'apple', 1, '2026-01-02')"))
    return db


@pytest.mark.parametrize(("statement", "columns", "rewritten"), DRIFTS.values(), ids=DRIFTS.keys())
def test_what_nobody_noted_is_worked_out_and_rewritten_values_differ(
    db: LoggedDatabase,
    statement: str,
    columns: list[sa.Column[Any]],
    rewritten: list[object],
) -> None:
    db.execute(statement)
    with db.engine.connect() as connection:
        report = db.log.verify(connection)
        assert report.unnoted == ("thing",)
        assert report.to_json()["unnoted"] == ["thing"]
        assert [one.live for one in report.differences] == rewritten
        assert report.ok is not bool(rewritten)
        # The log alone still has the table as it was noted.
        assert db.log.replay(connection).rows == 1
    migrate(db, columns)
    with db.engine.connect() as connection:
        assert db.log.verify(connection).unnoted == ()


@pytest.mark.parametrize(
    ("statement", "live"),
    [
        ("ALTER TABLE thing ALTER COLUMN d TYPE text USING d || ' or so'", "2026-01-02 or so"),
        ("ALTER TABLE thing ALTER COLUMN a TYPE varchar(3) USING left(a, 3)", "app"),
        ("ALTER TABLE thing ALTER COLUMN b TYPE bigint USING b + 1", 2),
    ],
)
def test_another_type_of_the_same_kind(db: LoggedDatabase, statement: str, live: object) -> None:
    """What the database wrote anew is not in the log yet: named, and nothing is refused."""
    db.execute(statement)
    with db.engine.connect() as connection:
        (difference,) = db.log.verify(connection).differences
    assert (difference.table, difference.live) == ("public.thing", live)
    assert difference.logged is None


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (
            (
                "ALTER TABLE thing DROP CONSTRAINT thing_pkey",
                "ALTER TABLE thing ADD PRIMARY KEY (d)",
            ),
            r"public\.thing has primary key \(d\) in the database and \(id\) in the log",
        ),
        (
            (
                "CREATE TABLE thing2 AS SELECT * FROM thing",
                "DROP TABLE thing",
                "ALTER TABLE thing2 RENAME TO thing",
                "ALTER TABLE thing ADD PRIMARY KEY (id)",
            ),
            r"public\.thing was replaced by another one of that name, which has rows",
        ),
    ],
)
def test_what_nothing_proves_is_refused_with_the_line_to_add(
    db: LoggedDatabase, statements: tuple[str, ...], what: str
) -> None:
    db.execute(*statements)
    with db.engine.connect() as connection, pytest.raises(SchemaDriftError, match=what) as drifted:
        db.log.verify(connection)
    assert "op.replace_type('thing', reason=...)" in str(drifted.value.hint)
    assert not drifted.value.retryable


def test_a_role_that_may_only_read_verifies_too(db: LoggedDatabase) -> None:
    """It cannot ask the database what became of rows; what the columns say has to do."""
    db.execute(
        "CREATE ROLE looker LOGIN",
        "GRANT USAGE ON SCHEMA oplog, public TO looker",
        "GRANT SELECT ON ALL TABLES IN SCHEMA oplog, public TO looker",
        "GRANT TEMPORARY ON DATABASE " + str(db.engine.url.database) + " TO looker",
        "ALTER TABLE thing RENAME COLUMN a TO c",
    )
    try:
        with db.engine.connect() as connection:
            connection.exec_driver_sql("SET ROLE looker")
            connection.commit()
            report = db.log.verify(connection)
            connection.exec_driver_sql("RESET ROLE")
            connection.commit()
    finally:
        db.execute("DROP OWNED BY looker", "DROP ROLE looker")
    assert (report.ok, report.unnoted) == (True, ("thing",))


def migrate(db: LoggedDatabase, columns: list[sa.Column[Any]]) -> None:
    """What a migration of the application does: new models, and its rows logged anew."""
    migrated = Oplog(TypeCatalog.from_models(declare(columns)), keyring=db.log.keyring)
    with db.engine.connect() as connection:
        # Its rows as the migration left them: they were changed by no transaction of the log.
        migrated.adopt(connection, again=True)
    assert_replays(migrated, db.engine)
    sessions = sessionmaker(db.engine)
    migrated.attach(sessions)
    with sessions.begin() as session:
        session.execute(sa.text("INSERT INTO thing (id) VALUES (3)"))
        session.execute(sa.text("DELETE FROM thing WHERE id = 1"))
    assert_replays(migrated, db.engine)
    with db.engine.connect() as connection:
        assert migrated.replay(connection).rows == 1


def test_a_process_that_does_not_know_of_the_migration_yet(db: LoggedDatabase) -> None:
    """It is refused, or logs what it wrote exactly: never a row with a column missing."""
    db.execute("ALTER TABLE thing ADD COLUMN extra integer NOT NULL DEFAULT 5")
    (thing,) = (declared.table for declared in db.log.catalog.types.values())
    for write in (
        sa.insert(thing).values(id=3, a="x"),
        sa.text("INSERT INTO thing (id, extra) VALUES (4, 6)"),
        sa.update(thing).values(b=7),
    ):
        before = db.count("thing"), db.count("oplog.oplog_entry")
        try:
            with db.sessions.begin() as session:
                session.execute(write)
        except OplogError:
            assert (db.count("thing"), db.count("oplog.oplog_entry")) == before
        db.assert_pool_is_clean()
    db.log.refresh()
    with db.sessions.begin() as session:
        session.execute(sa.text("DELETE FROM thing"))
    db.assert_replays()
