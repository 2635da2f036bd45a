"""The search path of a connection, which decides what the names of tables mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import Connection


def find_path(connection: Connection) -> str | None:
    """The search path now, which PostgreSQL 18 reports with every change; else None."""
    raw: Any = connection.connection.driver_connection
    read = getattr(getattr(raw, "pgconn", None), "parameter_status", None)
    found = None if read is None else read(b"search_path")
    return None if found is None else bytes(found).decode()


@contextmanager
def under_path(connection: Connection, path: str | None) -> Iterator[None]:
    """Names mean what they mean under this search path; None leaves it as it is."""
    if path is None:
        yield
        return
    set_path = "SELECT pg_catalog.set_config('search_path', %s, true)"
    before = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('search_path')"
    ).scalar_one()
    connection.exec_driver_sql(set_path, (path,))
    yield
    connection.exec_driver_sql(set_path, (before,))
