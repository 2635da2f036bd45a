"""A server that is older than the one tests run on, where this machine has one."""

from __future__ import annotations

from pathlib import Path

from oplog.testing.binaries import DEBIAN, PROGRAMS

OLDER: Path | None = next(
    (
        directory
        for directory in sorted(DEBIAN.glob("1[4-7]/bin"))
        if all((directory / program).is_file() for program in PROGRAMS)
    ),
    None,
)
"""Its programs; Debian's, the oldest."""
NEWEST_AND_OLDER = ("newest", "older")
