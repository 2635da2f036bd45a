"""Errors of entries that cannot be built or read, and of logs that do not replay."""

from __future__ import annotations

from oplog.errors.root_error import OplogError


class EntryError(OplogError):
    """An entry that cannot be built, stored or read."""


class InvalidMetadataError(EntryError):
    """Metadata that cannot be stored: NUL, lone surrogate, empty or over-long key or value."""


class MissingMetadataError(EntryError):
    """A transaction lacks metadata that its log requires; nothing was written."""


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
