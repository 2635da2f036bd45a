"""`Keyring`: named data keys, of which one is current, loaded from a file or the environment.

Without its key an entry cannot be read. A new key is therefore on disk before anything is sealed
with it, and of two processes that rotate at once neither loses the other's key. No error
message, `repr` or pickle contains key material.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from oplog.crypto.keyfile import (
    KEY_BYTES,
    KeyRecord,
    KeyringText,
    format_keyring,
    parse_keyring,
    read_keyring_file,
    replace_keyring_file,
)
from oplog.crypto.secret import Secret
from oplog.errors import ConfigurationError, KeyUnavailableError

_CHECK_LABEL = b"oplog/v1/key-check\0"
_MAKE_ONE = "python -c 'from oplog import Keyring; print(Keyring.generate().to_text())'"


@dataclass(frozen=True, slots=True)
class _Keys:
    """One immutable state of a keyring; replaced as a whole, so readers need no lock."""

    text: KeyringText
    check_values: Mapping[str, bytes]

    @classmethod
    def of(cls, text: KeyringText) -> _Keys:
        checks = {key_id: _check_value(key_id, record) for key_id, record in text.keys.items()}
        return cls(text, MappingProxyType(checks))


class Keyring:
    """Named 32-byte data keys, one of which is current: new entries are sealed with it.

    Older keys stay, because older entries need them. Safe to share between threads. Key
    material leaves the object through `to_text`, `save` and `data_key` only.
    """

    __slots__ = ("_keys", "_lock", "_path", "_shared", "_source")

    def __init__(
        self,
        text: KeyringText,
        *,
        path: Path | None = None,
        source: str,
        shared: bool = False,
    ) -> None:
        """Use `generate`, `from_file` or `from_env`."""
        # Replaced as a whole and never changed, so `data_key` needs no lock.
        self._keys = _Keys.of(text)
        self._path = path
        self._shared = shared
        self._source = source
        self._lock = threading.Lock()

    @classmethod
    def generate(cls) -> Keyring:
        """Return a keyring with one fresh key, in memory only.

        `save` it, or store its `to_text`, before anything is sealed with it.
        """
        key_id, record = _make_key(())
        return cls(KeyringText(key_id, {key_id: record}), source="generated")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, shared: bool = False) -> Keyring:
        """Read the keyring file at `path`; `rotate` writes it back there.

        Raises `ConfigurationError` if the file is missing, unreadable or malformed, and if its
        mode lets others read or change it, or its group change it. `shared` accepts any mode,
        as that of a secret which an orchestrator mounts.
        """
        file = Path(path)
        text = read_keyring_file(file, shared=shared)
        return cls(text, path=file, source=f"file {file}", shared=shared)

    @classmethod
    def from_env(cls, name: str = "OPLOG_KEYRING") -> Keyring:
        """Read the keyring whose text (see `to_text`) is in the environment variable `name`.

        The variable may hold the path of the keyring's file instead: then it is `from_file`.
        Raises `ConfigurationError` if the variable is unset, empty or malformed, and what
        `from_file` raises.
        """
        source = f"environment variable {name}"
        # The text is in no local variable: error trackers print those.
        if not _read_variable(name):
            raise ConfigurationError(
                f"environment variable {name} holds no keyring",
                hint=f"make one once, keep a copy (without it the log cannot be read), and "
                f'set it for every process of the application: export {name}="$({_MAKE_ONE})"',
            )
        if not _read_variable(name).startswith("{"):
            if Path(_read_variable(name)).is_file():
                return cls.from_file(_read_variable(name))
            raise ConfigurationError(
                f"environment variable {name} does not hold a keyring: {_describe_variable(name)}",
                hint="set it to the text of a keyring, which begins with '{', or to the path of "
                "its file, which Keyring.from_file(path) reads too; never to a bare key",
            )
        if '"' not in _read_variable(name):
            raise ConfigurationError(
                f"environment variable {name} holds a keyring without its quotation marks: "
                f"{_describe_variable(name)}",
                hint=f"a shell has taken them away: export {name}='...' in single quotes, or set "
                "it to the path of the keyring's file",
            )
        return cls(parse_keyring(lambda: _read_variable(name), source), source=source)

    @property
    def current_key_id(self) -> str:
        """The id of the key that new entries are sealed with."""
        return self._keys.text.current

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, oldest first."""
        return tuple(self._keys.text.keys)

    def rotate(self) -> str:
        """Add a fresh key, make it current, return its id. Older keys stay readable.

        A keyring that belongs to a file is read again and written back first, so that the key
        is on disk before it is used. A keyring from the environment, or one that was never
        saved, changes in memory only: store `to_text()` before anything else is sealed.
        Raises `ConfigurationError` if the file cannot be replaced; the old key stays in use.
        """
        with self._lock:
            if self._path is None:
                self._keys = _Keys.of(_add_key(self._keys.text))
                return self._keys.text.current

            def add_to(on_disk: KeyringText | None) -> KeyringText:
                if on_disk is None:
                    raise ConfigurationError(
                        f"the keyring file {self._path} is gone; no key was added",
                        hint="restore it from its backup, or save() this keyring there again",
                    )
                self._refuse_replaced_keys(on_disk)
                return _add_key(on_disk)

            self._keys = _Keys.of(replace_keyring_file(self._path, add_to))
            return self._keys.text.current

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the keyring to `path` (mode 0600); `rotate` writes there from now on.

        Raises `ConfigurationError`, leaving the file as it was, if it cannot be written or
        already holds a key that this keyring lacks: overwriting would lose that key.
        """
        file = Path(path)

        def put_over(on_disk: KeyringText | None) -> KeyringText:
            if on_disk is not None:
                self._refuse_replaced_keys(on_disk)
                lost = [key_id for key_id in on_disk.keys if key_id not in self._keys.text.keys]
                if lost:
                    raise ConfigurationError(
                        f"{file} holds keys that this keyring lacks: {', '.join(lost)}",
                        hint="entries sealed with them could never be read again; save to "
                        "another path, or use Keyring.from_file and rotate()",
                    )
            return self._keys.text

        with self._lock:
            replace_keyring_file(file, put_over)
            self._path, self._source = file, f"file {file}"

    def reload(self) -> None:
        """Read the file again, for keys that another process added; no-op without a file.

        Called automatically for an unknown key id. Raises `ConfigurationError` if the file is
        missing or malformed, or has another key under an id that this keyring has.
        """
        with self._lock:
            if self._path is not None:
                on_disk = read_keyring_file(self._path, shared=self._shared)
                self._refuse_replaced_keys(on_disk)
                self._keys = _Keys.of(on_disk)

    def renew(self, retired: str) -> str:
        """Read the file again, because the log has retired the key `retired`; what to do now.

        Called automatically when the log refuses a record for that. Never raises: what keeps the
        file from being read is in the answer.
        """
        problem = ""
        if self.current_key_id == retired:
            try:
                self.reload()
            except ConfigurationError as cause:
                problem = f" (now: {Exception.__str__(cause)})"
        if self.current_key_id != retired:
            return (
                f"run the whole transaction again: it is sealed with {self.current_key_id!r} then; "
                "log.run(sessionmaker, work) does that"
            )
        if self._path is None:
            return (
                "start this process again with a keyring that has a newer current key: this one "
                f"({self._source}) is not read again"
            )
        return (
            f"put a keyring with a newer current key at {self._path}, and run the whole "
            f"transaction again: the file is read at each refusal{problem}"
        )

    def to_text(self) -> str:
        """Return the keyring as one line of JSON, which `from_env` reads. It is secret."""
        return format_keyring(self._keys.text)

    def check_value(self, key_id: str) -> bytes:
        """Return 32 bytes that identify the key under `key_id` without exposing it.

        They are stored in the log, to tell a wrong key from damaged data. Raises
        `KeyUnavailableError` if there is no such key.
        """
        return self._find(key_id).check_values[key_id]

    def data_key(self, key_id: str) -> Secret:
        """Return the 32 secret bytes under `key_id`, for sealing; never log or store them.

        Raises `KeyUnavailableError` if there is no such key.
        """
        return self._find(key_id).text.keys[key_id].material

    def _find(self, key_id: str) -> _Keys:
        keys = self._keys
        if key_id in keys.text.keys:
            return keys
        # Another process may have rotated the shared file since it was read here.
        problem = ""
        try:
            self.reload()
        except ConfigurationError as cause:
            problem = f"; reading it again failed: {Exception.__str__(cause)}"
        keys = self._keys
        if key_id in keys.text.keys:
            return keys
        raise KeyUnavailableError(
            f"no key {key_id!r:.80} in the keyring ({self._source}){problem}",
            hint=f"it holds: {', '.join(keys.text.keys)}; add the missing key from the "
            "keyring that wrote the entry, or from its backup",
        )

    def _refuse_replaced_keys(self, on_disk: KeyringText) -> None:
        for key_id, record in self._keys.text.keys.items():
            other = on_disk.keys.get(key_id)
            if other is not None and not hmac.compare_digest(other.material, record.material):
                raise ConfigurationError(
                    f"the file has another key under the id {key_id!r} than this keyring",
                    hint="find out which of the two keys sealed the entries, and keep that one; "
                    "never edit key ids by hand",
                )

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.key_ids)}; current {self.current_key_id}>"

    def __reduce__(self) -> NoReturn:
        # Pickles end up in task queues, caches and crash reports, and the keys with them.
        raise ConfigurationError(
            "a Keyring cannot be pickled or copied: its keys would leave the process unnoticed",
            hint="build it in the other process, with Keyring.from_file or Keyring.from_env",
        )


def _read_variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _describe_variable(name: str) -> str:
    """What arrived, with nothing in it that may be of a key."""
    first = _read_variable(name)[0]
    shown = "a letter or digit" if first.isalnum() else repr(first)
    return f"it has {len(_read_variable(name))} characters, begins with {shown}, and is no file"


def _check_value(key_id: str, record: KeyRecord) -> bytes:
    # This HMAC is the first block of HKDF-Expand with SHA-512: the key cannot be recovered.
    return hmac.digest(record.material, _CHECK_LABEL + key_id.encode() + b"\x01", "sha512")[:32]


def _make_key(taken: tuple[str, ...]) -> tuple[str, KeyRecord]:
    now = datetime.now(UTC)
    while True:
        # Random, not counted: two copies of a keyring that rotate independently must not give
        # the same id to different keys.
        key_id = f"{now:%Y%m%d}-{secrets.token_hex(4)}"
        if key_id not in taken:
            created_at = now.isoformat(timespec="seconds").replace("+00:00", "Z")
            return key_id, KeyRecord(Secret(secrets.token_bytes(KEY_BYTES)), created_at)


def _add_key(text: KeyringText) -> KeyringText:
    key_id, record = _make_key(tuple(text.keys))
    return KeyringText(key_id, {**text.keys, key_id: record})
