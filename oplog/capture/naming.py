"""What the names of tables mean in a transaction, as far as the client can tell.

Asks nothing that the driver does not know already, but to look under another search path. Must
not know what was written. Only newer servers say when the search path changes: with an older
one a path that a function changed unseen, and changed back, is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.postgres.namesake import Named
from oplog.postgres.quoting import (
    qualify,
)


def name_tables(binding: Binding, tables: Iterable[sa.Table]) -> Named:
    """The names that statements give these tables, and the tables that they have to mean."""
    return [
        (qualify([table.name], table.schema)[0], binding.types[table].live.oid) for table in tables
    ]


def find_path(connection: Connection) -> str | None:
    """The search path now, which PostgreSQL 18 reports with every change; else None."""
    raw: Any = connection.connection.driver_connection
    read = getattr(getattr(raw, "pgconn", None), "parameter_status", None)
    found = None if read is None else read(b"search_path")
    return None if found is None else bytes(found).decode()


@contextmanager
def under_path(connection: Connection, path: str | None) -> Iterator[None]:
    """Names mean what they mean under this search path; None is the one that it is."""
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
