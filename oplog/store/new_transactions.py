"""Pages of records that are new since a cursor, for consumers and for publishing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

from oplog.store.cursor import Cursor
from oplog.store.records import sum_before
from oplog.store.seen import EVERYTHING, VISIBLE


class NewRows(NamedTuple):
    """Rows by position; `last` is where the next page begins, None at the cursor's target."""

    rows: list[Sequence[Any]]
    last: int | None


def read_new_rows(
    connection: Connection,
    cursor: Cursor,
    *,
    s: str,
    columns: str,
    limit: int,
    most_bytes: int,
) -> NewRows:
    """The next records on the cursor's way to its target, as `columns` of record `r`.

    About `limit` entries and `most_bytes` bytes, more only for a single larger record. `s`
    is the quoted schema.
    """
    found = connection.exec_driver_sql(
        f"SELECT * FROM (SELECT {columns}, {sum_before(s)}, r.position AS place, "
        "pg_catalog.lead(r.position) OVER w IS NOT NULL AS more "
        f"FROM {s}.oplog_record r WHERE r.position > %s AND {VISIBLE} AND NOT {VISIBLE} "
        "WINDOW w AS (ORDER BY r.position) ORDER BY r.position LIMIT %s) p "
        "WHERE p.bytes_before < %s AND p.entries_before < %s ORDER BY p.place",
        (
            cursor.after,
            cursor.target,
            cursor.snapshot or EVERYTHING,
            limit,
            most_bytes,
            limit,
        ),
    ).fetchall()
    if not found:
        return NewRows([], None)
    *_, last, more = found[-1]
    return NewRows([row[:-4] for row in found], last if more else None)
