"""The error for a change whose effect on rows is not known exactly."""

from __future__ import annotations

from oplog.errors import NotCapturableError
from oplog.type_binding import BoundType


def describe_uncertain(
    bound: BoundType,
    why: str,
    *,
    hint: str = "the transaction must be rolled back; write the rows one by one",
    retryable: bool = False,
) -> NotCapturableError:
    """The error for a change to a table; `why` says what of it is not known."""
    return NotCapturableError(
        f"a change to table {bound.live.qualified} cannot be logged exactly: {why}",
        hint=hint,
        retryable=retryable,
    )
