"""Consumers name their own cursors, in the table where the log keeps rows of its own.

A name that is the log's own is refused before anything is written: a row under it would stop
publishing, adopting or restoring, for all who come after.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from oplog import open_archive
from oplog.errors import ConfigurationError
from oplog.store.checkpoints import check_consumer_name
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.shop import open_shop

pytestmark = pytest.mark.postgres

RESERVED = [
    "archive/",
    "archive/x",
    "archive/0b9f6d1e-6f0a-4a5e-9c8e-0d6a1f3b2c4d",
    "adopt/account",
    "adopt/",
    "follow/archive",
    "restore",
    "restored",
]
IMPOSSIBLE = ["", "a\x00b"]
HARMLESS = ["archive", "adopt", "follow", "restores", "mail/archive/x", "Archive/x", " restore"]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    return db


def list_checkpoints(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT name FROM oplog.oplog_checkpoint").scalars())


@pytest.mark.parametrize("name", RESERVED + IMPOSSIBLE)
def test_a_consumer_cannot_have_a_name_of_the_log(db: LoggedDatabase, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a consumer") as caught:
        db.log.subscribe(db.engine, name=name)
    assert "give a" in caught.value.hint
    assert list_checkpoints(db.engine) == []


@pytest.mark.parametrize("name", RESERVED + IMPOSSIBLE)
def test_a_follower_cannot_either(db: LoggedDatabase, spare_engine: Engine, name: str) -> None:
    archive = open_archive("memory://")
    db.log.sync(db.engine, archive)
    Base.metadata.create_all(spare_engine)
    with (
        spare_engine.connect() as connection,
        pytest.raises(ConfigurationError, match="cannot name a consumer"),
    ):
        db.log.follow(archive, connection, name=name)
    assert list_checkpoints(spare_engine) == []
    with spare_engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM account").scalar() == 0


def test_nor_one_from_the_command_line(tmp_path: Path, database_url: URL) -> None:
    shop = replace(open_shop(tmp_path, database_url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    shop.ask("sync")
    _, err = shop.call("follow", "--once", "--name", "restored", code=2)
    assert "'restored' cannot name a consumer" in err


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_are_free(db: LoggedDatabase, name: str) -> None:
    for batch in db.log.subscribe(db.engine, name=name):
        batch.commit()
    assert list_checkpoints(db.engine) == [name]


def test_the_names_that_the_log_itself_writes_are_all_refused(
    db: LoggedDatabase, spare_engine: Engine
) -> None:
    """What publishing, adopting, following and restoring leave behind is what is reserved."""
    archive = open_archive("memory://")
    db.execute("INSERT INTO account (id, owner, balance) VALUES (2, 'before', 0)")
    with db.engine.connect() as connection:
        db.log.adopt(connection)
    db.log.sync(db.engine, archive)
    Base.metadata.create_all(spare_engine)
    with spare_engine.connect() as connection:
        db.log.follow(archive, connection)
    written = list_checkpoints(db.engine) + list_checkpoints(spare_engine)
    assert {name.partition("/")[0] for name in written} >= {"archive", "adopt", "follow"}
    for name in written:
        with pytest.raises(ConfigurationError):
            check_consumer_name(name)


def test_consumers_and_publishing_stay_out_of_one_anothers_way(db: LoggedDatabase) -> None:
    """With the names that are left, everything goes on as it did."""
    archive = open_archive("memory://")
    for name in HARMLESS:
        for batch in db.log.subscribe(db.engine, name=name):
            batch.commit()
    assert db.log.sync(db.engine, archive).entries == 1
    with db.engine.connect() as connection:
        db.log.adopt(connection)
