"""Where a run keeps its temporary files: in memory, where that has room.

Most of a test's set-up is files: a database is 300 of them. On a disk with a backlog of writes
making one takes five times as long as in memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "TMPDIR"
MEMORY = Path("/dev/shm")
NEEDED_BYTES = 4 << 30
"""A run takes one or two; a container's default is 64 MB."""


def keep_in_memory(environment: MutableMapping[str, str]) -> Path:
    """Point this process and those it starts to memory, unless TMPDIR is set; where it is now."""
    if VARIABLE not in environment and _has_room(MEMORY):
        environment[VARIABLE] = str(MEMORY)
        tempfile.tempdir = None
    return Path(tempfile.gettempdir())


def _has_room(place: Path) -> bool:
    if not os.access(place, os.W_OK | os.X_OK):
        return False
    return shutil.disk_usage(place).free >= NEEDED_BYTES
