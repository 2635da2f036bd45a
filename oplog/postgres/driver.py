"""Which driver a connection uses, and that the log can work with it.

The log's statements, its pipelines and the guards' messages are psycopg 3's. With another
driver some of it would fail late, after rows were written; so it is refused first.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from psycopg.pq import Format
from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError

DRIVERS = frozenset({"psycopg", "psycopg_async"})
"""As SQLAlchemy names them."""


_LOADED = (
    ("boolean", 16, b"t", bool),
    ("smallint", 21, b"1", int),
    ("integer", 23, b"1", int),
    ("bigint", 20, b"1", int),
    ("text", 25, b"1", str),
)
"""Types that the log's own queries give, with a value as text and the class that it is read as."""


def require_driver(connection: Connection) -> None:
    """Raise `ConfigurationError` unless the engine uses psycopg 3, blocking or not.

    And unless the connection reads whole numbers, texts and booleans as these: an application may
    have registered loaders of its own, and the log's queries give such values as well.
    """
    dialect = connection.dialect
    if dialect.driver not in DRIVERS:
        raise ConfigurationError(
            f"the log works with psycopg 3, and this engine's driver is {dialect.driver}",
            hint="use a postgresql+psycopg:// URL; create_async_engine takes the same one",
        )
    raw: Any = connection.connection.driver_connection
    for name, oid, text, kind in _LOADED:
        loader = raw.adapters.get_loader(oid, Format.TEXT)
        found = loader(oid, raw).load(text)
        if not isinstance(found, kind):
            raise ConfigurationError(
                f"this connection reads {name} as {type(found).__name__}, by the loader "
                f"{loader.__qualname__} that the application has registered, and the log's own "
                "queries give such values",
                hint="register the loader on the cursors that need it, or convert in a "
                "TypeDecorator of the columns",
            )


@contextmanager
def cut_off(connection: Connection, seconds: float) -> Iterator[None]:
    """End the connection, and the wait for it, if the block takes longer.

    Behind PgBouncer the first writers may hold all the server connections that it shares, and
    each wait for one more. No setting of the server's bounds that wait.
    """
    raw: Any = connection.connection.driver_connection

    def cut() -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(raw.pgconn.socket)) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
