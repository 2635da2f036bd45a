"""Threads that share one engine: what one finds out about the database costs another nothing."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from tests.concurrency.workload import Base, Customer, Member, add_customer, waiting_for_lock

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]


def check(log: Oplog, engine: Engine) -> None:
    with engine.connect() as connection:
        report = log.verify(connection)
    assert report.ok, report.differences


@pytest.mark.parametrize("how", ["refresh", "rotate"])
def test_a_statement_under_way_is_logged_whatever_is_forgotten_meanwhile(
    engine: Engine, how: str
) -> None:
    keyring = Keyring.generate()
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
    log, sessions = Oplog(TypeCatalog.from_models(Base), keyring=keyring), sessionmaker(engine)
    log.attach(sessions)
    add_customer(sessions, 1)

    def rename() -> None:
        with sessions.begin() as session:
            session.get_one(Customer, 1).name = "renamed"

    with engine.connect() as holder:
        holder.execute(sa.select(Customer).with_for_update())
        with waiting_for_lock(engine):
            waiting = threading.Thread(target=rename)
            waiting.start()
        if how == "refresh":
            log.refresh()
        if how == "rotate":
            keyring.rotate()
        add_customer(sessions, 2)
        holder.rollback()
    waiting.join()
    check(log, engine)


def test_many_first_transactions_at_once_are_all_logged(database_url: URL, log: Oplog) -> None:
    for attempt in range(5):
        engine = create_engine(database_url, pool_size=8)
        gate = threading.Barrier(8)

        def write(number: int, *, engine: Engine = engine, gate: threading.Barrier = gate) -> None:
            sessions: sessionmaker[Session] = sessionmaker(engine)
            log.attach(sessions)
            with engine.connect():
                gate.wait()
            with sessions.begin() as session:
                session.add(Member(id=number, team=f"{number}"))
                session.flush()
                session.get_one(Member, number).points = 1

        threads = [
            threading.Thread(target=write, args=(attempt * 8 + number,)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(log, engine)
        engine.dispose()
