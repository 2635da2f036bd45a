"""Notifications of one channel, heard on a connection that no pool knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError


class Listener:
    """LISTEN on a connection of its own. Used by one thread.

    Where nothing can be heard (the server is away, a driver that is not psycopg 3), `hear` says
    so, and the next call tries again.
    """

    def __init__(self, engine: Engine, channel: str) -> None:
        self._engine = engine
        self._channel = channel
        self._connection: psycopg.Connection[object] | None = None

    def hear(self, seconds: float) -> bool | None:
        """Whether a notification came within `seconds`; None, at once, if nothing can be heard."""
        connection = self._connect()
        if connection is None:
            return None
        try:
            return next(connection.notifies(timeout=seconds, stop_after=1), None) is not None
        except psycopg.Error:
            self.close()
            return False

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[object] | None:
        if self._connection is not None:
            return self._connection
        with contextlib.suppress(DBAPIError, psycopg.Error), _detach(self._engine) as raw:
            raw.autocommit = True
            raw.execute(f"LISTEN {self._channel}")
            self._connection = raw
        return self._connection


@contextmanager
def _detach(engine: Engine) -> Iterator[psycopg.Connection[object]]:
    """A connection of the engine's making that its pool forgets; closed on an error."""
    pooled = engine.raw_connection()
    raw = pooled.driver_connection
    pooled.detach()
    if not isinstance(raw, psycopg.Connection):
        pooled.close()
        raise psycopg.NotSupportedError("not a connection of psycopg 3")
    try:
        yield raw
    except BaseException:
        raw.close()
        raise
