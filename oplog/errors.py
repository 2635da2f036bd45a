"""Every error the library raises, in one tree under `OplogError`.

`retryable` means that the same work, run again from its start, may succeed. Database errors that
users know (`IntegrityError`, `OperationalError`, ...) are not wrapped; they pass unchanged.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable
from typing import Any, ClassVar

from oplog.receipt import Receipt


class OplogError(Exception):
    """Root of the tree.

    `hint` says what to do; `retryable` whether re-running the work may help; `exit_code` is that
    of the command line (1 failed, 2 usage, 3 differences or corruption, 10 schema version,
    11 lease, 12 key, 13 store).
    """

    retryable: bool = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None) -> None:
        """`retryable` overrides what the class says."""
        super().__init__(message)
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


# -- configuration ----------------------------------------------------------------------


class ConfigurationError(OplogError):
    """The log was set up or called in a way that cannot work."""

    exit_code = 2


class UnknownTypeError(ConfigurationError):
    """The catalog does not have this type name or mapped class."""

    exit_code = 1


class NotCapturableError(ConfigurationError):
    """A table, column or statement was refused: its effect cannot be logged exactly."""

    exit_code = 1


class UnloggedWriteError(ConfigurationError):
    """Tracked rows changed without an entry."""

    exit_code = 1


class SchemaVersionError(ConfigurationError):
    """The log's tables are missing, or older or newer than this library expects."""

    exit_code = 10


class ForeignServerError(ConfigurationError):
    """The log in this database, or the archive, was written from another database."""


class PrunedError(ConfigurationError):
    """The requested entries were pruned from the database and are only in an archive."""


# -- conflicts --------------------------------------------------------------------------


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


# -- commit -----------------------------------------------------------------------------


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


# -- entries ----------------------------------------------------------------------------


class EntryError(OplogError):
    """An entry that cannot be built, stored or read."""


class InvalidMetadataError(EntryError):
    """Metadata that cannot be stored: NUL, lone surrogate, empty or over-long key or value."""


class EntryTooLargeError(EntryError):
    """The entry is over the size limit; split the transaction."""


class DecodeError(EntryError):
    """The stored bytes are not in a format that this library writes."""

    exit_code = 3


class UpcastError(EntryError):
    """A step between two revisions of a type is missing or failed."""


class SealError(EntryError):
    """The sealed bytes were altered, moved to another entry, or cut short."""

    exit_code = 3


class WrongKeyError(SealError):
    """The key with this id is not the key the entry was sealed with."""

    exit_code = 12


class KeyUnavailableError(SealError):
    """The keyring has no key with this id."""

    exit_code = 12


class ChainBrokenError(EntryError):
    """An aggregate's versions have a gap, or its hash chain does not link."""

    exit_code = 3


# -- replay -----------------------------------------------------------------------------


class ReplayError(OplogError):
    """The tables could not be rebuilt from the log: it contradicts itself."""

    exit_code = 3


class SchemaDriftError(ReplayError):
    """The live tables no longer match the logged shapes."""

    exit_code = 1


class VerificationError(ReplayError):
    """The live tables differ from the log."""

    exit_code = 3


class CaptureMismatchError(ReplayError):
    """The entry to be logged differs from what the database stored (strict mode, guards)."""

    exit_code = 3


# -- archive ----------------------------------------------------------------------------


class ArchiveError(OplogError):
    """Something is wrong with the archive in the object store."""


class StoreUnavailableError(ArchiveError):
    """The object store did not answer in time."""

    retryable = True
    exit_code = 13


class StorageConfigError(ArchiveError):
    """The object store refused: no permission, no bucket, wrong credentials, a wrong clock."""

    exit_code = 13


class ObjectTooLargeError(ArchiveError):
    """A stored object is larger than any that is written under such a name."""

    exit_code = 3


class ManifestInvalidError(ArchiveError):
    """A head or a snapshot manifest contradicts itself or the objects that it names."""

    exit_code = 3


class SegmentCorruptError(ArchiveError):
    """A segment's bytes do not match its name."""

    exit_code = 3


class SegmentMissingError(ArchiveError):
    """An object that a head refers to is missing."""

    exit_code = 3


class LeaseLostError(ArchiveError):
    """Another worker has taken over."""

    exit_code = 11


class LeaseHeldError(LeaseLostError):
    """Another worker is publishing at present; no action is needed."""


class ArchiveLagError(ArchiveError):
    """Committed entries did not reach the archive within the given time."""

    retryable = True
    exit_code = 4


class LogForkedError(ArchiveError):
    """The database no longer holds commits that were already published.

    `position` and `sequence` are those of the first published entry that is missing or differs,
    `archived_hash` is its hash in the archive, `stored_hash` the hash in the database at that
    position (None without an entry). `lost` describes the lost entries (the first ones, if there
    are many), `lost_count` counts them. `common_sequence` is the last sequence that both have.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        position: int = 0,
        sequence: int = 0,
        archived_hash: bytes = b"",
        stored_hash: bytes | None = None,
        lost: Iterable[Any] = (),
        lost_count: int = 0,
        common_sequence: int = 0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.position = position
        self.sequence = sequence
        self.archived_hash = archived_hash
        self.stored_hash = stored_hash
        self.lost = list(lost)
        self.lost_count = lost_count
        self.common_sequence = common_sequence


class ObjectConflictError(ArchiveError):
    """An object with this name exists and has other content."""

    exit_code = 3


class HeadRolledBackError(ArchiveError):
    """The newest head is older than one already seen."""

    exit_code = 3


class _Advice(UserWarning):
    def __init__(self, message: str) -> None:
        super().__init__(message)


class DurabilityNotConfirmedWarning(_Advice):
    """The wait of a COMMIT for its standby was cut short: a failover may lose the commit."""


class RestoreWarning(_Advice):
    """The log holds rows that a restore will refuse."""


__all__ = [
    "ArchiveError",
    "ArchiveLagError",
    "CaptureMismatchError",
    "ChainBrokenError",
    "CommitCancelledError",
    "CommitError",
    "CommitInterruptedError",
    "CommitOutcomeUnknownError",
    "CommitWouldRollBackError",
    "ConfigurationError",
    "ConflictError",
    "DecodeError",
    "DurabilityNotConfirmedWarning",
    "EntryError",
    "EntryTooLargeError",
    "ForeignServerError",
    "HeadRolledBackError",
    "IdempotencyConflictError",
    "InvalidMetadataError",
    "KeyUnavailableError",
    "LeaseHeldError",
    "LeaseLostError",
    "LogForkedError",
    "ManifestInvalidError",
    "NotCapturableError",
    "ObjectConflictError",
    "ObjectTooLargeError",
    "OplogError",
    "PrunedError",
    "ReplayError",
    "RestoreWarning",
    "SchemaDriftError",
    "SchemaVersionError",
    "SealError",
    "SegmentCorruptError",
    "SegmentMissingError",
    "StorageConfigError",
    "StoreUnavailableError",
    "TicketConflictError",
    "UnknownTypeError",
    "UnloggedWriteError",
    "UpcastError",
    "VerificationError",
    "WrongKeyError",
]
