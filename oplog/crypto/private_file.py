"""Files of keys: who may read and write them, and how they are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from oplog.errors import ConfigurationError

_OTHERS = stat.S_IRWXO | stat.S_IWGRP
"""What a keyring's file must not allow: anything to others, and writing to a group."""
_FOREIGN_WRITERS = stat.S_IWOTH | stat.S_IWGRP
"""What a file that says whom to trust must not allow."""


def require_private(handle: int, path: Path) -> None:
    """Raise `ConfigurationError` for a file with keys that others have access to."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigurationError(
            f"the keyring file {path} has mode {mode:04o}: others have access to its keys",
            hint=f"chmod 600 {path} (640 for a group that may read it); where a mounted secret "
            "has no other mode, say Keyring.from_file(path, shared=True). If people who should "
            "not have the keys could read the file, rotate them",
        )


def require_unwritable(handle: int, path: Path) -> None:
    """Raise `ConfigurationError` for a file that others could change."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if os.name == "posix" and mode & _FOREIGN_WRITERS:
        raise ConfigurationError(
            f"the trust file {path} has mode {mode:04o}: others could add a key to it",
            hint=f"compare its keys with the publisher's (oplog publisher list), then "
            f"chmod 644 {path}",
        )


def replace_file(
    path: Path, make: Callable[[Path], bytes], *, what: str, mode: int = 0o600
) -> None:
    """Replace the file by what `make(the file that is there)` returns, atomically.

    The new file, `<name>.lock`, is created exclusively and then renamed over the old one. It
    also serves as the lock, so no other process can have changed the file in between. It has the
    old one's owner, or else `mode`. Raises `ConfigurationError` if that is impossible, and every
    exception of `make`.
    """
    target = Path(os.path.realpath(path))  # a rename over a symbolic link would replace the link
    lock = target.with_name(target.name + ".lock")
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as cause:
        raise ConfigurationError(
            f"{what} {path} is being changed by another process",
            hint=f"try again; if no other process is changing it, one died while it did: remove "
            f"{lock} (no key in it was ever used)",
        ) from cause
    except OSError as cause:
        raise _unwritable(path, cause, what) from cause
    renamed = False
    try:
        with os.fdopen(handle, "wb") as file:
            # In no variable: error trackers print those.
            file.write(make(target))
            _keep_owner(file.fileno(), target, mode)
            file.flush()
            os.fsync(file.fileno())
        lock.replace(target)
        renamed = True
        _sync_directory(target.parent)
    except OSError as cause:
        raise _unwritable(path, cause, what) from cause
    finally:
        if not renamed:
            lock.unlink(missing_ok=True)


def _keep_owner(handle: int, target: Path, mode: int) -> None:
    """Give the new file the old one's owner, so that a service can read what root changed.

    A group that could read the old one can read the new one; others only what `mode` lets them.
    """
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    if os.name != "posix":
        # Files have no such owners and modes.
        return
    new = os.fstat(handle)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, mode | (old.st_mode & stat.S_IRGRP))


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        # Directories are not opened.
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, cause: OSError, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} file {path} cannot be replaced: {cause.strerror}",
        hint="run this as the file's owner, with its directory writable; a keyring mounted "
        "read-only has to be changed at its source",
    )
