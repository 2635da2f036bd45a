"""What can be wrong with an archive, in a small vocabulary.

Each problem names its object, because a repair starts from the name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from oplog.errors import (
    ArchiveError,
    ObjectTooLargeError,
    SegmentCorruptError,
    SegmentMissingError,
    StorageConfigError,
    StoreUnavailableError,
)
from oplog.store.quarantined import QuarantinedRecord, list_quarantined_json

Heads: TypeAlias = tuple[bytes, bytes]
"""Two heads, as they are stored."""


class ProblemKind(StrEnum):
    """What is wrong with an object, or between objects."""

    MISSING = "missing"
    """It is not there."""
    CORRUPT = "corrupt"
    """Its bytes are not those that its name, or the head after it, says."""
    INVALID = "invalid"
    """Its bytes are those, and yet it is no such object, or not the one that is spoken of."""
    GAP = "gap"
    """Sequences are missing between two objects."""
    CHAIN = "chain"
    """Hashes do not continue those before it."""
    COUNT = "count"
    """It holds more or fewer than is claimed."""
    UNEXPECTED = "unexpected"
    """It is there, and nothing that works as it should leaves it there."""
    BEHIND = "behind"
    """The database, or the archive itself, knows of more than the archive holds."""
    DIVERGED = "diverged"
    """Archive and database hold different records."""
    SCHEMA = "schema"
    """Every byte is right, and a restore would refuse the rows, or lose some."""


@dataclass(frozen=True, slots=True)
class ArchiveProblem:
    """One thing that is wrong with the object `path`, which is empty for the database.

    `sequence` is the first that is affected, where one can be named. What is `harmless` costs
    time at most: nothing rests on it.
    """

    path: str
    what: ProblemKind
    message: str
    sequence: int | None = None
    harmless: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What a check found.

    `objects` were looked at, `bytes` of them read; `entries` are in the segments that were read.
    `head` is the number of the head that was checked, which holds everything up to `sequence`; 0
    for none. `quarantined` are the records that the owner has declared unreadable, as far as they
    and their marks were read. `forked` are the bytes of two signed heads that exclude each other:
    they prove to anybody that the publisher's key signed both.
    """

    problems: tuple[ArchiveProblem, ...]
    objects: int
    bytes: int
    entries: int
    sequence: int
    head: int
    generation: int = 0
    quarantined: tuple[QuarantinedRecord, ...] = ()
    forked: Heads | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong that does harm."""
        return all(problem.harmless for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "ok": self.ok,
            **asdict(self),
            "quarantined": list_quarantined_json(self.quarantined),
            "forked": None if self.forked is None else [head.hex() for head in self.forked],
        }


def describe_error(
    error: ArchiveError, path: str, *, sequence: int | None = None
) -> ArchiveProblem:
    """The problem that an error in reading `path` tells of.

    A store that does not answer, or refuses, says nothing of its objects: its error is raised.
    """
    if isinstance(error, StoreUnavailableError | StorageConfigError):
        raise error
    what = ProblemKind.INVALID
    if isinstance(error, SegmentMissingError):
        what = ProblemKind.MISSING
    elif isinstance(error, SegmentCorruptError | ObjectTooLargeError):
        what = ProblemKind.CORRUPT
    return ArchiveProblem(path, what, str(error.args[0]), sequence)
