"""Pages of whole transactions that are new since a cursor, for consumers and for publishing.

The ids of transactions interleave, so a page of ids cuts some of them. A transaction belongs to
the page in which its first entry lies: entries of one that began before are left out, and what a
page lacks of those that begin in it is read by their transaction ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

from oplog.store.cursor import Cursor
from oplog.store.rows import FORMAT_PRUNED
from oplog.store.seen import EVERYTHING, VISIBLE
from oplog.store.whole_transactions import count_missing

_PLACE = (
    "e.id AS place_id, e.transaction_id::text AS place_xid, "
    "e.transaction_position AS place_begin, e.transaction_size AS place_size"
)


class _Place(NamedTuple):
    """Where an entry of a page lies, beside the columns that were asked for."""

    position: int
    transaction_id: str
    transaction_position: int
    transaction_size: int


_Row = tuple[_Place, Sequence[Any]]


class NewRows(NamedTuple):
    """Rows of whole transactions by position; `last` is where the next page begins.

    It is None at the cursor's target.
    """

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
    """The next whole transactions on the cursor's way to its target, as `columns` of entry `e`.

    About `limit` entries and `most_bytes` sealed bytes, more only to complete a transaction. `s`
    is the quoted schema.
    """
    found = connection.exec_driver_sql(
        f"SELECT * FROM (SELECT {columns}, {_PLACE}, lead(e.id) OVER w IS NOT NULL AS more, "
        "sum(octet_length(e.data)) OVER w - octet_length(e.data) AS bytes_before "
        f"FROM {s}.oplog_entry e WHERE e.id > %s AND e.format <> {FORMAT_PRUNED} "
        f"AND {VISIBLE} AND NOT {VISIBLE} "
        "WINDOW w AS (ORDER BY e.id) ORDER BY e.id LIMIT %s) p "
        "WHERE p.bytes_before < %s ORDER BY p.place_id",
        (cursor.after, cursor.target, cursor.snapshot or EVERYTHING, limit, most_bytes),
    ).fetchall()
    if not found:
        return NewRows([], None)
    page = [_split(row[:-2]) for row in found]
    last = page[-1][0].position
    # What began on an earlier page was given there, whole.
    begun = [row for row in page if row[0].transaction_position > cursor.after]
    whole = [*begun, *_read_tails(connection, begun, s=s, columns=columns, after=last)]
    return NewRows([columns for _, columns in whole], last if found[-1].more else None)


def _read_tails(
    connection: Connection, begun: Sequence[_Row], *, s: str, columns: str, after: int
) -> Iterator[_Row]:
    missing = count_missing(place for place, _ in begun)
    if not missing:
        return
    ids = {place.transaction_position: place.transaction_id for place, _ in begun}
    # Each stops at what it lacks: all restored entries have one transaction id.
    rows = connection.exec_driver_sql(
        "SELECT t.* FROM ROWS FROM (pg_catalog.unnest(%s::text[]), "
        "pg_catalog.unnest(%s::bigint[]), pg_catalog.unnest(%s::bigint[])) "
        f"AS c(xid, position, missing) CROSS JOIN LATERAL (SELECT {columns}, {_PLACE} "
        f"FROM {s}.oplog_entry e WHERE e.transaction_id = c.xid::xid8 AND e.id > %s "
        "AND e.transaction_position = c.position "
        "ORDER BY e.transaction_id, e.id LIMIT c.missing) t ORDER BY t.place_id",
        ([ids[position] for position in missing], list(missing), list(missing.values()), after),
    )
    yield from (_split(row) for row in rows)


def _split(row: Sequence[Any]) -> _Row:
    width = len(_Place._fields)
    return _Place._make(row[-width:]), row[:-width]
