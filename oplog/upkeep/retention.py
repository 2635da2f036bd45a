"""What an archive goes on holding: snapshots by number and age, and the log back to them.

This changes a head and deletes nothing. The newest snapshot always stays, and the log begins with
a segment, no later than after the oldest snapshot that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, SnapshotRef
from oplog.archive.format.index import drop_before
from oplog.errors import ConfigurationError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Retention:
    """Which snapshots are kept: the newest `keep_snapshots`, and those of the last `keep_days`.

    With both None all are. The newest one always is. Unless `keep_log`, the log from before the
    oldest kept snapshot is not kept either: times before that can then not be restored, and
    the log cannot be verified from its beginning. Raises `ConfigurationError` for numbers that
    are not positive.
    """

    keep_snapshots: int | None = None
    keep_days: float | None = None
    keep_log: bool = True

    def __post_init__(self) -> None:
        for name, value in (("keep_snapshots", self.keep_snapshots), ("keep_days", self.keep_days)):
            if value is not None and not value > 0:
                raise ConfigurationError(
                    f"{name}={value} cannot say what is kept",
                    hint="give a positive number, or None to leave this rule out",
                )

    def choose(
        self, snapshots: tuple[SnapshotRef, ...], *, now: datetime
    ) -> tuple[SnapshotRef, ...]:
        """Those of `snapshots`, oldest first, that are kept."""
        if self.keep_snapshots is None and self.keep_days is None:
            return snapshots
        newest = len(snapshots) - (self.keep_snapshots or 1)
        kept = []
        for place, one in enumerate(snapshots):
            age = now - (_EPOCH + timedelta(microseconds=one.recorded_at))
            young = self.keep_days is not None and age <= timedelta(days=self.keep_days)
            if place >= newest or young:
                kept.append(one)
        return tuple(kept)


def apply_retention(
    archive: Archive, head: Head, retention: Retention, *, now: datetime
) -> Head | None:
    """The head that holds no more than it should; None if that is the one there is."""
    kept = retention.choose(head.snapshots, now=now)
    first = head.first_sequence
    if not retention.keep_log and kept:
        first = _find_first(archive, head, kept[0].sequence + 1)
    if (kept, first) == (head.snapshots, head.first_sequence):
        return None
    return replace(
        head, snapshots=kept, first_sequence=first, levels=drop_before(head.levels, first)
    )


def _find_first(archive: Archive, head: Head, wanted: int) -> int:
    """Where the last segment begins that begins at or before `wanted`."""
    last = min(wanted, head.sequence)
    item = next(archive.iterate_items(head.levels, after=last - 1, through=last))
    return max(head.first_sequence, item.first)
