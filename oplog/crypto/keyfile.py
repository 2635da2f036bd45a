"""Parses and formats keyrings, and replaces the keyring file atomically.

Error messages, exception chains and the local variables of their frames end up in logs, so no
error repeats any part of a malformed keyring except names, and a JSON error is never chained: it
holds the document. Frames that hold a document or a key as text are emptied before any exception
leaves them, also one that the document did not cause, such as Ctrl-C.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from oplog.crypto.secret import Secret
from oplog.errors import ConfigurationError

KEY_BYTES = 32
"""Length of a data key, in bytes."""
_FORMAT = "oplog-keyring/1"
_MAX_BYTES = 1 << 20
_OTHERS = stat.S_IRWXO | stat.S_IWGRP
"""What a keyring's file must not allow: anything to others, and writing to a group."""
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One data key; `created_at` is an ISO 8601 instant, for people only."""

    material: Secret = field(repr=False)
    created_at: str


@dataclass(frozen=True, slots=True)
class KeyringText:
    """The content of a keyring: the current id, and every key by id, oldest first."""

    current: str
    keys: Mapping[str, KeyRecord]


class _MalformedError(ValueError):
    """What is wrong with the document; its message repeats nothing of it except names."""


def format_keyring(text: KeyringText) -> str:
    """The keyring as one line of JSON."""
    with _emptied_frames():
        return _format(text)


@contextmanager
def _emptied_frames() -> Iterator[None]:
    """Empty the frames that an exception has passed through in the block."""
    try:
        yield
    except BaseException as cause:
        # Those that still run, which are this one and its callers', stay as they are.
        traceback.clear_frames(cause.__traceback__)
        raise


def _format(text: KeyringText) -> str:
    keys = {
        key_id: {
            "key": base64.urlsafe_b64encode(record.material).decode(),
            "created_at": record.created_at,
        }
        for key_id, record in text.keys.items()
    }
    document = {"format": _FORMAT, "current": text.current, "keys": keys}
    return json.dumps(document, separators=(",", ":"))


def parse_keyring(read: Callable[[], str], source: str) -> KeyringText:
    """Parse what `read` returns; `source` says in the error where it came from.

    Raises `ConfigurationError` if it is not exactly what `format_keyring` could have written.
    The text is read here, so that no caller's frame holds it when the error leaves.
    """
    try:
        # The text is in no variable here: this frame is not emptied.
        with _emptied_frames():
            return _parse(read())
    except _MalformedError as cause:
        problem = str(cause)
    except json.JSONDecodeError as cause:
        problem = f"not JSON, at line {cause.lineno} column {cause.colno}"
    except (ValueError, RecursionError):
        problem = "JSON that cannot be parsed"
    # Raised here and without a cause: the decoder's exception holds the whole text.
    raise ConfigurationError(
        f"the keyring in {source} is malformed: {problem}",
        hint="restore it from its backup; Keyring.generate().to_text() shows a well-formed one, "
        "but a new keyring cannot read what an old one sealed",
    )


def read_keyring_file(path: Path, *, shared: bool = False) -> KeyringText:
    """Read the keyring file; `ConfigurationError` if it is missing, unreadable or malformed.

    Unless `shared`, also if others may read or change it, or its group may change it.
    """
    found = _read(path, shared=shared)
    if found is None:
        raise ConfigurationError(
            f"there is no keyring file at {path}",
            hint=f"make one once, and keep a copy of it: Keyring.generate().save({str(path)!r})",
        )
    return found


def replace_keyring_file(
    path: Path, change: Callable[[KeyringText | None], KeyringText]
) -> KeyringText:
    """Replace the file by `change(its content, or None)` atomically; return the new content.

    The new file, `<name>.lock`, is created exclusively and then renamed over the old one. It
    also serves as the lock, so no other process can have changed the file in between. Raises
    `ConfigurationError` if that is impossible, and every exception of `change`.
    """
    target = Path(os.path.realpath(path))  # a rename over a symbolic link would replace the link
    lock = target.with_name(target.name + ".lock")
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as cause:
        raise ConfigurationError(
            f"the keyring {path} is being changed by another process",
            hint=f"try again; if no other process is changing it, one died while it did: remove "
            f"{lock} (the key in it was never used)",
        ) from cause
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    renamed = False
    try:
        with os.fdopen(handle, "wb") as file:
            text = change(_read(target, shared=True))
            _keep_owner(file.fileno(), target)
            file.write(format_keyring(text).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        lock.replace(target)
        renamed = True
        _sync_directory(target.parent)
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    finally:
        if not renamed:
            lock.unlink(missing_ok=True)
    return text


def _read(path: Path, *, shared: bool) -> KeyringText | None:
    source = f"file {path}"
    try:
        return parse_keyring(lambda: _read_text(path, source, shared=shared), source)
    except FileNotFoundError:
        return None


def _read_text(path: Path, source: str, *, shared: bool) -> str:
    try:
        with path.open("rb") as file:
            if not shared:
                _require_private(file.fileno(), path)
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise ConfigurationError(
            f"the keyring file {path} cannot be read: {cause.strerror}",
            hint="make it a file that the application's user owns and may read (mode 0600)",
        ) from cause
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(
            f"the keyring in {source} is malformed: it is over {_MAX_BYTES} bytes",
            hint="check that this is the right file; a keyring has about 120 bytes for each key",
        )
    return data.decode("utf-8", errors="replace")


def _require_private(handle: int, path: Path) -> None:
    """Raise `ConfigurationError` for a file that others have access to."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigurationError(
            f"the keyring file {path} has mode {mode:04o}: others have access to its keys",
            hint=f"chmod 600 {path} (640 for a group that may read it); where a mounted secret "
            "has no other mode, say Keyring.from_file(path, shared=True). If people who should "
            "not have the keys could read the file, rotate them",
        )


def _keep_owner(handle: int, target: Path) -> None:
    """Give the new file the old one's owner, so that a service can read what root rotated.

    A group that could read the old one can read the new one; others cannot.
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
    os.fchmod(handle, stat.S_IRUSR | stat.S_IWUSR | (old.st_mode & stat.S_IRGRP))


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        # Directories are not opened.
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, cause: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the keyring file {path} cannot be replaced: {cause.strerror}",
        hint="run this as the file's owner, with its directory writable; a keyring mounted "
        "read-only has to be changed at its source",
    )


def _parse(text: str) -> KeyringText:
    document = json.loads(text, object_pairs_hook=_unique)
    top = _fields(document, "the keyring", ("format", "current", "keys"))
    if top["format"] != _FORMAT:
        raise _MalformedError(f"its format is not {_FORMAT!r}")
    if not isinstance(top["keys"], dict) or not top["keys"]:
        raise _MalformedError('"keys" is not an object with at least one key in it')
    keys: dict[str, KeyRecord] = {}
    for key_id, record in top["keys"].items():
        if not _KEY_ID.fullmatch(key_id):
            raise _MalformedError(
                f"key number {len(keys) + 1} has an id that is not {_KEY_ID.pattern}"
            )
        keys[key_id] = _parse_record(record, key_id)
    if not isinstance(top["current"], str) or top["current"] not in keys:
        raise _MalformedError('"current" is not the id of one of its keys')
    return KeyringText(top["current"], keys)


def _parse_record(record: object, key_id: str) -> KeyRecord:
    values = _fields(record, f"key {key_id!r}", ("key", "created_at"))
    if not isinstance(values["key"], str) or not isinstance(values["created_at"], str):
        raise _MalformedError(f"a field of key {key_id!r} is not a string")
    try:
        datetime.fromisoformat(values["created_at"])
    except ValueError as cause:
        raise _MalformedError(f'"created_at" of key {key_id!r} is not an ISO 8601 time') from cause
    try:
        # Without validation the decoder skips unknown characters: a damaged key would pass.
        material = base64.b64decode(values["key"].encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as cause:
        raise _MalformedError(f"key {key_id!r} is not base64url") from cause
    if len(material) != KEY_BYTES:
        raise _MalformedError(f"key {key_id!r} has {len(material)} bytes, not {KEY_BYTES}")
    if base64.urlsafe_b64encode(material).decode() != values["key"]:
        raise _MalformedError(f"key {key_id!r} is not canonical base64url")
    return KeyRecord(Secret(material), values["created_at"])


def _fields(value: object, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    # A field that this version does not know would be lost when the file is written back.
    if not isinstance(value, dict) or set(value) != set(names):
        raise _MalformedError(f"{what} is not an object with exactly {', '.join(names)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _MalformedError("an object names one field twice")
    return result
