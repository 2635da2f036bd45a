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
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from oplog.crypto.private_file import replace_file, require_private
from oplog.crypto.secret import Secret
from oplog.errors import ConfigurationError

KEY_BYTES = 32
"""Length of a data key, in bytes."""
_MAX_BYTES = 1 << 20
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyringKind:
    """What a keyring's keys are for: its format, its noun, and how to make one.

    A file of one kind is refused where the other is wanted.
    """

    format: str
    noun: str
    make: str
    """A sentence with `{path}` in it."""


DATA_KEYS = KeyringKind(
    format="oplog-keyring/1",
    noun="keyring",
    make="make one once, and keep a copy of it: Keyring.generate().save({path!r})",
)
"""Keys that seal records."""
SIGNING_KEYS = KeyringKind(
    format="oplog-signing-keyring/1",
    noun="signing keyring",
    make="make one once, and keep a copy of it: oplog publisher generate --file {path}",
)
"""Seeds of the Ed25519 keys that sign heads, each under its public key."""


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


def format_keyring(text: KeyringText, kind: KeyringKind = DATA_KEYS) -> str:
    """The keyring as one line of JSON."""
    with _emptied_frames():
        return _format(text, kind)


@contextmanager
def _emptied_frames() -> Iterator[None]:
    """Empty the frames that an exception has passed through in the block."""
    try:
        yield
    except BaseException as cause:
        # Those that still run, which are this one and its callers', stay as they are.
        traceback.clear_frames(cause.__traceback__)
        raise


def _format(text: KeyringText, kind: KeyringKind) -> str:
    keys = {
        key_id: {
            "key": base64.urlsafe_b64encode(record.material).decode(),
            "created_at": record.created_at,
        }
        for key_id, record in text.keys.items()
    }
    document = {"format": kind.format, "current": text.current, "keys": keys}
    return json.dumps(document, separators=(",", ":"))


def parse_keyring(
    read: Callable[[], str], source: str, kind: KeyringKind = DATA_KEYS
) -> KeyringText:
    """Parse what `read` returns; `source` says in the error where it came from.

    Raises `ConfigurationError` if it is not exactly what `format_keyring` could have written.
    The text is read here, so that no caller's frame holds it when the error leaves.
    """
    try:
        # The text is in no variable here: this frame is not emptied.
        with _emptied_frames():
            return _parse(read(), kind)
    except _MalformedError as cause:
        problem = str(cause)
    except json.JSONDecodeError as cause:
        problem = f"not JSON, at line {cause.lineno} column {cause.colno}"
    except (ValueError, RecursionError):
        problem = "JSON that cannot be parsed"
    # Raised here and without a cause: the decoder's exception holds the whole text.
    raise ConfigurationError(
        f"the {kind.noun} in {source} is malformed: {problem}",
        hint="restore it from its backup; a new one has other keys and does not take its place",
    )


def read_keyring_file(
    path: Path, *, shared: bool = False, kind: KeyringKind = DATA_KEYS
) -> KeyringText:
    """Read the keyring file; `ConfigurationError` if it is missing, unreadable or malformed.

    Unless `shared`, also if others may read or change it, or its group may change it.
    """
    found = _read(path, shared=shared, kind=kind)
    if found is None:
        raise ConfigurationError(
            f"there is no {kind.noun} file at {path}", hint=kind.make.format(path=str(path))
        )
    return found


def replace_keyring_file(
    path: Path,
    change: Callable[[KeyringText | None], KeyringText],
    *,
    kind: KeyringKind = DATA_KEYS,
) -> KeyringText:
    """Replace the file by `change(its content, or None)` atomically; return the new content.

    Raises `ConfigurationError` if that is impossible, and every exception of `change`.
    """
    made: list[KeyringText] = []

    def make(target: Path) -> bytes:
        made.append(change(_read(target, shared=True, kind=kind)))
        return format_keyring(made[0], kind).encode() + b"\n"

    replace_file(path, make, what=f"the {kind.noun}")
    return made[0]


def _read(path: Path, *, shared: bool, kind: KeyringKind) -> KeyringText | None:
    source = f"file {path}"
    try:
        return parse_keyring(lambda: _read_text(path, source, shared=shared), source, kind)
    except FileNotFoundError:
        return None


def _read_text(path: Path, source: str, *, shared: bool) -> str:
    try:
        with path.open("rb") as file:
            if not shared:
                require_private(file.fileno(), path)
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


def _parse(text: str, kind: KeyringKind) -> KeyringText:
    document = json.loads(text, object_pairs_hook=_unique)
    top = _fields(document, "the keyring", ("format", "current", "keys"))
    if top["format"] != kind.format:
        raise _MalformedError(f"its format is not {kind.format!r}")
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
