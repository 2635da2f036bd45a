"""Servers that are older than the one tests run on, where this machine has some."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from oplog.errors import ConfigurationError
from oplog.testing.binaries import DEBIAN, PROGRAMS, find_binaries

VARIABLE = "OPLOG_TEST_OLDER_PG"
"""Directories of programs, separated as in PATH; without it Debian's oldest is taken."""


def find_older(
    environment: Mapping[str, str], installed: Sequence[Path] = ()
) -> dict[str, Path | None]:
    """Programs of each older server, by the name that its tests have; None if there is none.

    Raises `UsageError` for a directory that was named and holds no server.
    """
    named = environment.get(VARIABLE, "")
    if not named:
        held = [one for one in installed if all((one / program).is_file() for program in PROGRAMS)]
        return {"older": next(iter(held), None)}
    found: dict[str, Path | None] = {}
    for directory in named.split(os.pathsep):
        try:
            programs = find_binaries(Path(directory))
        except ConfigurationError as error:
            raise pytest.UsageError(f"{VARIABLE}: {error}") from error
        # Programs of another machine are an error of the run, no reason to skip.
        said = subprocess.run(
            [programs / "postgres", "--version"], check=True, capture_output=True, text=True
        )
        version = said.stdout.split("(PostgreSQL)")[-1].split()[0]
        found[f"postgres-{version}"] = programs
    return found


OLDER = find_older(os.environ, sorted(DEBIAN.glob("1[4-7]/bin")))
NEWEST = "newest"
NEWEST_AND_OLDER = (NEWEST, *OLDER)


def find_programs(server: str) -> Path | None:
    """Programs of a server of `NEWEST_AND_OLDER`; None says those that tests run on."""
    if server == NEWEST:
        return None
    programs = OLDER[server]
    if programs is None:
        pytest.skip("no older server")
    return programs


# -- what the run's own server may be too old for -------------------------------------------------

FIRST_WITH: Mapping[str, int] = {"merge": 15, "numeric(5,-2)": 15, "numeric(3,5)": 15}
"""Statements and types that older servers do not know."""
READ_SINCE: Mapping[str, int] = {"interval": 15, "interval[]": 15}
"""Types with values that older servers store and print, and do not read."""


def name_cases(names: Iterable[str], *, also: Mapping[str, int] | None = None) -> list[Any]:
    """Names of cases as parameters; what older servers do not know is skipped there.

    `also` has more of these, as `FIRST_WITH`.
    """
    return [_mark(name, name, also or {}) for name in names]


def mark_cases(cases: Mapping[str, Any], *, also: Mapping[str, int] | None = None) -> list[Any]:
    """Cases by their names as parameters; the same."""
    return [_mark(name, case, also or {}) for name, case in cases.items()]


def _mark(name: str, case: object, also: Mapping[str, int]) -> Any:
    first = {**FIRST_WITH, **also}.get(name.lower())
    return pytest.param(case, id=name, marks=() if first is None else pytest.mark.since(first))


def skip_older(item: pytest.Item, version: int) -> None:
    """Skip a test whose mark `since` names a newer server."""
    for mark in item.iter_markers("since"):
        if version < mark.args[0]:
            pytest.skip(f"it came with PostgreSQL {mark.args[0]}")
