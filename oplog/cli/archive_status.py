"""How the archive stands, as part of a status.

Must not raise for an archive that is out of reach: what is known of the database is told all the
same, and the failure with it. The hard thing is that a lag is an answer and an alarm at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.cli.exit_code import LAGGING
from oplog.cli.presentation import escape, show_count, show_instant, show_size
from oplog.errors import ArchiveError, ConfigurationError
from oplog.facade import Oplog


def read_standing(
    log: Oplog, engine: Engine, archive: Archive, *, log_id: str, standby: bool
) -> dict[str, Any]:
    """What `archive` holds, and how far it is behind; or why that cannot be told.

    A standby cannot say how far: its snapshots do not show who is still writing.
    """
    found: dict[str, Any] = {"url": archive.url, "error": None, "lag": None, "published": None}
    try:
        head = _find_head(archive, log_id)
        lag = None if standby else log.measure_lag(engine, archive)
    except (ArchiveError, ConfigurationError) as error:
        message = str(error).partition("\n")[0]
        code = error.exit_code
        told = {"name": type(error).__name__, "message": message, "hint": error.hint}
        return found | {"error": told | {"exit_code": code}}
    return found | {
        "lag": lag and {"entries": lag.entries, "seconds": round(lag.lag_seconds, 3)},
        "published": None if head is None else _describe(head),
    }


def _find_head(archive: Archive, log_id: str) -> Head | None:
    head = archive.find_head()
    if head is not None and str(head.log_id) != log_id:
        raise ConfigurationError(
            f"{archive.url} holds log {head.log_id}, and this database is {log_id}",
            hint="check --archive, or OPLOG_ARCHIVE_URL",
        )
    return head


def _describe(head: Head) -> dict[str, Any]:
    newest = head.snapshots[-1] if head.snapshots else None
    return {
        "log_id": str(head.log_id),
        "sequence": head.sequence,
        "first_sequence": head.first_sequence,
        "generation": head.generation,
        "position": head.position,
        "recorded_at": show_instant(head.recorded_at),
        "head": head.number,
        "epoch": head.epoch,
        "lost_branches": len(head.branches),
        "snapshots": len(head.snapshots),
        "snapshot": None
        if newest is None
        else {
            "sequence": newest.sequence,
            "position": newest.position,
            "recorded_at": show_instant(newest.recorded_at),
            "bytes": newest.size_bytes,
        },
    }


def judge_standing(standing: Mapping[str, Any], *, most_seconds: float | None) -> int:
    """The exit code: why it cannot be told, or `LAGGING` beyond `most_seconds`."""
    if standing["error"] is not None:
        return int(standing["error"]["exit_code"])
    if most_seconds is None:
        return 0
    if standing["lag"] is None:
        raise ConfigurationError(
            "a standby cannot tell how far the archive is behind",
            hint="ask the primary, or leave --max-lag out",
        )
    return LAGGING if standing["lag"]["seconds"] > most_seconds else 0


def show_standing(standing: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"archive:     {escape(standing['url'])}"
    if standing["error"] is not None:
        yield "  not to be told, see the warnings"
        return
    published, lag = standing["published"], standing["lag"]
    if published is None:
        yield "  nothing published yet"
    else:
        yield (
            f"  sequence {published['sequence']} of generation {published['generation']}, "
            f"position {published['position']}"
        )
        yield f"  last entry {published['recorded_at'] or 'none'}"
        newest = published["snapshot"]
        yield (
            "  no snapshot yet"
            if newest is None
            else f"  newest snapshot at sequence {newest['sequence']}, {newest['recorded_at']}, "
            f"{show_size(newest['bytes'])}"
        )
    if lag is None:
        return
    entries = show_count(lag["entries"], "entry", many="entries")
    yield (
        f"  behind by {entries}, for {lag['seconds']:.1f} s"
        if lag["entries"]
        else "  everything is published"
    )
