"""The transaction that a replay runs in, and the driver's cursor inside it.

Knows SQLAlchemy connections and psycopg, nothing of the log. The hard thing is to be a good
guest: the caller's transaction is never committed, its settings are put back, and where it
cannot give one consistent snapshot another connection is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.value import TEXT_SETTINGS

_REPEATABLE = ("repeatable read", "serializable")


class Driver:
    """Statements and COPY on psycopg's own cursor, past SQLAlchemy.

    The engine's listeners would take writes to rebuilt tables for the application's.
    """

    def __init__(self, connection: Connection) -> None:
        """`ConfigurationError` for a driver that is not psycopg 3, or its async form."""
        raw = connection.connection.driver_connection
        if isinstance(raw, psycopg.AsyncConnection):
            raise ConfigurationError(
                "replay and verify do not run on an async connection",
                hint="give a connection of create_engine('postgresql+psycopg://...'), in a "
                "thread if need be: await asyncio.to_thread(...)",
            )
        if not isinstance(raw, psycopg.Connection):
            raise ConfigurationError(
                f"replay and verify need psycopg 3, the connection is {type(raw).__module__}'s",
                hint="use a postgresql+psycopg:// URL",
            )
        if raw.autocommit:
            raise ConfigurationError(
                "replay and verify need a transaction, and the connection is in autocommit",
                hint="leave out isolation_level='AUTOCOMMIT'",
            )
        self._cursor = raw.cursor()

    def execute(self, statement: str) -> psycopg.Cursor[Any]:
        """Run a statement without parameters; a percent sign means itself."""
        return self._cursor.execute(statement.encode())

    def copy(self, statement: str, chunks: Iterable[str]) -> None:
        """Feed `COPY ... FROM STDIN` in text format."""
        with self._cursor.copy(statement.encode()) as copy:
            for chunk in chunks:
                copy.write(chunk)


@contextmanager
def open_work(connection: Connection) -> Iterator[None]:
    """The caller's transaction, or one REPEATABLE READ of our own that is committed."""
    if connection.in_transaction():
        with pin_settings(connection):
            yield
        return
    with connection.begin():
        _raise_isolation(connection)
        with pin_settings(connection):
            yield


@contextmanager
def open_snapshot(connection: Connection) -> Iterator[Connection]:
    """A connection inside one consistent snapshot; whatever is done in it is undone.

    A transaction of the caller's that sees each statement anew, or that has written already,
    cannot be that snapshot: then it is another connection of the same engine.
    """
    if not connection.in_transaction():
        with connection.begin() as transaction:
            _raise_isolation(connection)
            with pin_settings(connection, restore=False):
                yield connection
            transaction.rollback()
        return
    isolation, wrote = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation'), "
        "pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
    ).one()
    if isolation in _REPEATABLE and not wrote:
        savepoint = connection.begin_nested()
        try:
            with pin_settings(connection, restore=False):
                yield connection
        finally:
            savepoint.rollback()
        return
    with connection.engine.connect() as other, open_snapshot(other):
        yield other


@contextmanager
def pin_settings(connection: Connection, *, restore: bool = True) -> Iterator[None]:
    """Fix how Postgres prints and reads values until the block ends."""
    Driver(connection)
    names = list(TEXT_SETTINGS)
    before = connection.exec_driver_sql(
        "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.unnest(%s::text[]) n(name)",
        (names,),
    ).all()
    _set_all(connection, TEXT_SETTINGS.items())
    # On an error the transaction or savepoint is rolled back, and its settings with it.
    yield
    if restore:
        _set_all(connection, [(row[0], row[1]) for row in before])


def check_moment(moment: datetime) -> datetime:
    """`moment`, unless it has no time zone: which instant it means would be a guess."""
    if moment.tzinfo is None:
        raise ConfigurationError(
            f"the time {moment.isoformat()} has no time zone",
            hint="give an aware datetime: datetime(..., tzinfo=timezone.utc)",
        )
    return moment


def _raise_isolation(connection: Connection) -> None:
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _set_all(connection: Connection, settings: Iterable[tuple[str, str]]) -> None:
    pairs = list(settings)
    connection.exec_driver_sql(
        "SELECT pg_catalog.set_config(name, value, true) "
        "FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[])) "
        "AS s(name, value)",
        ([name for name, _ in pairs], [value for _, value in pairs]),
    )
