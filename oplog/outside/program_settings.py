"""Settings of a process: from the environment, else from `[tool.oplog]` of a pyproject.toml.

The command line and the engine plugin find the same ones, here. The environment goes first. The
file is the nearest pyproject.toml in the working directory or above it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oplog.crypto.keyring import Keyring
from oplog.errors import ConfigurationError
from oplog.facade.learned_columns import ColumnChoice

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "app": "OPLOG_APP",
        "database-url": "OPLOG_DATABASE_URL",
        "archive-url": "OPLOG_ARCHIVE_URL",
        "schema": "OPLOG_SCHEMA",
        "plaintext": "OPLOG_PLAINTEXT",
    }
)
"""The environment variable of each setting."""
KEYRING = "OPLOG_KEYRING"
"""The variable with the keyring, or the path of its file."""
_KEYRING_FILE = "keyring-file"
COLUMNS: Mapping[str, str] = MappingProxyType(
    {"exclude": "OPLOG_EXCLUDE", "secret": "OPLOG_SECRET"}
)
"""The same for settings that are lists of columns, `table.column`, with commas between them."""
_UNEXPLAINED = "the settings leave it out"
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


@dataclass(frozen=True)
class ProgramSettings:
    """What was found; a setting that nobody gave is not in `values`."""

    values: Mapping[str, str]
    has_keyring: bool = False
    keyring_file: Path | None = None
    directory: Path = field(default_factory=Path.cwd)
    columns: ColumnChoice = field(default_factory=ColumnChoice)

    def find(self, name: str) -> str | None:
        """A setting by its name in the file, such as `database-url`."""
        return self.values.get(name)

    @property
    def schema(self) -> str:
        """The schema of the log."""
        return self.values.get("schema") or "oplog"

    @property
    def plaintext(self) -> bool:
        """Whether a log without a keyring is wanted; `ConfigurationError` if that is not said."""
        text = self.values.get("plaintext", "")
        if text.lower() not in _FLAGS:
            raise ConfigurationError(
                f"plaintext is {text!r:.40}, which is neither true nor false",
                hint=f"set {VARIABLES['plaintext']} to 1 or 0",
            )
        return _FLAGS[text.lower()]

    def open_keyring(self) -> Keyring | None:
        """The keyring; None if none is wanted. `ConfigurationError` if neither is said."""
        if self.has_keyring:
            return Keyring.from_env(KEYRING)
        if self.keyring_file is not None:
            return Keyring.from_file(self.keyring_file)
        if self.plaintext:
            return None
        raise ConfigurationError(
            "no keyring: the log would hold readable copies of every guarded row",
            hint=f"set {KEYRING} to the keyring or the path of its file, or {_KEYRING_FILE} in "
            f"[tool.oplog] of pyproject.toml; or say {VARIABLES['plaintext']}=1",
        )


def read_settings(environment: Mapping[str, str], directory: Path) -> ProgramSettings:
    """The settings of a process that runs in `directory`.

    Raises `ConfigurationError` for a file that is not TOML, and for a setting that is unknown or
    of another type.
    """
    path = _find_file(directory)
    told: dict[str, Any] = {} if path is None else dict(_read_file(path))
    columns = _choose_columns(environment, told)
    keyring_file = told.pop(_KEYRING_FILE, None)
    values = told | {
        name: environment[variable]
        for name, variable in VARIABLES.items()
        if environment.get(variable)
    }
    place = directory if path is None else path.parent
    return ProgramSettings(
        values,
        has_keyring=bool(environment.get(KEYRING)),
        keyring_file=None if keyring_file is None else place / keyring_file,
        directory=place,
        columns=columns,
    )


def _choose_columns(environment: Mapping[str, str], told: dict[str, Any]) -> ColumnChoice:
    """Takes what the file says of columns out of `told`; the environment goes before it."""
    found: dict[str, Mapping[str, str]] = {}
    for name, variable in COLUMNS.items():
        reasons = told.pop(name, {})
        given = environment.get(variable, "")
        if given:
            names = (one.strip() for one in given.split(","))
            reasons = {one: reasons.get(one, _UNEXPLAINED) for one in names if one}
        for column in reasons:
            if not all(column.rpartition(".")):
                raise ConfigurationError(
                    f"{variable} or {name} in [tool.oplog] has {column!r:.80}, which is no column",
                    hint="write table.column",
                )
        found[name] = reasons
    return ColumnChoice(found["exclude"], frozenset(found["secret"]))


def _find_file(directory: Path) -> Path | None:
    for place in (directory, *directory.parents):
        path = place / "pyproject.toml"
        if path.is_file():
            return path
    return None


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigurationError(
            f"{path} cannot be read: {cause}", hint="mend it, or run in another directory"
        ) from cause
    found: Any = document.get("tool", {}).get("oplog", {})
    known = {**VARIABLES, **COLUMNS, _KEYRING_FILE: ""}
    for name, value in found.items() if isinstance(found, dict) else [("", found)]:
        if name not in known:
            raise ConfigurationError(
                f"[tool.oplog] of {path} has {name!r:.60}, which is no setting",
                hint=f"it may have {', '.join(sorted(known))}",
            )
        if name in COLUMNS:
            yield name, _read_columns(value, f"[tool.oplog] of {path}: {name}")
            continue
        if not isinstance(value, bool if name == "plaintext" else str):
            wanted = "true or false" if name == "plaintext" else "a text"
            raise ConfigurationError(
                f"[tool.oplog] of {path}: {name} is not {wanted}", hint=f"write {wanted}"
            )
        yield name, str(value)


def _read_columns(value: Any, what: str) -> dict[str, str]:
    """Columns with reasons: from a table, or from a list, which gives none."""
    if isinstance(value, list):
        value = dict.fromkeys(value, _UNEXPLAINED) if all(_is_text(v) for v in value) else None
    if not isinstance(value, dict) or not all(_is_text(reason) for reason in value.values()):
        raise ConfigurationError(
            f"{what} is neither a list of columns nor a table of columns with reasons",
            hint='write ["user.password_hash"], or {"user.password_hash" = "a secret"}',
        )
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)
