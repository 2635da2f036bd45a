"""The environment and the source distribution of a program.

They are kept in the directory that `OPLOG_REAL_CACHE` names, else in the temporary one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.histories.installation import ROOT, make_environment
from tests.real.programs import PYTEST, Program


class UnavailableError(Exception):
    """Something cannot be fetched on this machine."""


def find_cache() -> Path:
    """Where environments and sources are."""
    named = os.environ.get("OPLOG_REAL_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / "oplog-real"


def prepare_environment(program: Program) -> Path:
    """The interpreter of the program's environment, which has the log from the checkout.

    Raises `UnavailableError`.
    """
    tests = (*PYTEST, *program.shipped.requirements) if program.shipped else ()
    # The log last: its entry point is how the engine plugin is found.
    wanted = ["pip", *program.requirements, *tests, "sqlalchemy[asyncio]", f"--editable={ROOT}"]
    try:
        return make_environment(find_cache() / "environments" / program.name, wanted)
    except subprocess.CalledProcessError as cause:
        raise UnavailableError(f"its packages cannot be installed: {cause}") from cause


def read_version(python: Path, distribution: str) -> str:
    """The version that is installed."""
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def fetch_source(program: Program, python: Path, version: str) -> Path:
    """The directory of the source distribution of the version that is installed.

    A new copy each time: tests may leave files. Raises `UnavailableError`.
    """
    place = find_cache() / "sources" / f"{program.name}-{version}"
    archives = sorted(place.glob("*.tar.gz"))
    if not archives:
        place.mkdir(parents=True, exist_ok=True)
        name = program.distribution
        done = subprocess.run(
            [
                *(str(python), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name),
                *("--dest", str(place), f"{name}=={version}"),
            ],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        archives = sorted(place.glob("*.tar.gz"))
        if done.returncode or not archives:
            raise UnavailableError(f"its source distribution {name}=={version} cannot be fetched")
    unpacked = place / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(unpacked, filter="data")
    (found,) = unpacked.iterdir()
    return found
