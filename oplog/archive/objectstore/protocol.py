"""What the archive asks of a place that keeps objects, and which paths it may use there.

A refusal of `create` proves nothing: a store may refuse a request whose first attempt succeeded
and whose answer was lost, or because of another client's write that never completes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from oplog.errors import ArchiveError, StorageConfigError

LONGEST_PATH = 512
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: its path below the archive's place, its size in bytes, and its age.

    `modified` is by the store's own clock, with a time zone, in places to the second only: good
    for grace periods, never for order.
    """

    path: str
    size: int
    modified: datetime


class CreateUnsupportedError(StorageConfigError):
    """The store answered that it cannot write an object on condition that it is absent."""


class ObjectStore(Protocol):
    """Bytes under paths, as every store can keep them. Safe to share between threads.

    Every method may raise `StoreUnavailableError` (no answer, or only refusals to serve, until
    the deadline: the work may have been done or not), `StorageConfigError` (no permission, no
    such bucket, wrong credentials or clock: a retry cannot help), and `ArchiveError` for a path
    that is none.
    """

    @property
    def url(self) -> str:
        """Where this is, for messages: never with credentials in it."""
        ...

    def get(self, path: str, *, most: int) -> bytes | None:
        """Return the whole object; None if it is not there.

        Raises `ObjectTooLargeError` for an object of more than `most` bytes, without having
        held more than that in memory.
        """
        ...

    def head(self, path: str) -> ObjectInfo | None:
        """Return size and age of an object; None if it is not there."""
        ...

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        """Write an object if there is none at `path`.

        True: this call created it. False: it was refused, which says nothing about what is
        there: an object of another client, one of this client (the answer to an earlier attempt
        was lost), or none. The caller has to look. With `once` there is one request and no
        other: `StoreUnavailableError` if it got no plain answer. Raises
        `CreateUnsupportedError` if the store says that it cannot do this.
        """
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever is there. Raises `ObjectConflictError` if that is locked."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object; no error if there is none."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below the folder `prefix` whose path is greater than `after`.

        `prefix` is "" or ends with "/". In no particular order, and what is written or deleted
        meanwhile may be missing or included: nothing may rest on it.
        """
        ...


def is_path(path: str) -> bool:
    """Whether objects may have this path."""
    return len(path) <= LONGEST_PATH and all(PART.fullmatch(part) for part in path.split("/"))


def check_path(path: str) -> str:
    """Return `path` if objects may have it; raise `ArchiveError` otherwise.

    By allow-list: letters, digits, `_`, `.` and `-` in parts joined by `/`, where none starts
    with a dot. So no path leaves the archive's place, whatever a damaged head says.
    """
    if is_path(path):
        return path
    raise ArchiveError(
        f"{path[:LONGEST_PATH]!r} is not the path of an object",
        hint="letters, digits, '_', '.' and '-', in parts joined by '/', not starting with '.'",
    )


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is a folder to be listed: "", or a path and "/"."""
    if prefix:
        if not prefix.endswith("/"):
            raise ArchiveError(f"{prefix[:LONGEST_PATH]!r} is not a folder", hint="end it with '/'")
        check_path(prefix[:-1])
    return prefix
