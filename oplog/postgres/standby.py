"""Standbys: what is refused on them, and how the log is read there.

A standby's snapshots do not list running transactions: `pg_visible_in_snapshot` takes each of them
for ended, so a snapshot kept as text cannot hold several statements together. A cursor can:
everything that it fetches was visible when it was declared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.errors import ConfigurationError

ALL_VISIBLE = "9223372036854775807:9223372036854775807:"
"""Stands for the snapshot of a standby: a filter that leaves everything to the statement's own.

What is visible to a statement there is causally whole: commits are replayed in their order.
"""

_FETCHED = 4000
_NO_SUCH_CURSOR = "34000"
_numbers = itertools.count(1)


def is_standby(connection: Connection) -> bool:
    """Whether the server is in recovery: it follows another one, and takes no writes."""
    found = connection.exec_driver_sql("SELECT pg_catalog.pg_is_in_recovery()").scalar_one()
    return bool(found)


def require_primary(connection: Connection, doing: str) -> None:
    """Raise `ConfigurationError` on a standby; `doing` begins the sentence that refuses."""
    if is_standby(connection):
        raise ConfigurationError(
            f"{doing} needs the primary: this server is a standby, which takes no writes",
            hint="do it on the primary; a standby serves read, history, as_of, verify and diagnose",
        )


def iterate_positions(
    connection: Connection,
    select: str,
    values: tuple[Any, ...],
    *,
    most: int,
    most_bytes: int,
    fetched: int = _FETCHED,
) -> Iterator[list[int]]:
    """First columns of what `select` gives (a position and a size), in pages, from one snapshot.

    A page has at most `most` positions, and sizes up to `most_bytes` together unless it is one.
    `fetched` rows are fetched at once. The cursor lives until the transaction ends, or all was
    fetched.
    """
    if getattr(connection.connection.driver_connection, "autocommit", False):
        raise ConfigurationError(
            "reading the log on a standby needs a transaction, and the connection is in AUTOCOMMIT",
            hint="leave out isolation_level='AUTOCOMMIT'",
        )
    name = f"oplog_reading_{next(_numbers)}"
    connection.exec_driver_sql(f"DECLARE {name} NO SCROLL CURSOR FOR {select}", values)
    page: list[int] = []
    size = 0
    while rows := _fetch(connection, name, fetched):
        for position, length in rows:
            if page and (len(page) >= most or size + length > most_bytes):
                yield page
                page, size = [], 0
            page.append(position)
            size += length
    connection.exec_driver_sql(f"CLOSE {name}")
    if page:
        yield page


def _fetch(connection: Connection, name: str, count: int) -> list[Any]:
    try:
        return list(connection.exec_driver_sql(f"FETCH FORWARD {count} FROM {name}"))
    except DBAPIError as cause:
        if getattr(cause.orig, "sqlstate", None) != _NO_SUCH_CURSOR:
            raise
        raise ConfigurationError(
            "the transaction ended while the log was being read on a standby",
            hint="read in one transaction: only inside it do all pages show the same moment",
        ) from cause
