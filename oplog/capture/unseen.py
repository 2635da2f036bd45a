"""Rows that were written and are not found when they are read back: deleted, or hidden.

SQL shows no difference. A policy of row security hides a row as if it had been deleted, and a
role may write rows that it cannot see, or cannot see any more at COMMIT. Where row security does
not apply, a row that is not found is not there.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from oplog.errors import NotCapturableError
from oplog.type_binding import BoundType

_HINT = (
    "guard the table, as an owner of the log whom row security does not concern; or let the role "
    "and the settings that wrote the row see it until COMMIT: give it a SELECT policy that covers "
    "what it may write, and reset what policies look at after the transaction, or write as a role "
    "with BYPASSRLS; the transaction must be rolled back"
)


def hides_rows(connection: Connection, bound: BoundType) -> bool:
    """Row security applies to what is read back from the table at this moment."""
    if bound.guard is not None and bound.guard.log_schema:
        # The owner of the log reads it, whom no policy concerns.
        return False
    found: Any = connection.exec_driver_sql(
        "SELECT pg_catalog.row_security_active(%s::bigint::oid)", (bound.live.oid,)
    ).scalar_one()
    return bool(found)


def describe_hidden(bound: BoundType, what: str) -> NotCapturableError:
    """The error for a row that row security may hide; `what` says which, and what was done."""
    return NotCapturableError(
        f"a change to table {bound.live.qualified} cannot be logged exactly: {what}, and it "
        "cannot be read back; row security is active for this role and may hide it",
        hint=_HINT,
    )
