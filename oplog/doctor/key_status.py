"""Keys of a log by age: which the application's keyring has, and which may still seal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from oplog.crypto.keyring import Keyring
from oplog.finding import Finding, make_notice, make_problem
from oplog.json_value import format_time
from oplog.store.logged_keys import LoggedKey, list_logged_keys

KEY_DAYS = 365
"""Age in days from which a key that seals is reported, unless another one is given."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key id of the log, and whether the application's keyring has the key.

    `state`: `current` seals new entries, `held` opens older ones, `missing` is not in the
    keyring, `different` is another key of the same name. `age_days` counts from `registered_at`.
    The database refuses new records under a key with `retired_at`.
    """

    key_id: str
    state: str
    registered_at: datetime
    retired_at: datetime | None
    age_days: int

    def to_json(self) -> dict[str, Any]:
        """The key as one JSON object."""
        return {
            "key_id": self.key_id,
            "state": self.state,
            "registered_at": format_time(self.registered_at),
            "retired_at": format_time(self.retired_at),
            "age_days": self.age_days,
        }


@dataclass(frozen=True, slots=True)
class KeysReport:
    """The keys of a log, oldest first."""

    keys: Sequence[KeyStatus]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"keys": [key.to_json() for key in self.keys]}


@dataclass(frozen=True, slots=True)
class KeyRetirementReport:
    """A retired key, and since when the database refuses what is sealed with it."""

    key_id: str
    retired_at: datetime

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"key_id": self.key_id, "retired_at": format_time(self.retired_at)}


def read_keys(connection: Connection, schema: str, *, keyring: Keyring | None) -> list[KeyStatus]:
    """The keys that the log in `schema` knows, oldest first."""
    return [
        KeyStatus(
            key.key_id,
            _compare(keyring, key),
            registered_at=key.registered_at,
            retired_at=key.retired_at,
            age_days=key.age.days,
        )
        for key in list_logged_keys(connection, schema)
    ]


def _compare(keyring: Keyring | None, key: LoggedKey) -> str:
    if keyring is None or key.key_id not in keyring.key_ids:
        return "missing"
    if keyring.check_value(key.key_id) != key.check_value:
        return "different"
    return "current" if key.key_id == keyring.current_key_id else "held"


def judge_keys(
    keys: Sequence[LoggedKey], *, current: str, key_days: int = KEY_DAYS
) -> Iterator[Finding]:
    """Findings on keys that may seal; `keys` are oldest first, `current` is the keyring's."""
    sealing = [key for key in keys if key.retired_at is None]
    if current in {key.key_id for key in keys} - {key.key_id for key in sealing}:
        yield make_problem(
            "key-retired",
            f"key {current}",
            message="the current key of this application's keyring was retired: every transaction "
            "that it would log is refused",
            hint="give the application a keyring with a newer current key",
        )
    for key in sealing[:-1]:
        newest = sealing[-1].key_id
        yield make_notice(
            "key-superseded",
            f"key {key.key_id}",
            message=f"it may still seal, {key.age.days} days after it was registered, and the "
            f"newer key {newest} is in use",
            hint=f"once every process has the newer one: oplog keys retire {key.key_id}",
        )
    for key in sealing[-1:]:
        if key.age > timedelta(days=key_days):
            yield make_notice(
                "key-old",
                f"key {key.key_id}",
                message=f"the newest key that seals was registered {key.age.days} days ago",
                hint="oplog keys rotate adds a key; deploy the keyring, then oplog keys retire "
                f"{key.key_id}",
            )
