"""Executes one statement for many sets of parameters, and tells the rows that each of them matched.

psycopg adds the numbers up. It gives the answer to each set as well, if it is asked to keep them,
at no further round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.util import await_only


def execute_counted(
    connection: Connection, cursor: Any, statement: str, parameters: Sequence[Any]
) -> list[int]:
    """How many rows each set of parameters matched; errors are the driver's.

    `cursor` is as after its own `executemany`.
    """
    if connection.dialect.is_async:
        cursor = cursor._cursor  # noqa: SLF001 - SQLAlchemy's adapter has no way to ask for answers
        await_only(cursor.executemany(statement, parameters, returning=True))
    else:
        cursor.executemany(statement, parameters, returning=True)
    counts = [cursor.rowcount]
    while cursor.nextset():
        counts.append(cursor.rowcount)
    # Other listeners read it from the cursor, which has the last answer's number now.
    cursor._rowcount = sum(counts)  # noqa: SLF001 - as above
    return counts
