"""Transactions whose COMMIT meets a fault, and what is true of them afterwards.

Every attempt changes a customer that is there and adds an invoice of its own number, so that a
ticket that exists and one that never did are in it. Must not judge by what the product says:
the truth is read from the tables, on a connection that does not pass the proxy. The hard thing
is the moment of arming: the product's own events say when what is sent next is the append, or
the COMMIT behind it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog, Outcome
from oplog.capture import transaction
from oplog.errors import CommitOutcomeUnknownError
from oplog.events import EntriesAppended, EntriesDrafted, Event
from tests.concurrency.workload import Base, Customer, Invoice, add_customer, make_log
from tests.fault.proxy import PATIENCE_SECONDS, Dialogue, Fault, FaultProxy
from tests.support import assert_replays

APPEND, COMMIT = EntriesDrafted, EntriesAppended
"""What the client sends next when it says this: append (and COMMIT, at once), or COMMIT apart."""

Work = Callable[[Session, int], None]


def write_both(session: Session, number: int) -> None:
    write_known(session, number)
    write_new(session, number)


def write_known(session: Session, number: int) -> None:
    """The ticket of the aggregate is there."""
    session.get_one(Customer, 1).name = name(number)


def write_new(session: Session, number: int) -> None:
    """The ticket of the aggregate is made by this transaction."""
    session.add(Invoice(id=number, customer_id=1, amount=number))


WORKS: dict[str, Work] = {"both": write_both, "known": write_known, "new": write_new}


def name(number: int) -> str:
    return f"by {number:06}"


@dataclass
class Bench:
    """A log whose sessions go through a proxy, and a direct way to what is true."""

    engine: Engine
    proxy: FaultProxy
    options: dict[str, Any]
    """Of the log."""
    dialogue: Dialogue | None = None
    _plan: tuple[type[Event], dict[str, Any]] | None = None
    _armed: threading.Event = field(default_factory=threading.Event)
    log: Oplog = field(init=False)

    def __post_init__(self) -> None:
        self.log = make_log(on_event=self._on_event, **self.options)

    def _on_event(self, event: Event) -> None:
        if self._plan is not None and isinstance(event, self._plan[0]):
            plan, self._plan = self._plan, None
            self.dialogue = self.proxy.arm(**plan[1])
            self._armed.set()

    def plan(self, fault: Fault, *, at: type[Event] = APPEND, **options: Any) -> None:
        """Let the fault strike the next transaction at a moment of its commit."""
        self.dialogue = None
        self._armed.clear()
        self._plan = at, {"fault": fault, **options}

    @property
    def struck(self) -> Dialogue:
        """The dialogue of the last transaction, which came to be armed."""
        assert self.dialogue is not None, "the transaction did not get as far as its commit"
        return self.dialogue

    def wait_struck(self) -> Dialogue:
        """Return once the transaction of another thread has met the fault."""
        assert self._armed.wait(PATIENCE_SECONDS), "no transaction came to its commit"
        self.struck.wait_struck()
        return self.struck

    # -- the truth ------------------------------------------------------------------------

    def happened(self, number: int, *, work: Work = write_both) -> bool:
        """Whether the transaction is there, rows and entries alike; its process has ended."""
        with self.engine.connect() as connection:
            invoices = count(connection, f"invoice WHERE id = {number}")
            names = count(connection, f"customer WHERE id = 1 AND name = '{name(number)}'")
            entries = count(
                connection, f"oplog.oplog_entry WHERE aggregate_name = 'invoice/{number}'"
            )
        assert invoices == entries
        if work is write_both:
            assert invoices == names
        return bool(names if work is write_known else invoices)

    def resolve(self, error: CommitOutcomeUnknownError, *, wait_seconds: float = 10.0) -> Outcome:
        return self.log.resolve(error, self.engine, wait_seconds=wait_seconds)

    def assert_whole(self) -> None:
        """Rows and log agree, and no aggregate has a gap."""
        assert_replays(self.log, self.engine)
        with self.engine.connect() as connection:
            gaps = connection.exec_driver_sql(
                "SELECT aggregate_name FROM oplog.oplog_entry GROUP BY aggregate_name "
                "HAVING count(*) <> max(version)"
            ).all()
        assert gaps == []

    # -- engines --------------------------------------------------------------------------

    @contextmanager
    def open_sessions(self, **options: Any) -> Iterator[sessionmaker[Session]]:
        """Logged sessions through the proxy; their pool is healthy in the end."""
        engine = create_engine(self.proxy.url, **options)
        sessions = sessionmaker(engine)
        self.log.attach(sessions)
        yield sessions
        check_pool(engine)
        engine.dispose()
        self.log.detach(sessions)

    @asynccontextmanager
    async def open_async_sessions(
        self, *, apart: bool = False, **options: Any
    ) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
        """The same for asyncio; `apart` sends COMMIT behind the append, in a request of its own."""
        engine = create_async_engine(self.proxy.url, **options)
        sessions = async_sessionmaker(engine)
        self.log.attach(sessions)
        with pytest.MonkeyPatch.context() as patch:
            if apart:
                patch.setattr(transaction, "can_commit_at_once", lambda _: False)
            yield sessions
        await check_async_pool(engine)
        await engine.dispose()
        self.log.detach(sessions)


@contextmanager
def open_bench(url: URL, **options: Any) -> Iterator[Bench]:
    """A database with the log's tables, a first customer, and a proxy before it."""
    engine = create_engine(url)
    with FaultProxy(url) as proxy:
        bench = Bench(engine, proxy, options)
        Base.metadata.create_all(engine)
        sessions = sessionmaker(engine)
        bench.log.attach(sessions)
        add_customer(sessions, 1)
        bench.log.detach(sessions)
        yield bench
    engine.dispose()


def commit(sessions: sessionmaker[Session], number: int, *, work: Work = write_both) -> None:
    """One transaction."""
    with sessions.begin() as session:
        work(session, number)


async def commit_async(
    sessions: async_sessionmaker[AsyncSession], number: int, *, work: Work = write_both
) -> None:
    async with sessions.begin() as session:
        await session.run_sync(work, number)


def check_pool(engine: Engine) -> None:
    """Nothing is checked out, and every connection left in the pool is idle and answers."""
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        assert raw.info.transaction_status.name == "IDLE"
        assert connection.exec_driver_sql("SELECT 7").scalar() == 7


async def check_async_pool(engine: AsyncEngine) -> None:
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    async with engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        assert raw.info.transaction_status.name == "IDLE"
        assert (await connection.exec_driver_sql("SELECT 7")).scalar() == 7


def count(connection: sa.Connection, what: str) -> int:
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {what}").scalar_one())


class Background(threading.Thread):
    """Runs something beside the test; `result` waits for it, and raises what it raised."""

    def __init__(self, target: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._do = target
        self._result: Any = None
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._do()
        except BaseException as failure:  # noqa: BLE001 - raised by result()
            self._failure = failure

    def result(self) -> Any:
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "what runs beside the test does not end"
        if self._failure is not None:
            raise self._failure
        return self._result
