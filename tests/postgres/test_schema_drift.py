"""Tables that were altered behind the log's back: named, and right again after a migration."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Oplog, TypeCatalog
from oplog.errors import OplogError, ReplayError, SchemaDriftError
from tests.logged import LoggedDatabase, open_logged
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

A, B, D = sa.Column("a", sa.Text), sa.Column("b", sa.Integer), sa.Column("d", sa.Date)
DRIFTS: dict[str, tuple[str, list[sa.Column[Any]], str]] = {
    "column added": (
        "ALTER TABLE thing ADD COLUMN extra text",
        [A, B, D, sa.Column("extra", sa.Text)],
        r"public\.thing\.extra is in the table",
    ),
    "column added with a value for every row": (
        "ALTER TABLE thing ADD COLUMN extra integer NOT NULL DEFAULT 5",
        [A, B, D, sa.Column("extra", sa.Integer)],
        r"public\.thing\.extra is in the table",
    ),
    "column dropped": (
        "ALTER TABLE thing DROP COLUMN b",
        [A, D],
        r"public\.thing\.b is in the log",
    ),
    "column renamed": (
        "ALTER TABLE thing RENAME COLUMN a TO c",
        [sa.Column("c", sa.Text), B, D],
        r"public\.thing\.a is in the log",
    ),
    "column retyped": (
        "ALTER TABLE thing ALTER COLUMN b TYPE text USING b::text || ' pieces'",
        [A, sa.Column("b", sa.Text), D],
        r"public\.thing\.b is text in the table and integer in the log",
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


@pytest.mark.parametrize(("statement", "columns", "what"), DRIFTS.values(), ids=DRIFTS.keys())
def test_drift_is_named_and_a_migration_resolves_it(
    db: LoggedDatabase, statement: str, columns: list[sa.Column[Any]], what: str
) -> None:
    db.execute(statement)
    with db.engine.connect() as connection:
        for look in (db.log.replay, db.log.verify):
            with pytest.raises(SchemaDriftError, match=what) as drifted:
                look(connection)
            assert drifted.value.hint
            assert not drifted.value.retryable
    migrate(db, columns)


@pytest.mark.parametrize(
    ("statement", "live"),
    [
        ("ALTER TABLE thing ALTER COLUMN d TYPE text USING d || ' or so'", "2026-01-02 or so"),
        ("ALTER TABLE thing ALTER COLUMN a TYPE varchar(3) USING left(a, 3)", None),
        ("ALTER TABLE thing ALTER COLUMN b TYPE bigint USING b + 1", 2),
    ],
)
def test_another_type_of_the_same_kind(db: LoggedDatabase, statement: str, live: object) -> None:
    """Logged values are read as the new type; what does not fit or differs is named."""
    db.execute(statement)
    with db.engine.connect() as connection:
        if live is None:
            with pytest.raises(ReplayError, match=r"public\.thing .* value too long"):
                db.log.verify(connection)
        else:
            (difference,) = db.log.verify(connection).differences
            assert (difference.table, difference.live) == ("public.thing", live)


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
