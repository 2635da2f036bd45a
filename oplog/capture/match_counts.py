"""How many rows each set of parameters of a statement matched, kept with its execution.

Several logs may listen to one engine, and only the first of them executes the statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COUNTS = "oplog_match_counts"


def keep_counts(context: Any, counts: Sequence[int]) -> None:
    """Remember the numbers of rows, one for each set; `context.rowcount` is their sum."""
    setattr(context, _COUNTS, counts)
    context._rowcount = sum(counts)  # noqa: SLF001 - SQLAlchemy reads it from the cursor otherwise


def find_counts(context: Any) -> Sequence[int] | None:
    """The numbers of rows, if they were kept."""
    found: Sequence[int] | None = getattr(context, _COUNTS, None)
    return found
