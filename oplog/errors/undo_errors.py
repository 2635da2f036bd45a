"""Errors of undoing: what cannot be undone, conflicts without a choice, plans out of date."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oplog.errors.root_error import OplogError


class UndoError(OplogError):
    """What was asked for cannot be undone; nothing was written."""


class UndoConflictError(UndoError):
    """An undo would lose what others wrote since, and nobody chose what to do; nothing was written.

    `conflicts` are those without a choice, as in `UndoPlan.conflicts`.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", conflicts: Iterable[Any] = ()) -> None:
        super().__init__(message, hint=hint)
        self.conflicts = tuple(conflicts)


class StalePlanError(UndoError):
    """Rows of the plan were changed after it was made; nothing was written.

    `retryable`: planning and undoing again from the start may succeed.
    """

    retryable = True
