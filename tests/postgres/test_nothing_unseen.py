"""Writes that could be missed between two events: each is logged or stops the COMMIT."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from oplog.capture import statement as statements
from oplog.errors import NotCapturableError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import Account, Base

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base)
    with db.sessions.begin() as session:
        session.add(make(1))
    return db


def make(number: int) -> Account:
    return Account(id=number, owner="ada", balance=Decimal(5))


def test_another_table_object_for_a_logged_table_is_refused(db: LoggedDatabase) -> None:
    reflected = sa.Table("account", sa.MetaData(), autoload_with=db.engine)
    light = sa.table("account", sa.column("id"), sa.column("owner"))
    for table in (reflected, light):
        statement = sa.update(table).where(table.c.id == 1).values(owner="unseen")
        with (
            pytest.raises(NotCapturableError, match="not the catalog's"),
            db.sessions.begin() as session,
        ):
            session.execute(statement)
    db.assert_replays()


def test_an_error_while_observing_stops_the_commit(
    db: LoggedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(statements, "observe_update", fail)
    session = db.sessions()
    with pytest.raises(ZeroDivisionError):
        session.execute(sa.update(Account).where(Account.id == 1).values(owner="unseen"))
    with pytest.raises(NotCapturableError, match="never seen"):
        session.commit()
    session.close()
    db.assert_replays()
    db.assert_pool_is_clean()


def test_another_hook_that_raises_in_between_stops_the_commit(db: LoggedDatabase) -> None:
    def interfere(*_: Any) -> None:
        raise ZeroDivisionError

    session = db.sessions()
    session.connection()
    event.listen(db.engine, "after_cursor_execute", interfere)
    with pytest.raises(ZeroDivisionError):
        session.execute(sa.insert(Account), [{"id": 2, "owner": "ida", "balance": 1}])
    event.remove(db.engine, "after_cursor_execute", interfere)
    with pytest.raises(NotCapturableError, match="never seen"):
        session.commit()
    session.close()
    assert db.count("account") == 1
    db.assert_pool_is_clean()


def test_a_statement_that_the_database_refused_stops_nothing_after_its_savepoint(
    db: LoggedDatabase,
) -> None:
    with db.sessions.begin() as session:
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(sa.insert(Account), [{"id": 1, "owner": "twice", "balance": 1}])
        session.add(make(3))
    assert db.count("account") == 2
    db.assert_replays()


def test_rollback_to_a_savepoint_from_before_the_session(db: LoggedDatabase) -> None:
    with db.engine.connect() as connection, connection.begin() as outer:
        savepoint = connection.begin_nested()
        with db.sessions(bind=connection, join_transaction_mode="rollback_only") as session:
            session.add(make(2))
            session.flush()
            savepoint.rollback()
            session.add(make(3))
            session.commit()
        outer.commit()
    assert db.tell() == ["CREATE account 1", "CREATE account 3"]
    db.assert_replays()


def test_a_ticket_outlives_the_savepoint_that_read_it(db: LoggedDatabase) -> None:
    with db.sessions() as session:
        session.execute(sa.update(Account).where(Account.id == 1).values(owner="outer"))
        savepoint = session.begin_nested()
        session.add(make(2))
        session.flush()
        savepoint.rollback()
        (transactions,) = db.log._log.attachments._engines.values()
        recorder = transactions.find(session.connection())
        assert recorder is not None
        held = recorder.find_ticket("account/1")
        assert held is not None
        assert held.version == 1
        assert recorder.find_ticket("account/2") is None
        session.commit()
    db.assert_replays()
