"""`SigningKeyring`: the publisher's keys, of which the current one signs heads.

Kept apart from the data keys: who publishes needs no data key, and who reads needs no signing
key. Keys that were replaced stay, because they sign the one that took their place.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from oplog.crypto.keyfile import (
    KEY_BYTES,
    SIGNING_KEYS,
    KeyRecord,
    KeyringText,
    format_keyring,
    parse_keyring,
    read_keyring_file,
    replace_keyring_file,
)
from oplog.crypto.secret import Secret
from oplog.crypto.signing import derive_public_key, sign_head, sign_successor
from oplog.errors import ConfigurationError

SIGNING_KEYRING = "OPLOG_SIGNING_KEYRING"
"""The variable with the signing keyring, or the path of its file."""


class SigningKeyring:
    """Ed25519 keys of a publisher by their public keys; the current one signs heads."""

    __slots__ = ("_path", "_text")

    def __init__(self, text: KeyringText, *, source: str, path: Path | None = None) -> None:
        """Use `generate`, `from_file` or `from_env`."""
        for publisher, record in text.keys.items():
            if derive_public_key(record.material) != publisher:
                raise ConfigurationError(
                    f"the signing keyring in {source} has a key under a name that is not its "
                    f"public key: {publisher:.80}",
                    hint="restore it from its backup; never edit it by hand",
                )
        self._text = text
        self._path = path

    @classmethod
    def generate(cls) -> SigningKeyring:
        """A keyring with one fresh key, in memory only: `save` it before it signs anything."""
        return cls(_add_key(None), source="generated")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, shared: bool = False) -> SigningKeyring:
        """Read the keyring file at `path`; `rotate` writes it back there.

        Raises `ConfigurationError` if the file is missing, unreadable or malformed, and if its
        mode lets others read or change it, unless `shared`.
        """
        file = Path(path)
        text = read_keyring_file(file, shared=shared, kind=SIGNING_KEYS)
        return cls(text, path=file, source=f"file {file}")

    @classmethod
    def from_env(cls, name: str = SIGNING_KEYRING) -> SigningKeyring | None:
        """The keyring whose text or file the environment variable `name` gives; None without."""
        # The text is in no local variable: error trackers print those.
        if not _read_variable(name):
            return None
        if not _read_variable(name).startswith("{"):
            return cls.from_file(_read_variable(name))
        source = f"environment variable {name}"
        text = parse_keyring(lambda: _read_variable(name), source, SIGNING_KEYS)
        return cls(text, source=source)

    @property
    def publisher(self) -> str:
        """The public key that readers pin: that of the key that signs."""
        return self._text.current

    @property
    def publishers(self) -> tuple[str, ...]:
        """The public keys of all keys, oldest first."""
        return tuple(self._text.keys)

    def sign_head(self, document: bytes) -> str:
        """The current key's signature of a head's document."""
        return sign_head(self._text.keys[self._text.current].material, document)

    def endorse(self, by: str) -> str:
        """The signature by which the key `by` says that the current one takes its place."""
        return sign_successor(self._text.keys[by].material, self._text.current)

    def rotate(self) -> str:
        """Add a fresh key, which signs from now on; its public key.

        In the keyring's file, if it has one, before it is used.
        """
        if self._path is None:
            self._text = _add_key(self._text)
        else:
            self._text = replace_keyring_file(self._path, _add_key, kind=SIGNING_KEYS)
        return self.publisher

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the keyring to a new file at `path` (mode 0600).

        Raises `ConfigurationError` if there is one: overwriting would lose its keys.
        """
        file = Path(path)

        def put_new(there: KeyringText | None) -> KeyringText:
            if there is not None:
                raise ConfigurationError(
                    f"there is a signing keyring at {file}",
                    hint=f"oplog publisher rotate --file {file} adds a key",
                )
            return self._text

        replace_keyring_file(file, put_new, kind=SIGNING_KEYS)
        self._path = file

    def to_text(self) -> str:
        """The keyring as one line of JSON, which `from_env` reads. It is secret."""
        return format_keyring(self._text, SIGNING_KEYS)

    def __repr__(self) -> str:
        return f"<SigningKeyring {', '.join(self.publishers)}>"

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "a SigningKeyring cannot be pickled or copied: its keys would leave the process",
            hint="build it in the other process, with SigningKeyring.from_file or from_env",
        )


def _read_variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _add_key(text: KeyringText | None) -> KeyringText:
    seed = Secret(secrets.token_bytes(KEY_BYTES))
    publisher = derive_public_key(seed)
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    known = {} if text is None else text.keys
    return KeyringText(publisher, {**known, publisher: KeyRecord(seed, created_at)})
