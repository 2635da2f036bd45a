"""Tests that roll everything back: sessions that join an outer transaction, which is compared.

Commits of the sessions are savepoints of that transaction. Their records are in it, so the log is
compared with the tables before it is rolled back, and an unlogged write fails the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, concurrency

from oplog.facade import Oplog
from oplog.testing.assertion import assert_logged
from oplog.testing.fresh_database import HAS_WRITTEN

if TYPE_CHECKING:
    # Importing it needs greenlet, which an application without asyncio does not have.
    from sqlalchemy.ext.asyncio import AsyncConnection


@contextmanager
def rolled_back(
    log: Oplog, engine: Engine, *, sessions: Any, verify: bool = True
) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back, which all sessions of `sessions` join.

    `sessions` is the sessionmaker that the application uses, to which `log` is attached, also if
    it was bound elsewhere before. `commit` and `rollback` of a session work as ever; the next
    session sees what the one before committed. At the end the tables are compared with the log,
    as the transaction sees both, unless `verify` is false; then everything is rolled back. Raises
    `AssertionError` if they differ. Sessions share the connection, so they take turns.
    """
    with (
        engine.connect() as connection,
        _joining(sessions, connection),
        _compared(log, connection, verify=verify),
    ):
        yield connection


@asynccontextmanager
async def rolled_back_async(
    log: Oplog, engine: Engine, *, sessions: Any, verify: bool = True
) -> AsyncIterator[AsyncConnection]:
    """`rolled_back` for an async_sessionmaker, in any event loop.

    `engine` is an ordinary one: the async sessions work on its connection, and wait for the
    database without giving way to other tasks. So the log can be compared within the transaction.
    """
    from sqlalchemy.ext.asyncio import (  # noqa: PLC0415 - see above
        AsyncConnection,
        create_async_engine,
    )

    nominal = create_async_engine(engine.url, poolclass=NullPool)
    with engine.connect() as connection:
        shown = AsyncConnection(nominal, connection)
        event.listen(connection, "before_cursor_execute", _await_nothing)
        with _joining(sessions, shown), _compared(log, connection, verify=verify):
            yield shown


@contextmanager
def _compared(log: Oplog, connection: Connection, *, verify: bool) -> Iterator[None]:
    outer = connection.begin()
    try:
        yield
        # Comparing takes longer than most tests, and many only read.
        if verify and connection.exec_driver_sql(HAS_WRITTEN).scalar_one():
            assert_logged(log, connection)
    finally:
        outer.rollback()


def _await_nothing(*_: Any) -> None:
    # SQLAlchemy refuses an answer for which nothing was awaited.
    if concurrency.in_greenlet():
        await_only(_nothing())


async def _nothing() -> None:
    """End at once, without giving way to other tasks."""


@contextmanager
def _joining(sessions: Any, connection: Connection | AsyncConnection) -> Iterator[None]:
    """Inside, sessions of the factory join the connection's transaction."""
    with configured(sessions, bind=connection, join_transaction_mode="create_savepoint"):
        yield


@contextmanager
def configured(sessions: Any, **settings: Any) -> Iterator[None]:
    """Inside, the factory makes sessions with other settings; then it is as it was."""
    # A scoped session makes its sessions by a factory, too.
    factory = getattr(sessions, "session_factory", sessions)
    before = {name: factory.kw[name] for name in settings if name in factory.kw}
    factory.configure(**settings)
    try:
        yield
    finally:
        for name in settings:
            factory.kw.pop(name, None)
        factory.configure(**before)
