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

    `hint` says what to do; `retryable` whether re-running the work may help; `exit_code` is the
    command line's (1 failed, 2 usage, 3 differences or corruption, 10 schema version, 11 lease,
    12 key, 13 store).
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
    """A type name or a mapped class that the catalog does not know."""

    exit_code = 1


class NotCapturableError(ConfigurationError):
    """A table, column or statement whose effect cannot be recorded exactly; it was refused."""

    exit_code = 1


class UnloggedWriteError(ConfigurationError):
    """Tracked rows changed without an entry."""

    exit_code = 1


class SchemaVersionError(ConfigurationError):
    """The log's tables are missing, or older or newer than this library expects."""

    exit_code = 10


class ForeignServerError(ConfigurationError):
    """This database is not the one that its log, or an archive, was written from."""


class PrunedError(ConfigurationError):
    """What is asked for was pruned from the database, and is in an archive only."""


# -- conflicts --------------------------------------------------------------------------


class ConflictError(OplogError):
    """Somebody else was there first."""


class TicketConflictError(ConflictError):
    """The aggregate changed after its ticket was taken; nothing was written.

    `aggregates` are all that the transaction was about to write, where they are known.
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

    `receipts` are those of the one transaction that the key stands for, where they are known.
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
    """The outcome of a COMMIT is not what the application was about to believe."""


class CommitOutcomeUnknownError(CommitError):
    """The answer to COMMIT was lost; the transaction may or may not have happened.

    `receipts` are those of its entries, to be given to `Oplog.resolve`; version and hash are
    in them as far as they were known. `idempotency_key` is the transaction's, if it had one.
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
    """Somebody wants the whole program, or task, to end: nothing is to be tried again."""

    @property
    def receipt(self) -> Receipt | None:
        """The first receipt: one is enough to ask for the outcome of all."""
        return self.receipts[0] if self.receipts else None


class CommitCancelledError(CommitOutcomeUnknownError, CancelledError):
    """A task was cancelled while COMMIT was under way: still a cancellation for asyncio."""

    interrupted = True


class CommitInterruptedError(CommitOutcomeUnknownError, KeyboardInterrupt):
    """Somebody pressed Ctrl-C while COMMIT was under way."""

    interrupted = True


class CommitWouldRollBackError(CommitError):
    """A failed statement was swallowed: COMMIT would silently have rolled everything back."""


# -- entries ----------------------------------------------------------------------------


class EntryError(OplogError):
    """An entry that cannot be built, stored or read."""


class InvalidMetadataError(EntryError):
    """Metadata that cannot be stored: NUL, lone surrogate, empty or over-long key or value."""


class EntryTooLargeError(EntryError):
    """The entry is over the size limit; split the transaction."""


class DecodeError(EntryError):
    """Stored bytes that are not what this library writes."""

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
    """The log could not be turned back into tables: it contradicts itself."""

    exit_code = 3


class SchemaDriftError(ReplayError):
    """The live tables no longer have the shape that the log describes."""

    exit_code = 1


class VerificationError(ReplayError):
    """Live tables and log differ."""

    exit_code = 3


class CaptureMismatchError(ReplayError):
    """What was about to be logged is not what the database stored (strict mode, guards)."""

    exit_code = 3


# -- archive ----------------------------------------------------------------------------


class ArchiveError(OplogError):
    """Something is wrong with the archive in the object store."""


class StoreUnavailableError(ArchiveError):
    """The object store did not answer in time."""

    retryable = True
    exit_code = 13


class StorageConfigError(ArchiveError):
    """The object store refuses: no permission, no bucket, wrong credentials, a wrong clock."""

    exit_code = 13


class ObjectTooLargeError(ArchiveError):
    """A stored object is larger than anything that is ever written under its name."""

    exit_code = 3


class ManifestInvalidError(ArchiveError):
    """A head or a snapshot manifest contradicts itself or what it names."""

    exit_code = 3


class SegmentCorruptError(ArchiveError):
    """A segment's bytes do not match its name."""

    exit_code = 3


class SegmentMissingError(ArchiveError):
    """An object that a head refers to is not there."""

    exit_code = 3


class LeaseLostError(ArchiveError):
    """Another worker has taken over."""

    exit_code = 11


class LeaseHeldError(LeaseLostError):
    """Another worker is publishing right now; nothing is wrong."""


class ArchiveLagError(ArchiveError):
    """Committed entries are not in the archive in the time that was given."""

    retryable = True
    exit_code = 4


class LogForkedError(ArchiveError):
    """The database no longer holds commits that were already published.

    `position` and `sequence` are the first published entry that is missing or another one,
    `archived_hash` its hash in the archive, `stored_hash` the one that the database has at that
    position (None if it has none). `lost` describes the entries (the first ones, if they are
    many), `lost_count` counts them all. `common_sequence` is the last that both have.
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
    """An object with this name exists and holds other bytes."""

    exit_code = 3


class HeadRolledBackError(ArchiveError):
    """The newest head is older than one already seen."""

    exit_code = 3


class _Advice(UserWarning):
    def __init__(self, message: str) -> None:
        super().__init__(message)


class DurabilityNotConfirmedWarning(_Advice):
    """A COMMIT happened, and a wait for its standby was cut short: a failover may lose it."""


class RestoreWarning(_Advice):
    """Rows are logged that a restore from the log will refuse."""


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
