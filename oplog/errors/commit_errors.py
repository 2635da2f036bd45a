"""Errors of transactions: conflicts with others, and commits that did not do what was asked."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable
from typing import ClassVar

from oplog.errors.root_error import OplogError
from oplog.receipt import Receipt


class ConflictError(OplogError):
    """Another transaction or process was faster."""


class TicketConflictError(ConflictError):
    """The aggregate changed after its ticket was taken; nothing was written.

    `aggregates` are all aggregates that the transaction was going to write, if they are known.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        aggregates: Iterable[str] = (),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.aggregates = tuple(aggregates)


class KeyRetiredError(ConflictError):
    """The transaction was sealed with a key that the log has retired; nothing was written.

    The keyring has been read again by then: the next run seals with its current key.
    """

    retryable = True
    exit_code = 12


class SchemaChangedError(ConflictError):
    """A migration changed tables since this process looked at them; nothing was written.

    What was known of the database is forgotten by then: the next run looks at it anew.
    """

    retryable = True


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used before: for another request, or by a commit not seen yet.

    `receipts` are those of the transaction that used the key first, if they are known.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        receipts: Iterable[Receipt] = (),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.receipts = list(receipts)


class CommitError(OplogError):
    """The outcome of a COMMIT is unknown, or differs from what COMMIT would have reported."""


class CommitOutcomeUnknownError(CommitError):
    """The answer to COMMIT was lost; the transaction may or may not have happened.

    Give `receipts`, those of its entries, to `Oplog.resolve`; they have version and hash if these
    were known. `idempotency_key` is the key of the transaction, if it had one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        receipts: Iterable[Receipt] = (),
        idempotency_key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.receipts = list(receipts)
        self.idempotency_key = idempotency_key

    interrupted: ClassVar[bool] = False
    """The program or the task was asked to end: do not try again."""

    @property
    def receipt(self) -> Receipt | None:
        """The first receipt: one is enough to resolve the whole transaction."""
        return self.receipts[0] if self.receipts else None


class CommitCancelledError(CommitOutcomeUnknownError, CancelledError):
    """A task was cancelled during COMMIT; asyncio treats this as its cancellation."""

    interrupted = True


class CommitInterruptedError(CommitOutcomeUnknownError, KeyboardInterrupt):
    """Ctrl-C was pressed during COMMIT."""

    interrupted = True


class CommitWouldRollBackError(CommitError):
    """An error of a statement was ignored: COMMIT would silently have rolled everything back."""
