"""Set-ups of sessions, connections and engines, each as a way to run a piece of work and commit it.

Whatever applications do to come to a transaction: the piece of work gets a session or a connection,
and what it did is committed when the set-up is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool

from oplog import Oplog

Target = Session | Connection
Work = Callable[[Target], object]
Run = Callable[[Oplog, Engine, Work], None]
"""Attaches the log to a set-up on the engine's database, runs the work in it, and commits."""


class OwnSession(Session):
    """What frameworks make of it."""


@contextmanager
def make_engine(engine: Engine, **options: Any) -> Iterator[Engine]:
    made = sa.create_engine(engine.url, **options)
    try:
        yield made
    finally:
        made.dispose()


def in_sessions(**options: Any) -> Run:
    """A sessionmaker with these options."""

    def run(log: Oplog, engine: Engine, work: Work) -> None:
        sessions = sessionmaker(engine, **options)
        log.attach(sessions)
        with sessions() as session:
            if options.get("autobegin") is False:
                session.begin()
            work(session)
            session.commit()

    return run


def on_engine(options: Mapping[str, Any], execution: Mapping[str, Any] | None = None) -> Run:
    """A sessionmaker on an engine with these options."""

    def run(log: Oplog, engine: Engine, work: Work) -> None:
        with make_engine(engine, **options) as made:
            in_sessions()(log, made.execution_options(**(execution or {})), work)

    return run


def in_scope(log: Oplog, engine: Engine, work: Work) -> None:
    scope = scoped_session(sessionmaker(engine))
    log.attach(scope)
    work(scope())
    scope.commit()
    scope.remove()


def in_own_class(log: Oplog, engine: Engine, work: Work) -> None:
    log.attach(OwnSession)
    try:
        with OwnSession(engine) as session, session.begin():
            work(session)
    finally:
        log.detach(OwnSession)


def on_a_connection(log: Oplog, engine: Engine, work: Work) -> None:
    sessions = sessionmaker()
    log.attach(sessions)
    with engine.connect() as connection, sessions(bind=connection) as session:
        work(session)
        session.commit()


def inside(mode: str) -> Run:
    """A session that joins a transaction which somebody else has begun and commits."""

    def run(log: Oplog, engine: Engine, work: Work) -> None:
        sessions = sessionmaker(join_transaction_mode=mode)
        log.attach(sessions)
        with engine.connect() as connection:
            outer = connection.begin()
            with sessions(bind=connection) as session:
                work(session)
                session.commit()
            if outer.is_active:
                outer.commit()

    return run


def after_a_beginning(log: Oplog, engine: Engine, work: Work) -> None:
    """The connection is in a transaction when the log is attached."""
    with engine.connect() as connection:
        connection.begin()
        log.attach(engine)
        work(connection)
        connection.commit()


def begun(log: Oplog, engine: Engine, work: Work) -> None:
    log.attach(engine)
    with engine.begin() as connection:
        work(connection)


def as_you_go(log: Oplog, engine: Engine, work: Work) -> None:
    log.attach(engine)
    with engine.connect() as connection:
        work(connection)
        connection.commit()


def in_a_savepoint(log: Oplog, engine: Engine, work: Work) -> None:
    log.attach(engine)
    with engine.connect() as connection, connection.begin(), connection.begin_nested():
        work(connection)


def two_phases(log: Oplog, engine: Engine, work: Work) -> None:
    log.attach(engine)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        work(connection)
        transaction.prepare()
        transaction.commit()


def by_itself(log: Oplog, engine: Engine, work: Work) -> None:
    """Each statement commits."""
    log.attach(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        work(connection)


def by_binds(log: Oplog, engine: Engine, work: Work) -> None:
    """Only some tables are there; the session is routed by what it writes."""
    with make_engine(engine) as other:
        sessions = sessionmaker(engine, binds={OwnSession: other})
        log.attach(sessions)
        with sessions.begin() as session:
            work(session)


def in_async_sessions(log: Oplog, engine: Engine, work: Work) -> None:
    async def run() -> None:
        made = create_async_engine(engine.url, poolclass=AsyncAdaptedQueuePool)
        sessions = async_sessionmaker(made)
        log.attach(sessions)
        async with sessions.begin() as session:
            await session.run_sync(work)
        await made.dispose()

    asyncio.run(run())


def in_async_scope(log: Oplog, engine: Engine, work: Work) -> None:
    async def run() -> None:
        made = create_async_engine(engine.url, poolclass=NullPool)
        scope: async_scoped_session[AsyncSession] = async_scoped_session(
            async_sessionmaker(made), scopefunc=asyncio.current_task
        )
        log.attach(scope)
        await scope().run_sync(work)
        await scope.commit()
        await scope.remove()
        await made.dispose()

    asyncio.run(run())


def on_async_engine(log: Oplog, engine: Engine, work: Work) -> None:
    async def run() -> None:
        made = create_async_engine(engine.url)
        log.attach(made)
        async with made.begin() as connection:
            await connection.run_sync(work)
        await made.dispose()

    asyncio.run(run())


SESSIONS: dict[str, Run] = {
    "sessionmaker": in_sessions(),
    "sessionmaker, no autoflush, nothing expires": in_sessions(
        autoflush=False, expire_on_commit=False
    ),
    "sessionmaker, autobegin off": in_sessions(autobegin=False),
    "sessionmaker of an own class": in_sessions(class_=OwnSession),
    "sessionmaker, two phases": in_sessions(twophase=True),
    "scoped session": in_scope,
    "own class": in_own_class,
    "binds": by_binds,
    "bound to a connection": on_a_connection,
    "outer transaction, savepoints": inside("create_savepoint"),
    "outer transaction, conditional": inside("conditional_savepoint"),
    "outer transaction, rollback only": inside("rollback_only"),
    "outer transaction, in control": inside("control_fully"),
    "NullPool": on_engine({"poolclass": NullPool}),
    "StaticPool": on_engine({"poolclass": StaticPool}),
    "QueuePool with a ping": on_engine({"poolclass": QueuePool, "pool_pre_ping": True}),
    "pool that resets nothing": on_engine({"pool_reset_on_return": None}),
    "REPEATABLE READ": on_engine({"isolation_level": "REPEATABLE READ"}),
    "SERIALIZABLE": on_engine({"isolation_level": "SERIALIZABLE"}),
    "AUTOCOMMIT": on_engine({"isolation_level": "AUTOCOMMIT"}),
    "AUTOCOMMIT as an option": on_engine({}, {"isolation_level": "AUTOCOMMIT"}),
    "no cache of statements": on_engine({"query_cache_size": 0}),
    "no insertmanyvalues": on_engine({"use_insertmanyvalues": False}),
    "insertmanyvalues one by one": on_engine({"insertmanyvalues_page_size": 1}),
    "no implicit returning": on_engine({}, {"compiled_cache": None}),
    "schema translated to itself": on_engine({}, {"schema_translate_map": {"nobody": "public"}}),
    "logging token": on_engine({}, {"logging_token": "x"}),
    "prepared at once": on_engine({"connect_args": {"prepare_threshold": 0}}),
    "client-side cursors": on_engine({"connect_args": {"cursor_factory": psycopg.ClientCursor}}),
    "async sessionmaker": in_async_sessions,
    "async scoped session": in_async_scope,
}
CONNECTIONS: dict[str, Run] = {
    "engine.begin": begun,
    "commit as you go": as_you_go,
    "savepoint of a connection": in_a_savepoint,
    "two phases of a connection": two_phases,
    "AUTOCOMMIT connection": by_itself,
    "begun before attach": after_a_beginning,
    "async engine.begin": on_async_engine,
}
