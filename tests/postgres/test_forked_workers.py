"""Pre-fork servers: a parent that has logged already, and children that log at once.

What a child inherits: an engine whose connections are the parent's, locks as they stood, and
sessions of threads that do not exist in it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from tests.concurrency.workload import Base, Customer, Invoice, make_log
from tests.logged import track
from tests.support import assert_replays

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

CHILDREN = 4
STEPS = 5
DEADLINE_SECONDS = 20


@pytest.fixture
def shared(engine: Engine) -> Iterator[Engine]:
    """The parent's engine."""
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    shared = create_engine(engine.url, pool_size=5)
    yield shared
    shared.dispose()


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child that ends with 0, or 1 if it fails; a hanging one is killed."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(DEADLINE_SECONDS)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - told, and told to the parent by the exit code
        traceback.print_exc(file=sys.__stderr__)
    os._exit(code)


def write(log: Oplog, sessions: sessionmaker[Session], *, first: int) -> None:
    for number in range(first, first + STEPS):
        with sessions.begin() as session:
            session.add(Customer(id=number, name="new"))
            session.flush()
            session.execute(sa.text(f"UPDATE customer SET name = 'raw' WHERE id = {number}"))
        assert len(log.receipts(session)) == 1


def wait_for(children: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * len(
        children
    )


@pytest.mark.parametrize("written", [True, False], ids=["after-writing", "before-writing"])
def test_children_write_at_once(engine: Engine, shared: Engine, written: bool) -> None:
    log, sessions = make_log(), sessionmaker(shared)
    log.attach(sessions)
    if written:
        write(log, sessions, first=0)
    pid = os.getpid()

    def work(number: int) -> None:
        # As SQLAlchemy asks: forget the parent's connections, and do not close them.
        shared.dispose(close=False)
        assert os.getpid() != pid
        write(log, sessions, first=100 * (number + 1))

    children = [fork(lambda n=number: work(n)) for number in range(CHILDREN)]  # type: ignore[misc]
    write(log, sessions, first=50)
    wait_for(children)
    # The parent's connections are still its own.
    write(log, sessions, first=60)
    with engine.connect() as connection:
        entries = list(log.read(connection))
    assert len(entries) == STEPS * (CHILDREN + 2 + written)
    assert_replays(log, engine)


def test_a_fork_while_another_thread_is_inside_a_transaction(
    engine: Engine, shared: Engine
) -> None:
    log, sessions = make_log(), sessionmaker(shared)
    log.attach(sessions)
    write(log, sessions, first=0)
    inside, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions.begin() as session:
            session.add(Customer(id=50, name="new"))
            session.flush()
            inside.set()
            assert forked.wait(DEADLINE_SECONDS)
            session.add(Invoice(id=1, customer_id=50, amount=1))

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(DEADLINE_SECONDS)

    def work() -> None:
        shared.dispose(close=False)
        write(log, sessions, first=100)

    child = fork(work)
    forked.set()
    thread.join(DEADLINE_SECONDS)
    wait_for([child])
    with engine.connect() as connection:
        names = [entry.aggregate for entry in log.read(connection)]
    # The thread's two rows once: the child has its session in memory, and did not commit it.
    assert sorted(n for n in names if n in ("customer/50", "invoice/1")) == [
        "customer/50",
        "invoice/1",
    ]
    assert len(names) == STEPS * 2 + 2
    assert_replays(log, engine)


def test_a_fork_while_another_thread_holds_the_logs_lock(engine: Engine, shared: Engine) -> None:
    """In the child nobody would ever release it."""
    log = make_log()
    held, forked = threading.Event(), threading.Event()
    make_transactions = log._log.attachments._make_transactions

    def dawdle(engine: Engine) -> object:
        held.set()
        assert forked.wait(DEADLINE_SECONDS)
        return make_transactions(engine)

    log._log.attachments._make_transactions = dawdle  # type: ignore[assignment]
    first = sessionmaker(shared)
    thread = threading.Thread(target=log.attach, args=(first,))
    thread.start()
    assert held.wait(DEADLINE_SECONDS)
    log._log.attachments._make_transactions = make_transactions

    def work() -> None:
        own = create_engine(engine.url)
        sessions = sessionmaker(own)
        log.attach(sessions)
        write(log, sessions, first=100)
        own.dispose()

    child = fork(work)
    forked.set()
    thread.join(DEADLINE_SECONDS)
    wait_for([child])
    write(log, first, first=0)
    with engine.connect() as connection:
        assert len(list(log.read(connection))) == STEPS * 2
    assert_replays(log, engine)
