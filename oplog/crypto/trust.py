"""`Trust`: whose heads a reader believes. Its file holds no secret; only its owner may write it.

Publishers are pinned by their public keys, each for any log or for one. A key that was revoked is
not believed, even if another key vouches for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

from oplog.crypto.private_file import replace_file, require_unwritable
from oplog.crypto.signing import is_public_key
from oplog.errors import ConfigurationError

TRUST = "OPLOG_TRUST"
"""The variable with the path of the trust file."""
_FORMAT = "oplog-trust/1"
_MAX_BYTES = 1 << 20
_MEMBERS = {"format", "publishers", "revoked"}


@dataclass(frozen=True, slots=True)
class Trust:
    """Pinned `publishers`, each with the log that it may publish (None: any); `revoked` ones."""

    publishers: Mapping[str, UUID | None] = field(default_factory=lambda: MappingProxyType({}))
    revoked: frozenset[str] = frozenset()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Trust:
        """Read the trust file at `path`.

        Raises `ConfigurationError` if it is missing, unreadable or malformed, and if others than
        its owner may write it.
        """
        found = _read(Path(path))
        if found is None:
            raise ConfigurationError(
                f"there is no trust file at {path}",
                hint=f"pin the publisher's key: oplog trust add KEY --file {path}",
            )
        return found

    @classmethod
    def from_env(cls, name: str = TRUST) -> Trust | None:
        """The trust file whose path is in the environment variable `name`; None without."""
        value = os.environ.get(name, "").strip()
        return cls.from_file(value) if value else None

    def add(self, publisher: str, *, log: UUID | None = None) -> Trust:
        """With one more pinned publisher, of one log or of any."""
        _require_key(publisher)
        if publisher in self.revoked:
            raise ConfigurationError(
                f"the key {publisher} was revoked here",
                hint="pin the publisher's new key; one that was ever revoked is not used again",
            )
        return Trust({**self.publishers, publisher: log}, self.revoked)

    def remove(self, publisher: str) -> Trust:
        """Without a pinned publisher. `ConfigurationError` if it is not pinned."""
        if publisher not in self.publishers:
            raise ConfigurationError(
                f"the key {publisher:.80} is not pinned",
                hint="oplog trust list shows those that are",
            )
        rest = {key: log for key, log in self.publishers.items() if key != publisher}
        return Trust(rest, self.revoked)

    def revoke(self, publisher: str) -> Trust:
        """With a key that is never believed again, nor those that only it vouches for."""
        _require_key(publisher)
        rest = {key: log for key, log in self.publishers.items() if key != publisher}
        return Trust(rest, self.revoked | {publisher})

    def to_text(self) -> str:
        """The content of a trust file."""
        document = {
            "format": _FORMAT,
            "publishers": {
                key: None if log is None else str(log) for key, log in self.publishers.items()
            },
            "revoked": sorted(self.revoked),
        }
        return json.dumps(document, indent=1) + "\n"


def change_trust_file(path: Path, change: Callable[[Trust], Trust]) -> Trust:
    """Replace the file by `change(what it says)`, atomically; what it says then."""
    made: list[Trust] = []

    def make(target: Path) -> bytes:
        made.append(change(_read(target) or Trust()))
        return made[0].to_text().encode()

    replace_file(path, make, what="the trust", mode=0o644)
    return made[0]


def _read(path: Path) -> Trust | None:
    try:
        with path.open("rb") as file:
            require_unwritable(file.fileno(), path)
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise ConfigurationError(
            f"the trust file {path} cannot be read: {cause.strerror}",
            hint="make it a file that may be read",
        ) from cause
    try:
        return _parse(json.loads(data.decode()))
    except (ValueError, RecursionError, TypeError, AttributeError) as cause:
        raise ConfigurationError(
            f"the trust file {path} is malformed: {cause}",
            hint="make it again from keys that the publisher gave you: oplog trust add KEY",
        ) from cause


def _parse(document: Any) -> Trust:
    if not isinstance(document, dict) or set(document) != _MEMBERS:
        raise ValueError(f"it is not an object with exactly {', '.join(sorted(_MEMBERS))}")
    if document["format"] != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    publishers = {
        key: None if log is None else UUID(log) for key, log in document["publishers"].items()
    }
    revoked = frozenset(document["revoked"])
    for key in (*publishers, *revoked):
        if not is_public_key(key):
            raise ValueError(f"{key!r:.80} is not a public key")
    if revoked & set(publishers):
        raise ValueError("a key is pinned and revoked at once")
    return Trust(publishers, revoked)


def _require_key(publisher: str) -> None:
    if not is_public_key(publisher):
        raise ConfigurationError(
            f"{publisher!r:.80} is not a publisher's key, which has 64 hexadecimal digits",
            hint="oplog publisher list, where the archive is published, shows it",
        )
