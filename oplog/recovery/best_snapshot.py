"""Picks what to fill a database from: the newest snapshot that can be read, or else the log alone.

A snapshot saves time. Where the log is whole, a snapshot that lacks an object must not cost the
restore: the next older one, or the log from its beginning, makes the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy.engine import Connection

from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import SnapshotRef
from oplog.crypto.seal import Sealer
from oplog.errors import (
    ArchiveError,
    ManifestInvalidError,
    ObjectTooLargeError,
    SegmentCorruptError,
    SegmentMissingError,
)
from oplog.snapshot.stored import StoredSnapshot

_T = TypeVar("_T")

_DAMAGE = (ManifestInvalidError, ObjectTooLargeError, SegmentCorruptError, SegmentMissingError)
"""Not a store that does not answer: it may have everything."""


@dataclass(frozen=True, slots=True)
class Made(Generic[_T]):
    """What came of the work, from the snapshot at `sequence` (0: from the log alone).

    `passed_over` says of each newer snapshot why it could not be used.
    """

    result: _T
    sequence: int
    passed_over: tuple[str, ...]


class _Reading:
    """Objects of one snapshot; remembers what was wrong with one."""

    def __init__(self, source: ArchivedLog) -> None:
        self._read = source.archive.read_content
        self.damage: ArchiveError | None = None

    def read(self, path: str) -> bytes:
        try:
            return self._read(path)
        except _DAMAGE as error:
            self.damage = error
            raise


def work_from_best(
    connection: Connection,
    source: ArchivedLog,
    work: Callable[[StoredSnapshot | None], _T],
    *,
    position: int | None,
    sealer: Sealer,
) -> Made[_T]:
    """Do `work` from the newest snapshot that shows nothing after `position` and is whole.

    In a transaction of the caller's each attempt is undone before the next. Raises what `work`
    raises, and the error of the newest snapshot where nothing older will do.
    """
    fitting = [s for s in source.head.snapshots if position is None or s.position <= position]
    passed: list[str] = []
    first: ArchiveError | None = None
    for ref in reversed(fitting):
        reading = _Reading(source)
        try:
            with ExitStack() as attempt:
                if connection.in_transaction():
                    attempt.enter_context(connection.begin_nested())
                result = work(_open(source, ref, reading, sealer=sealer))
            return Made(result, ref.sequence, tuple(passed))
        except _DAMAGE as error:
            if reading.damage is None:
                raise
            first = first or error
            passed.append(f"the snapshot at sequence {ref.sequence}: {error.args[0]}")
    if first is not None and not source.whole:
        raise first
    return Made(work(None), 0, tuple(passed))


def _open(
    source: ArchivedLog, ref: SnapshotRef, reading: _Reading, *, sealer: Sealer
) -> StoredSnapshot:
    types = source.archive.read_types(source.head)
    try:
        manifest = source.archive.read_manifest(ref)
    except _DAMAGE as error:
        reading.damage = error
        raise
    return StoredSnapshot(
        manifest,
        get=reading.read,
        sealer=sealer,
        key_checks=types.key_checks,
        types=types.shapes,
    )
