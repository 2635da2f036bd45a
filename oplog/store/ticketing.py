"""Tickets as a snapshot keeps them. Text of SQL only.

A ticket that was never redeemed is left out: no entry goes on from it.
"""

from __future__ import annotations

from oplog.postgres.quoting import (
    quote,
)

TICKET_TABLE = "oplog_ticket"
TICKET_KEY = "aggregate_name"
TICKET_COLUMNS = (
    (TICKET_KEY, "text"),
    ("version", "bigint"),
    ("head_hash", "bytea"),
)
"""Names and types of the columns that the next entry goes on from.

The other hashes say how the newest one came about. They do not compress, and would be most of
what a snapshot of few changes uploads."""
REDEEMED = "t.version > 0"
"""Which tickets belong to an entry, called `t`."""


def name_tickets(schema: str) -> str:
    """The table in SQL."""
    return f"{quote(schema)}.{TICKET_TABLE}"
