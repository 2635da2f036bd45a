"""Virtual environments of the applications, which pin other libraries than the log does.

They are kept in the directory that `OPLOG_HISTORIES_CACHE` names, else in the temporary one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.histories.applications import Application

ROOT = Path(__file__).parents[2]


def find_cache() -> Path:
    """Where the environments are."""
    named = os.environ.get("OPLOG_HISTORIES_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / "oplog-histories"


def install(application: Application, *, fresh: bool = False) -> Path:
    """The interpreter of the application's environment, which is made if there is none.

    What the log itself needs is installed too; the log is found by PYTHONPATH.
    """
    wanted = [*application.requirements, *_list_own_requirements(application)]
    return make_environment(find_cache() / application.name, wanted, fresh=fresh)


def make_environment(directory: Path, wanted: Sequence[str], *, fresh: bool = False) -> Path:
    """The interpreter of an environment with what is wanted, which is made if it has not that."""
    ready, text = directory / "ready", "\n".join(wanted)
    if fresh or not ready.is_file() or ready.read_text(encoding="utf-8") != text:
        shutil.rmtree(directory, ignore_errors=True)
        print(f"installing {directory.name} in {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        subprocess.run([*_find_installer(directory), *wanted], check=True)
        ready.write_text(text, encoding="utf-8")
    return directory / "bin" / "python"


def _list_own_requirements(application: Application) -> list[str]:
    if application.relayed:
        return ["psycopg2-binary"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [str(one) for one in project["dependencies"]]


def _find_installer(directory: Path) -> list[str]:
    """Uv from the checkout or PATH; else pip of the interpreter that runs this."""
    uv = shutil.which("uv") or shutil.which("uv", path=ROOT / ".boot" / "bin")
    if uv:
        return [uv, "pip", "install", "-q", "--python", str(directory / "bin" / "python")]
    return [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install"]
