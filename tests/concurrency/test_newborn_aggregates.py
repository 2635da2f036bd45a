"""Aggregates that two transactions create at once: the key of the log's index decides.

A row that is inserted twice is refused by its own table. An aggregate that rows of two tables share
is not: both creators are right, one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog.errors import TicketConflictError
from tests.concurrency.workload import waiting_for_lock
from tests.logged import LoggedDatabase, open_logged

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
MANY = 200


class Base(DeclarativeBase):
    pass


class Face(Base):
    __tablename__ = "face"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(default="")


class Back(Base):
    """A row of it and the face with the same id are one aggregate."""

    __tablename__ = "back"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    templates = {"face": "coin/{id}", "back": "coin/{id}"}
    return open_logged(engine, Base, seed="", aggregates=templates)


@pytest.fixture
def prepared(db: LoggedDatabase) -> sessionmaker[Session]:
    """Sessions that can stop between append and COMMIT."""
    with db.engine.connect() as connection:
        if connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one() == "0":
            pytest.skip("the server allows no prepared transactions")
    factory = sessionmaker(db.engine, twophase=True)
    db.log.attach(factory)
    return factory


def at_level(db: LoggedDatabase, level: str) -> sessionmaker[Session]:
    factory = sessionmaker(db.engine.execution_options(isolation_level=level))
    db.log.attach(factory)
    return factory


def write(sessions: sessionmaker[Session], rows: Iterable[Any]) -> None:
    with sessions.begin() as session:
        session.add_all(rows)


def list_versions(db: LoggedDatabase) -> dict[str, list[int]]:
    """By aggregate, in the order of positions."""
    versions: dict[str, list[int]] = {}
    for entry in db.read():
        versions.setdefault(entry.aggregate, []).append(entry.version)
    return versions


def count_tickets(db: LoggedDatabase) -> int:
    return db.count("oplog.oplog_ticket")


class Thread(threading.Thread):
    """Remembers what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except Exception as failure:  # noqa: BLE001 - the test looks at it
            self.failure = failure

    def end(self) -> Exception | None:
        self.join(60)
        assert not self.is_alive()
        return self.failure


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_inserted_twice_is_refused_by_its_table(db: LoggedDatabase, level: str) -> None:
    sessions = at_level(db, level)
    with sessions() as first:
        first.add(Face(id=1, text="first"))
        first.flush()
        with waiting_for_lock(db.engine):
            second = Thread(lambda: write(sessions, [Face(id=1, text="second")]))
        first.commit()
    assert isinstance(second.end(), IntegrityError)
    assert list_versions(db) == {"coin/1": [1]}
    assert count_tickets(db) == 0
    db.assert_replays()


def test_two_creators_of_one_aggregate_write_versions_one_and_two(
    db: LoggedDatabase, prepared: sessionmaker[Session]
) -> None:
    with prepared() as first:
        first.add(Face(id=1))
        first.prepare()
        with waiting_for_lock(db.engine):
            second = Thread(lambda: write(db.sessions, [Back(id=0), Back(id=1), Back(id=2)]))
        first.commit()
    assert second.end() is None
    assert list_versions(db) == {"coin/0": [1], "coin/1": [1, 2], "coin/2": [1]}
    assert count_tickets(db) == 1
    db.assert_replays()


@pytest.mark.parametrize("level", LEVELS[1:])
def test_in_a_snapshot_the_second_creator_is_to_try_again(
    db: LoggedDatabase, prepared: sessionmaker[Session], level: str
) -> None:
    sessions = at_level(db, level)
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(len(attempts))
        session.add(Back(id=1))

    with prepared() as first:
        first.add(Face(id=1))
        first.prepare()
        with waiting_for_lock(db.engine):
            second = Thread(lambda: db.log.run(sessions, work))
        first.commit()
    assert second.end() is None
    assert attempts == [0, 1]
    assert list_versions(db) == {"coin/1": [1, 2]}
    db.assert_replays()


def test_a_creator_that_gave_up_left_the_first_version_free(
    db: LoggedDatabase, prepared: sessionmaker[Session]
) -> None:
    with prepared() as first:
        first.add(Face(id=1))
        first.prepare()
        with waiting_for_lock(db.engine):
            second = Thread(lambda: write(db.sessions, [Back(id=1)]))
        first.rollback()
    assert second.end() is None
    assert list_versions(db) == {"coin/1": [1]}
    assert count_tickets(db) == 0
    db.assert_replays()


def test_an_effect_never_stands_before_its_cause(
    db: LoggedDatabase, prepared: sessionmaker[Session]
) -> None:
    """A creator has drawn its position and waits; another one creates what it would create next."""
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(len(attempts))
        session.add_all([Back(id=1), Back(id=5)])

    with prepared() as holder:
        holder.add(Face(id=1))
        holder.prepare()
        with waiting_for_lock(db.engine):
            waiting = Thread(lambda: db.log.run(db.sessions, work))
        write(db.sessions, [Face(id=5)])
        holder.commit()
    assert waiting.end() is None
    assert attempts == [0, 1]
    assert list_versions(db) == {"coin/1": [1, 2], "coin/5": [1, 2]}
    db.assert_replays()


def test_without_a_run_the_application_is_told(
    db: LoggedDatabase, prepared: sessionmaker[Session]
) -> None:
    with prepared() as holder:
        holder.add(Face(id=1))
        holder.prepare()
        with waiting_for_lock(db.engine):
            waiting = Thread(lambda: write(db.sessions, [Back(id=1), Back(id=5)]))
        write(db.sessions, [Face(id=5)])
        holder.commit()
    failure = waiting.end()
    assert isinstance(failure, TicketConflictError)
    assert failure.retryable
    assert list_versions(db) == {"coin/1": [1], "coin/5": [1]}
    assert db.count("back") == 0
    db.assert_replays()


def test_a_ticket_taken_before_is_lost_to_another_creator(db: LoggedDatabase) -> None:
    """Who has read that there is nothing must not write as if there still were nothing."""
    with db.sessions() as late:
        assert db.log.take_ticket(late, "coin/1").version == 0
        write(db.sessions, [Face(id=1)])
        late.add(Back(id=1))
        with pytest.raises(TicketConflictError, match="coin/1"):
            late.commit()
    assert list_versions(db) == {"coin/1": [1]}
    db.assert_replays()


@pytest.mark.parametrize("flushes", [False, True])
def test_many_created_in_opposite_orders_do_not_deadlock(db: LoggedDatabase, flushes: bool) -> None:
    busy = sa.create_engine(db.engine.url, pool_size=4)
    sessions = sessionmaker(busy)
    db.log.attach(sessions)
    gate = threading.Barrier(4)

    def create(kind: type[Face | Back], numbers: range) -> None:
        def work(session: Session) -> None:
            session.add_all([kind(id=number) for number in numbers])
            if flushes:
                session.flush()

        gate.wait()
        db.log.run(sessions, work)

    whole, half = range(MANY), range(MANY, MANY + MANY // 2)
    threads = [
        Thread(lambda: create(Face, whole)),
        Thread(lambda: create(Back, whole[::-1])),
        Thread(lambda: create(Face, half[::-1])),
        Thread(lambda: create(Back, half)),
    ]
    assert [thread.end() for thread in threads] == [None] * 4
    busy.dispose()
    versions = list_versions(db)
    assert versions == {f"coin/{number}": [1, 2] for number in (*whole, *half)}
    assert count_tickets(db) == len(versions)
    db.assert_replays()
