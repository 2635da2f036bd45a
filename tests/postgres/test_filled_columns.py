"""Columns that a follower adds by itself: older rows have what the log says, not what it made."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from oplog import Archive
from tests.postgres.archived import open_memory
from tests.postgres.migrated import App, make_app

pytestmark = pytest.mark.postgres

BEFORE = "CREATE TABLE thing (id integer PRIMARY KEY, a integer)"
ROWS = "INSERT INTO thing VALUES (1, 11), (2, 12), (3, 13)"
NOW = "ALTER TABLE thing ADD d timestamptz NOT NULL DEFAULT now()"


def follow(app: App, archive: Archive) -> None:
    engine = sa.create_engine(app.engine.url, poolclass=NullPool)
    with engine.connect() as connection:
        app.log.follow(archive, connection)


@pytest.fixture
def archive() -> Archive:
    return open_memory()


@pytest.fixture
def app(engine: Engine, archive: Archive) -> App:
    app = make_app(engine, BEFORE)
    app.write(ROWS)
    app.log.sync(engine, archive)
    return app


@pytest.fixture
def follower(app: App, spare_engine: Engine, archive: Archive) -> App:
    follower = make_app(spare_engine, BEFORE, keyring=app.keyring)
    follow(follower, archive)
    assert follower.dump() == app.dump()
    return follower


@pytest.mark.parametrize("late", [False, True], ids=["at once", "it knew the change before"])
@pytest.mark.parametrize(
    "ddl",
    [
        (NOW, NOW),
        ("ALTER TABLE thing ADD d json DEFAULT '{}'", "ALTER TABLE thing ADD d json DEFAULT '[]'"),
        ("ALTER TABLE thing ADD d text", "ALTER TABLE thing ADD d text DEFAULT 'of its own'"),
    ],
    ids=["now", "another constant", "none"],
)
def test_older_rows_have_what_the_log_says(
    app: App, follower: App, archive: Archive, ddl: tuple[str, str], late: bool
) -> None:
    here, there = ddl
    migrated = app.migrate(here)
    migrated.note()
    if late:
        migrated.log.sync(migrated.engine, archive)
        follow(follower, archive)
    follower = follower.migrate(there)
    migrated.write(
        "UPDATE thing SET d = DEFAULT, a = 0 WHERE id = 1", "DELETE FROM thing WHERE id = 3"
    )
    migrated.write("INSERT INTO thing (id, a) VALUES (4, 14)")
    migrated.log.sync(migrated.engine, archive)
    follow(follower, archive)
    assert follower.dump() == migrated.dump()
    assert follower.verify().ok


def test_rows_that_were_written_since_keep_their_values(
    app: App, follower: App, archive: Archive
) -> None:
    """The second look finds the column where it was."""
    ddl = "ALTER TABLE thing ADD d integer DEFAULT 5"
    migrated, follower = app.migrate(ddl), follower.migrate(ddl)
    migrated.note()
    migrated.write("UPDATE thing SET d = 6 WHERE id = 1")
    migrated.log.sync(migrated.engine, archive)
    follow(follower, archive)
    migrated = migrated.migrate("ALTER TABLE thing ADD e integer DEFAULT 8")
    migrated.note()
    migrated.write("UPDATE thing SET e = 9, d = 7 WHERE id = 2")
    migrated.log.sync(migrated.engine, archive)
    follower = follower.migrate("ALTER TABLE thing ADD e integer DEFAULT 8")
    follow(follower, archive)
    assert follower.dump() == migrated.dump()
    assert follower.verify().ok
