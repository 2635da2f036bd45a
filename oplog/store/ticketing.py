"""Tickets as a snapshot keeps them.

Text of SQL only. The hard thing is a ticket that was never redeemed: it says nothing that a
log would need, and may go as it came.
"""

from __future__ import annotations

from oplog.tables import quote

TICKET_TABLE = "oplog_ticket"
TICKET_KEY = "aggregate_name"
TICKET_COLUMNS = (
    (TICKET_KEY, "text"),
    ("version", "bigint"),
    ("prev_hash", "bytea"),
    ("head_hash", "bytea"),
    ("body_hash", "bytea"),
)
"""Names and types of all columns."""
REDEEMED = "t.version > 0"
"""Which tickets belong to an entry, called `t`."""


def name_tickets(schema: str) -> str:
    """The table in SQL."""
    return f"{quote(schema)}.{TICKET_TABLE}"
