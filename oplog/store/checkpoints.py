"""Names in `oplog_checkpoint`: whose row is whose.

Consumers name their rows themselves, in the table where the log keeps rows of its own. Must not
know what a row holds. A name alone keeps them apart: a consumer's row under one of the log's
names is read as what the log keeps there, and stops publishing, adopting or following for good.
So the names are declared here, and refused here.
"""

from __future__ import annotations

from oplog.errors import ConfigurationError

ARCHIVE_PREFIX = "archive/"
"""Begins the name of the row that says what an archive has: then comes the archive's id."""
ADOPTING_PREFIX = "adopt/"
"""Begins the name of the row in which an adoption says how far it came: then comes the type."""
FOLLOWER_PREFIX = "follow/"
"""Begins the name of the row of a database that follows an archive: then comes its name."""
RESTORING = "restore"
"""The row that marks a log as being restored."""
RESTORED_PLACE = "restored"
"""The row in which a restore says how far it came."""

_PREFIXES = (ARCHIVE_PREFIX, ADOPTING_PREFIX, FOLLOWER_PREFIX)
_NAMES = (RESTORING, RESTORED_PLACE)


def check_consumer_name(name: str) -> None:
    """Raise `ConfigurationError` for a name that no consumer or follower can have."""
    if not name or "\x00" in name:
        raise ConfigurationError(
            f"{name!r} cannot name a consumer", hint="give a non-empty name without NUL"
        )
    if name in _NAMES or name.startswith(_PREFIXES):
        raise ConfigurationError(
            f"{name!r} cannot name a consumer: the log keeps a row of its own under that name",
            hint=f"give another name; {', '.join(_NAMES)} and names that begin with "
            f"{', '.join(_PREFIXES)} are the log's own",
        )
