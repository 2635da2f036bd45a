"""The transaction that a replay or a restore runs in, and psycopg's cursor inside it.

A transaction of the caller is never committed here, and its settings are put back. Where it
cannot give one consistent snapshot, another connection of the same engine is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any

import psycopg
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.text_settings import fix_text_settings, set_back_text_settings

_REPEATABLE = ("repeatable read", "serializable")


class Driver:
    """Statements and COPY on psycopg's own cursor, past SQLAlchemy.

    The engine's listeners would take writes to rebuilt tables for the application's.
    """

    def __init__(self, connection: Connection, *, doing: str = "a replay") -> None:
        """Raise `ConfigurationError` like `check_driver`, which explains `doing`."""
        raw = check_driver(connection, doing=doing)
        self.connection = connection
        """The same connection, for statements that may go through SQLAlchemy."""
        self._cursor = raw.cursor()
        self._raw_cursor = psycopg.RawCursor(raw)

    def execute(self, statement: str) -> psycopg.Cursor[Any]:
        """Run a statement without parameters; a percent sign means itself."""
        return self._cursor.execute(statement.encode())

    def query(self, statement: str, parameters: Sequence[Any]) -> psycopg.Cursor[Any]:
        """Run a statement whose parameters are $1, $2...; a percent sign means itself."""
        return self._raw_cursor.execute(statement.encode(), parameters)

    def copy(self, statement: str, chunks: Iterable[str | bytes]) -> None:
        """Feed `COPY ... FROM STDIN` in text format."""
        with self._cursor.copy(statement.encode()) as copy:
            for chunk in chunks:
                copy.write(chunk)

    def copy_out(self, statement: str, *, enough: int) -> bytearray:
        """What `COPY ... TO STDOUT` gives: all of it if that is less than `enough` bytes.

        Else whole rows up to the one that made it enough. The statement is cancelled then,
        which fails the transaction or its savepoint.
        """
        found = bytearray()
        with suppress(_EnoughError), self._cursor.copy(statement.encode()) as copy:
            while row := copy.read():
                found += row
                # A turn of the driver's loop costs more than a row: what has arrived by now
                # is taken from libpq at once.
                if self._take_arrived(found, enough):
                    break
                if len(found) >= enough:
                    # Leaving without an error would read the rest, however much it is.
                    raise _EnoughError
        return found

    def stream_out(self, statement: str, *, enough: int) -> Iterator[bytes]:
        """What `COPY ... TO STDOUT` gives, in pieces of whole rows.

        A piece ends with the row that makes it `enough` bytes; only the last may have fewer.
        The connection can do nothing else until the last piece was taken.
        """
        found = bytearray()
        with self._cursor.copy(statement.encode()) as copy:
            while row := copy.read():
                found += row
                if self._take_arrived(found, enough):
                    break
                if len(found) >= enough:
                    yield bytes(found)
                    found.clear()
        if found:
            yield bytes(found)

    def _take_arrived(self, found: bytearray, enough: int) -> bool:
        """Add the rows that need not be waited for, until enough; whether that was the end."""
        connection = self._cursor.connection.pgconn
        take = connection.get_copy_data
        count = 1
        while len(found) < enough:
            count, row = take(1)
            if count <= 0:
                break
            found += row
        if count >= 0:
            return False
        # All results first: with one left the connection could not even be rolled back.
        for result in list(iter(connection.get_result, None)):
            if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"XX000"
                raise psycopg.errors.lookup(state.decode())(result.get_error_message())
        return True


def check_driver(connection: Connection, *, doing: str = "a replay") -> psycopg.Connection[Any]:
    """Psycopg's own connection; `ConfigurationError` for another driver or for autocommit.

    `doing` names the operation in the error.
    """
    raw = connection.connection.driver_connection
    if isinstance(raw, psycopg.AsyncConnection):
        raise ConfigurationError(
            f"{doing} cannot run on an async connection",
            hint="give a connection of create_engine('postgresql+psycopg://...'), in a "
            "thread if need be: await asyncio.to_thread(...)",
        )
    if not isinstance(raw, psycopg.Connection):
        raise ConfigurationError(
            f"{doing} needs psycopg 3, the connection is {type(raw).__module__}'s",
            hint="use a postgresql+psycopg:// URL",
        )
    # In a migration a transaction may have been begun by hand.
    if raw.autocommit and raw.info.transaction_status is psycopg.pq.TransactionStatus.IDLE:
        raise ConfigurationError(
            f"{doing} needs a transaction, and the connection is in autocommit",
            hint="leave out isolation_level='AUTOCOMMIT'",
        )
    return raw


def is_blocking(connection: Connection) -> bool:
    """Whether the driver is psycopg, and waits: only then there is a `Driver`."""
    return isinstance(connection.connection.driver_connection, psycopg.Connection)


class _EnoughError(Exception):
    """Ends a COPY before its last row."""


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
def open_snapshot(
    connection: Connection, *, uncommitted: bool = False, asynchronous: bool = False
) -> Iterator[Connection]:
    """A connection inside one consistent snapshot; whatever is done in it is undone.

    A transaction of the caller's that sees each statement anew, or that has written already,
    cannot be that snapshot: then it is another connection of the same engine. With `uncommitted`
    one that has written is it all the same, as if nobody else wrote meanwhile. With `asynchronous`
    the driver may be an asynchronous one, of a connection inside `run_sync`.
    """
    if not connection.in_transaction():
        with connection.begin() as transaction:
            _raise_isolation(connection)
            with pin_settings(connection, restore=False, asynchronous=asynchronous):
                yield connection
            transaction.rollback()
        return
    isolation, wrote = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation'), "
        "pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
    ).one()
    if uncommitted if wrote else isolation in _REPEATABLE:
        savepoint = connection.begin_nested()
        try:
            with pin_settings(connection, restore=False, asynchronous=asynchronous):
                yield connection
        finally:
            savepoint.rollback()
        return
    with connection.engine.connect() as other, open_snapshot(other, asynchronous=asynchronous):
        yield other


@contextmanager
def pin_settings(
    connection: Connection,
    *,
    restore: bool = True,
    more: Mapping[str, str] = MappingProxyType({}),
    asynchronous: bool = False,
) -> Iterator[None]:
    """Fix how Postgres prints and reads values, and `more` settings, until the block ends."""
    raw = connection.connection.driver_connection
    if not (asynchronous and isinstance(raw, psycopg.AsyncConnection)):
        check_driver(connection)
    before = fix_text_settings(connection)
    others = connection.exec_driver_sql(
        "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.unnest(%s::text[]) n(name)",
        (list(more),),
    ).all()
    _set_all(connection, more.items())
    # On an error the transaction or savepoint is rolled back, and its settings with it.
    yield
    if restore:
        set_back_text_settings(connection, before)
        _set_all(connection, [(row[0], row[1]) for row in others])


def read_qualified(driver: Driver, select: str, values: tuple[Any, ...]) -> list[Any]:
    """Rows of a query on the catalog, with every name in a printed definition qualified.

    PostgreSQL leaves out the schema of what the search path finds. So only pg_catalog is on it
    while the query runs; a definition that names less would mean another table elsewhere.
    """
    found = driver.query("SELECT pg_catalog.current_setting('search_path')", ()).fetchone()
    narrow = "SELECT pg_catalog.set_config('search_path', $1, true)"
    driver.query(narrow, ("pg_catalog",))
    rows = driver.query(select, values).fetchall()
    driver.query(narrow, (found[0] if found else "",))
    return rows


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
