"""The isolation level that a run's work asks for, in every attempt that the run makes."""

from __future__ import annotations

import warnings

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.errors import TicketConflictError
from tests.concurrency.workload import Base, Customer, make_log

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]


class SerializableWork:
    """Asks as SQLAlchemy's documentation says, first of all; conflicts as often as it is told."""

    def __init__(self, conflicts: int) -> None:
        self.conflicts = conflicts
        self.levels: list[str] = []

    def __call__(self, session: Session) -> None:
        with warnings.catch_warnings():
            # An application does not see it: SQLAlchemy warns, and goes on at another level.
            warnings.simplefilter("ignore")
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        self.levels.append(session.execute(sa.text("SHOW transaction_isolation")).scalar_one())
        session.add(Customer(name="ada"))
        session.flush()
        if len(self.levels) <= self.conflicts:
            error = TicketConflictError("somebody else was there first")
            error.aggregates = ("customer/1",)
            raise error


@pytest.fixture
def log() -> Oplog:
    return make_log()


@pytest.fixture
def sessions(engine: Engine, log: Oplog) -> sessionmaker[Session]:
    Base.metadata.create_all(engine)
    sessions: sessionmaker[Session] = sessionmaker(engine)
    log.attach(sessions)
    return sessions


def test_a_run_with_a_key_keeps_the_level_of_its_work(
    log: Oplog, sessions: sessionmaker[Session]
) -> None:
    work = SerializableWork(conflicts=0)
    log.run(sessions, work, idempotency_key="k")
    assert work.levels == ["serializable"]


def test_a_run_that_waits_in_line_keeps_the_level_of_its_work(
    log: Oplog, sessions: sessionmaker[Session]
) -> None:
    work = SerializableWork(conflicts=5)
    log.run(sessions, work)
    assert work.levels == ["serializable"] * 6
