"""What calls of `Oplog` accept for a connection, an engine or a factory: decided here alone.

A session stands for its connection to the database of the log's tables. What is asynchronous is
refused with the line that works, because the log's own statements wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from oplog.capture.attach_target import is_async_factory
from oplog.catalog import TypeCatalog
from oplog.errors import ConfigurationError

T = TypeVar("T")
Inside: TypeAlias = Connection | Session | scoped_session[Any]
"""A connection, or a session for its connection."""
Readable: TypeAlias = Inside | Engine
"""The same, or an engine, of which a connection is taken for the call."""


def take_connection(given: Any, catalog: TypeCatalog) -> Connection:
    """The connection; of a session, the one of its transaction, which begins here if need be.

    Raises `ConfigurationError` for an engine, for what is asynchronous, and for anything else.
    """
    if isinstance(given, Connection):
        return given
    if isinstance(given, scoped_session):
        return take_connection(given(), catalog)
    if isinstance(given, Session):
        return _take_sessions(given, catalog)
    if isinstance(given, Engine):
        raise ConfigurationError(
            "this call takes a connection, and was given an engine",
            hint="with engine.connect() as connection: ... (its work commits by itself), or with "
            "engine.begin() as connection: ... (all of it in one transaction)",
        )
    _refuse_asynchronous(given)
    raise ConfigurationError(
        f"{_name(given)} is not a connection",
        hint="give a Connection (with engine.connect() as connection) or a Session",
    )


@contextmanager
def open_connection(given: Readable, catalog: TypeCatalog) -> Iterator[Connection]:
    """The same for a call that reads: of an engine a connection is taken, and given back."""
    if isinstance(given, Engine):
        with given.connect() as connection:
            yield connection
    else:
        yield take_connection(given, catalog)


@contextmanager
def open_source(given: Readable | None, catalog: TypeCatalog) -> Iterator[Connection | None]:
    """The same where None stands for an archive alone."""
    if given is None:
        yield None
    else:
        with open_connection(given, catalog) as connection:
            yield connection


def iterate_on(
    given: Readable | None,
    catalog: TypeCatalog,
    produce: Callable[[Connection | None], Iterable[T]],
) -> Iterable[T]:
    """What `produce` yields; a connection of an engine is held until the last, or the end of it."""
    if not isinstance(given, Engine):
        with open_source(given, catalog) as connection:
            # At once, so that what is wrong is said by the call, not by the first entry.
            return produce(connection)

    def iterate() -> Iterator[T]:
        with given.connect() as connection:
            yield from produce(connection)

    return iterate()


def take_engine(given: Any) -> Engine:
    """The engine; `ConfigurationError` for anything else, with what to give."""
    if isinstance(given, Engine):
        return given
    if isinstance(given, (Connection, Session, scoped_session)):
        raise ConfigurationError(
            f"this call takes an engine, and was given a {type(given).__name__}: it opens "
            "transactions of its own",
            hint="give connection.engine, or session.get_bind()",
        )
    if hasattr(given, "sync_engine"):
        raise ConfigurationError(
            "this call takes a blocking engine, and was given an AsyncEngine",
            hint="make one of the same URL, and call this in a thread: "
            "await asyncio.to_thread(call, sqlalchemy.create_engine(async_engine.url))",
        )
    _refuse_asynchronous(given)
    raise ConfigurationError(f"{_name(given)} is not an engine", hint="give an Engine")


def take_async_engine(given: Any) -> Any:
    """The AsyncEngine; `ConfigurationError` for anything else."""
    if hasattr(given, "sync_engine"):
        return given
    raise ConfigurationError(
        f"{_name(given)} is not an AsyncEngine",
        hint="give an AsyncEngine; for an Engine there is the same call without _async",
    )


def check_factory(sessions: Any, *, asynchronous: bool) -> None:
    """Raise `ConfigurationError` unless `sessions` may be called for sessions of this kind."""
    given_async = is_async_factory(sessions)
    if given_async is not asynchronous and (given_async or isinstance(sessions, sessionmaker)):
        raise ConfigurationError(
            f"{'run_async' if asynchronous else 'run'} was given "
            f"{'an async_sessionmaker' if given_async else 'a sessionmaker'}",
            hint="await log.run_async(...) with an async_sessionmaker, log.run(...) with a "
            "sessionmaker",
        )
    if not callable(sessions):
        raise ConfigurationError(
            f"{_name(sessions)} makes no sessions",
            hint="give the sessionmaker: each attempt needs a session of its own",
        )


def _take_sessions(session: Session, catalog: TypeCatalog) -> Connection:
    # A session of several databases has the tables' connection; one of none says so itself.
    table = next((declared.table for declared in catalog.types.values()), None)
    arguments = {} if table is None else {"clause": table}
    try:
        return session.connection(bind_arguments=arguments)
    except InvalidRequestError as cause:
        raise ConfigurationError(
            f"this session gives no connection: {str(cause.args[0]).partition('(Background')[0]}",
            hint="give a connection of the log's database, or a session that is bound to it and "
            "whose transaction is in order",
        ) from cause


def _refuse_asynchronous(given: Any) -> None:
    name = type(given).__name__
    if hasattr(given, "sync_session"):
        hint = (
            "await log.history_async(session, Account, 42), or for another call "
            "await session.run_sync(lambda s: log.history(s, Account, 42))"
        )
    elif hasattr(given, "sync_connection"):
        hint = "await connection.run_sync(lambda c: log.history(c, Account, 42))"
    elif hasattr(given, "sync_engine"):
        hint = (
            "async with engine.connect() as connection: "
            "await connection.run_sync(lambda c: log.history(c, Account, 42))"
        )
    elif is_async_factory(given):
        hint = "async with Sessions() as session: await session.run_sync(lambda s: ...)"
    else:
        return
    raise ConfigurationError(
        f"this call waits for the database, which an {name} does only inside run_sync", hint=hint
    )


def _name(given: Any) -> str:
    if isinstance(given, sessionmaker):
        return "a sessionmaker"
    return f"{given!r:.60}" if isinstance(given, (str, int)) else f"a {type(given).__name__}"
