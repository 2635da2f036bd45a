"""Savepoints: what was rolled back is not logged, what was released is, however deep."""

from __future__ import annotations

import itertools
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from oplog import Entry, Operation
from oplog.errors import NotCapturableError, TicketConflictError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES, strict=True)


def add(session: Session, number: int) -> None:
    session.add(Account(id=number, owner="ada", balance=Decimal(number)))
    session.flush()


def touch(session: Session, owner: str) -> None:
    session.get_one(Account, 1).owner = owner
    session.flush()


@pytest.mark.parametrize("outcomes", list(itertools.product("ck", repeat=3)), ids="".join)
def test_three_deep_in_every_combination(db: LoggedDatabase, outcomes: tuple[str, ...]) -> None:
    """c: commit (release), k: roll back; from the innermost to the outermost savepoint."""
    with db.sessions.begin() as session:
        add(session, 1)
    with db.sessions.begin() as session:
        touch(session, "level 0")
        savepoints = []
        for level in (1, 2, 3):
            savepoints.append(session.begin_nested())
            add(session, 10 + level)
            touch(session, f"level {level}")
        for level, outcome in zip((3, 2, 1), outcomes, strict=True):
            savepoint = savepoints.pop()
            savepoint.commit() if outcome == "c" else savepoint.rollback()
            add(session, 20 + level)
    db.assert_replays()
    survivors = {int(t.split()[-1]) for t in db.tell() if t.startswith("CREATE")}
    assert 21 in survivors
    assert (13 in survivors) == (outcomes == ("c", "c", "c"))
    assert (11 in survivors) == (outcomes[2] == "c")


def test_the_same_savepoint_rolled_back_again_and_again(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        for number in range(1, 8):
            savepoint = session.begin_nested()
            add(session, number)
            if number % 2:
                savepoint.rollback()
            else:
                savepoint.commit()
    assert db.tell() == ["CREATE account 2", "CREATE account 4", "CREATE account 6"]
    db.assert_replays()


def test_a_caught_integrity_error(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        add(session, 1)
        savepoint = session.begin_nested()
        add(session, 2)
        with pytest.raises(IntegrityError), savepoint:
            session.execute(sa.insert(Account).values(id=1, owner="twice", balance=0))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Account(id=1, owner="twice", balance=Decimal(0)))
        add(session, 3)
    assert db.tell() == ["CREATE account 1", "CREATE account 3"]
    db.assert_replays()
    db.assert_pool_is_clean()


def test_a_caught_error_of_an_update(db: LoggedDatabase) -> None:
    """The failed statement had been announced; the next update must not inherit it."""
    with db.sessions.begin() as session:
        session.add(Order(id=1, customer="a", lines=[Line(id=1, number=1, sku="x")]))
    with db.sessions.begin() as session:
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(sa.update(Line).where(Line.id == 1).values(order_id=99))
        session.execute(sa.update(Line).where(Line.id == 1).values(sku="y"))
    assert db.read_last().fields == {"sku": "y"}
    db.assert_replays()


def test_the_session_is_used_again_after_a_failed_update(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Order(id=1, customer="a", lines=[Line(id=1, number=1, sku="x")]))
    with db.engine.connect() as connection, db.sessions(bind=connection) as session:
        with pytest.raises(IntegrityError):
            session.execute(sa.update(Line).where(Line.id == 1).values(order_id=99))
        session.rollback()
        session.execute(sa.update(Line).where(Line.id == 1).values(sku="y"))
        session.commit()
    assert db.read_last().fields == {"sku": "y"}
    db.assert_replays()


def test_rollback_of_the_whole_from_inside(db: LoggedDatabase) -> None:
    session = db.sessions()
    add(session, 1)
    session.begin_nested()
    add(session, 2)
    session.rollback()
    session.commit()
    session.rollback()
    add(session, 3)
    session.commit()
    session.close()
    assert [t for t in db.tell() if t.endswith(("2", "3"))] == ["CREATE account 3"]
    db.assert_replays()


def test_commit_from_inside_commits_every_level(db: LoggedDatabase) -> None:
    session = db.sessions()
    add(session, 1)
    session.begin_nested()
    add(session, 2)
    session.begin_nested()
    session.add(Account(id=3, owner="unflushed", balance=Decimal(0)))
    session.commit()
    session.close()
    assert db.tell() == ["CREATE account 1", "CREATE account 2", "CREATE account 3"]
    assert len({e.transaction_id for e in db.read()}) == 1
    db.assert_replays()


def test_a_savepoint_is_the_first_thing_in_the_transaction(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        with session.begin_nested():
            add(session, 1)
        savepoint = session.begin_nested()
        add(session, 2)
        savepoint.rollback()
    with db.sessions.begin() as session:
        savepoint = session.begin_nested()
        touch(session, "gone")
        savepoint.rollback()
    assert db.tell() == ["CREATE account 1"]
    db.assert_replays()


def test_delete_in_a_savepoint_that_is_rolled_back(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        add(session, 1)
    with db.sessions.begin() as session:
        savepoint = session.begin_nested()
        session.delete(session.get_one(Account, 1))
        session.flush()
        savepoint.rollback()
        touch(session, "still here")
    assert db.read_last().fields == {"owner": "still here"}
    db.assert_replays()


@pytest.mark.parametrize(
    ("begin", "back", "release"),
    [
        ("SAVEPOINT mine", "ROLLBACK TO SAVEPOINT mine", "RELEASE SAVEPOINT mine"),
        ("savepoint MINE", "rollback to mine", "release mine"),
        ('SAVEPOINT "My point"', 'ROLLBACK WORK TO "My point"', 'RELEASE "My point"'),
        (" \n SAVEPOINT s1;", "ROLLBACK TRANSACTION TO SAVEPOINT s1 ;", "RELEASE SAVEPOINT s1;"),
        ("/* app */ SAVEPOINT s1", "-- note\nROLLBACK TO s1", "/* a /* b */ */ RELEASE s1"),
    ],
)
def test_savepoints_written_by_hand(
    db: LoggedDatabase, begin: str, back: str, release: str
) -> None:
    with db.sessions.begin() as session:
        add(session, 1)
        session.execute(sa.text(begin))
        add(session, 2)
        session.execute(sa.text(back))
        session.expunge_all()
        add(session, 3)
        session.execute(sa.text(release))
        session.connection().exec_driver_sql(begin)
        add(session, 4)
        session.connection().exec_driver_sql(release)
    assert db.tell() == ["CREATE account 1", "CREATE account 3", "CREATE account 4"]
    db.assert_replays()


def test_annotations_go_with_their_savepoint(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="outer", place="here")
        add(session, 1)
        savepoint = session.begin_nested()
        db.log.annotate(session, actor="inner", lost="x")
        add(session, 2)
        savepoint.rollback()
        with session.begin_nested():
            db.log.annotate(session, kept="y", place="there")
            add(session, 3)
    assert db.read()[0].metadata == {"actor": ["outer"], "place": ["there"], "kept": ["y"]}
    db.assert_replays()


def test_annotations_of_a_savepoint_without_statements(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        savepoint = session.begin_nested()
        db.log.annotate(session, lost="x")
        savepoint.rollback()
        add(session, 1)
    assert db.read()[0].metadata == {}
    db.assert_replays()


def test_a_ticket_does_not_outlive_its_savepoint(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        add(session, 1)
    session = db.sessions()
    savepoint = session.begin_nested()
    ticket = db.log.take_ticket(session, "account/1")
    savepoint.rollback()
    assert ticket.version == 1
    entry = Entry("account/1", [Operation.delete("account", key={"id": 1})])
    with pytest.raises(TicketConflictError):
        db.log.append(session, entry, ticket)
    session.rollback()
    session.close()
    db.assert_replays()


def test_a_refused_statement_spoils_only_its_savepoint(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        add(session, 1)
        with pytest.raises(NotCapturableError), session.begin_nested():
            session.execute(sa.update(Account).values(owner="all"))
        touch(session, "still fine")
    assert db.tell() == ["CREATE account 1"]
    db.assert_replays()
