"""Whether a consumer has seen a record, as a condition in SQL.

A cursor on its way to a target has also seen, of what is new there, the records at or before its
position.
"""

from __future__ import annotations

from oplog.store.cursor import Cursor
from oplog.store.rows import Seen

VISIBLE = "pg_catalog.pg_visible_in_snapshot(r.transaction_id, %s::pg_snapshot)"
"""Whether record `r` is in a snapshot, which is a parameter."""
EVERYTHING = "1:1:"
"""A snapshot in which nothing had happened yet."""


def read_seen(cursor: Cursor) -> Seen:
    """What is seen at a cursor."""
    return Seen(cursor.snapshot or EVERYTHING, cursor.target, cursor.after)


def bind_unseen(seen: Seen) -> tuple[str, list[object]]:
    """The condition that record `r` was not seen, and its parameters."""
    condition, values = f"NOT {VISIBLE}", list[object]([seen.snapshot])
    if seen.target is not None:
        condition += f" AND NOT ({VISIBLE} AND r.position <= %s)"
        values += [seen.target, seen.after]
    return f"({condition})", values
