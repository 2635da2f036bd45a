"""How an archive stands beside its log: what is published, and how far it is behind.

An archive that cannot be reached is an answer here, not an error: what is known of the database
is reported all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.errors import ArchiveError, ConfigurationError
from oplog.json_value import format_instant
from oplog.sync.lag import ArchiveLag, measure_lag


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """Status of the archive at `url`.

    `error` is why it could not be read, or None. `lag` is None on a standby, whose MVCC
    snapshots do not show which transactions are still running. `head` is None if nothing was
    published.
    """

    url: str
    error: ArchiveError | ConfigurationError | None
    lag: ArchiveLag | None
    head: Head | None

    def to_json(self) -> dict[str, Any]:
        """The status as one JSON object."""
        lag = self.lag
        return {
            "url": self.url,
            "error": None if self.error is None else _describe_error(self.error),
            "lag": lag and {"entries": lag.entries, "seconds": round(lag.lag_seconds, 3)},
            "published": None if self.head is None else _describe_head(self.head),
        }


def read_archive_status(
    connection: Connection, archive: Archive, *, schema: str, log_id: UUID, standby: bool
) -> ArchiveStatus:
    """Read the newest head of `archive`, and how far it is behind; errors are in the status."""
    try:
        head = _find_head(archive, log_id)
        lag = None if standby else measure_lag(connection, archive, schema=schema)
    except (ArchiveError, ConfigurationError) as error:
        return ArchiveStatus(archive.url, error, None, None)
    return ArchiveStatus(archive.url, None, lag, head)


def _find_head(archive: Archive, log_id: UUID) -> Head | None:
    head = archive.find_head()
    if head is not None and head.log_id != log_id:
        raise ConfigurationError(
            f"{archive.url} holds log {head.log_id}, and this database is {log_id}",
            hint="check --archive, or OPLOG_ARCHIVE_URL",
        )
    return head


def _describe_error(error: ArchiveError | ConfigurationError) -> dict[str, Any]:
    return {
        "name": type(error).__name__,
        "message": str(error).partition("\n")[0],
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def _describe_head(head: Head) -> dict[str, Any]:
    newest = head.snapshots[-1] if head.snapshots else None
    return {
        "log_id": str(head.log_id),
        "sequence": head.sequence,
        "first_sequence": head.first_sequence,
        "generation": head.generation,
        "position": head.position,
        "recorded_at": format_instant(head.recorded_at),
        "head": head.number,
        "epoch": head.epoch,
        "lost_branches": len(head.branches),
        "snapshots": len(head.snapshots),
        "snapshot": None
        if newest is None
        else {
            "sequence": newest.sequence,
            "position": newest.position,
            "recorded_at": format_instant(newest.recorded_at),
            "bytes": newest.size_bytes,
        },
    }
