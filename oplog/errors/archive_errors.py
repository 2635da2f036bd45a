"""Errors of archives, their stores, and the worker that publishes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oplog.errors.root_error import OplogError


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

    `position` and `sequence` are those of the first published record that is missing or differs,
    `archived_hash` is its hash in the archive, `stored_hash` the hash in the database at that
    position (None without a record). `lost` describes the lost records (the first ones, if there
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


class OlderArchiveError(HeadRolledBackError):
    """The archive lacks, or has other records than, what it was expected to hold at least."""


class SigningKeyMissingError(ArchiveError):
    """A head has to be signed, and the key that may sign it is not there."""

    exit_code = 12


class SignatureInvalidError(ManifestInvalidError):
    """A head was not signed by the key that it names."""


class HeadUnsignedError(ManifestInvalidError):
    """A head has no signature where one is needed."""


class UnknownPublisherError(ManifestInvalidError):
    """A head was signed by a key that nobody who is trusted vouches for."""


class RevokedPublisherError(UnknownPublisherError):
    """A head was signed by a key that was revoked, or that another one has replaced."""


class ForeignArchiveError(ArchiveError):
    """The archive is of another log than the one that is meant."""

    exit_code = 3


class SignedForkError(ArchiveError):
    """Two heads of one number, both signed by publishers that are trusted.

    `heads` are the bytes of both, which prove it to anybody.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", heads: tuple[bytes, bytes]) -> None:
        super().__init__(message, hint=hint)
        self.heads = heads
