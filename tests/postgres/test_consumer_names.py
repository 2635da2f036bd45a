"""A consumer may have any name that can be stored: no row of the log's own is told by a name."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from oplog import open_archive
from oplog.errors import ConfigurationError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.shop import open_shop

pytestmark = pytest.mark.postgres

NAMES = [
    "archive/",
    "archive/x",
    "archive/0b9f6d1e-6f0a-4a5e-9c8e-0d6a1f3b2c4d",
    "adopt/account",
    "adopt/",
    "follow/archive",
    "follow/",
    "restore",
    "restored",
    "archive",
    "account",
    "Archive/x",
    " restore",
]
"""Names that the log itself once used for rows in the consumers' table, and others like them."""
IMPOSSIBLE = ["", "a\x00b"]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    add(db, 1)
    return db


def add(db: LoggedDatabase, number: int) -> None:
    with db.sessions.begin() as session:
        session.add(Account(id=number, owner="ada", balance=1))


def consume(db: LoggedDatabase, engine: Engine, name: str) -> int:
    count = 0
    for batch in db.log.subscribe(engine, name=name):
        count += len(batch)
        batch.commit()
    return count


def list_consumers(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT name FROM oplog.oplog_consumer ORDER BY name")
        return list(found.scalars())


def test_consumers_of_any_name_keep_nobody_from_working(
    db: LoggedDatabase, spare_engine: Engine
) -> None:
    """Publishing, adopting, following, pruning and consuming go on beside all of them."""
    archive = open_archive("memory://")
    for name in NAMES:
        assert consume(db, db.engine, name) == 1
    db.execute("INSERT INTO account (id, owner, balance) VALUES (2, 'before', 0)")
    with db.engine.connect() as connection:
        assert db.log.adopt(connection).rows == 2
    db.log.sync(db.engine, archive)
    names = [*NAMES, f"archive/{archive.read_head().archive_id}"]
    for name in names:
        consume(db, db.engine, name)
        assert consume(db, db.engine, name) == 0
    add(db, 3)
    assert db.log.sync(db.engine, archive).entries == 1
    Base.metadata.create_all(spare_engine)
    with spare_engine.connect() as connection:
        first = db.log.follow(archive, connection, name="archive")
        assert first.rebuilt
    # A follower has consumers, too.
    for name in names:
        consume(db, spare_engine, name)
    add(db, 4)
    db.log.sync(db.engine, archive)
    with spare_engine.connect() as connection:
        assert db.log.follow(archive, connection, name="archive").entries == 1
    for name in names:
        assert consume(db, spare_engine, name) == 1
        assert consume(db, db.engine, name) == 2
    assert set(list_consumers(db.engine)) == set(names)
    assert db.log.prune(db.engine, archive, keep=timedelta(0)).entries > 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_a_follower_may_have_any_name(db: LoggedDatabase, spare_engine: Engine, name: str) -> None:
    archive = open_archive("memory://")
    db.log.sync(db.engine, archive)
    Base.metadata.create_all(spare_engine)
    for expected in (1, 0, 1):
        with spare_engine.connect() as connection:
            assert db.log.follow(archive, connection, name=name).entries == expected
        if expected == 0:
            add(db, 2)
            db.log.sync(db.engine, archive)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_name_that_cannot_be_stored_is_refused(
    db: LoggedDatabase, spare_engine: Engine, name: str
) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a consumer") as caught:
        db.log.subscribe(db.engine, name=name)
    assert "give a" in caught.value.hint
    archive = open_archive("memory://")
    db.log.sync(db.engine, archive)
    with (
        spare_engine.connect() as connection,
        pytest.raises(ConfigurationError, match="cannot name a consumer"),
    ):
        db.log.follow(archive, connection, name=name)
    assert list_consumers(db.engine) == []


def test_an_empty_name_from_the_command_line(tmp_path: Path, database_url: URL) -> None:
    shop = replace(open_shop(tmp_path, database_url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    shop.ask("sync")
    _, err = shop.call("follow", "--once", "--name", "", code=2)
    assert "cannot name a consumer" in err
