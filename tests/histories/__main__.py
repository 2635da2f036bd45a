"""`python -m tests.histories mlflow prefect`: walk the published migrations of applications.

Each runs in a process of its own, in an environment that has the application. What became of
every revision is in the directory `--directory`: a JSON file for each application, `report.md`
with all that failed, `forms.md` with what forms of statements there are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from oplog.testing import EmbeddedServer
from tests.histories.applications import ALL, BY_NAME, Application
from tests.histories.installation import ROOT, find_cache, install
from tests.histories.results import History, print_forms, print_report


def find_programs() -> Path | None:
    """A server with its extensions, which Prefect needs; None is the embedded one without."""
    named = os.environ.get("OPLOG_HISTORIES_PG_BIN")
    if named:
        return Path(named)
    found = sorted(
        (
            one
            for one in Path("/usr/lib/postgresql").glob("*/bin")
            if list(Path("/usr/share/postgresql").glob(f"{one.parent.name}/extension/pg_trgm*"))
        ),
        key=lambda one: int(one.parent.name),
    )
    return found[-1] if found else None


@contextlib.contextmanager
def open_server() -> Iterator[str]:
    """The server of `OPLOG_TEST_DATABASE_URL`, or one of our own."""
    url = os.environ.get("OPLOG_TEST_DATABASE_URL")
    if url:
        yield url
        return
    with EmbeddedServer(bin_dir=find_programs()) as server:
        yield server.url


def walk(application: Application, url: str, *, directory: Path, more: Sequence[str]) -> History:
    """Run one history in its environment, and read what became of it."""
    path = directory / f"{application.name}.json"
    path.unlink(missing_ok=True)
    python = str(install(application))
    command = [
        *(sys.executable if application.relayed else python, "-m", "tests.histories.walk"),
        *(application.name, "--url", url, "--directory", str(directory)),
        *(("--python", python) if application.relayed else ()),
        *more,
    ]
    with (directory / f"{application.name}.log").open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            cwd=directory,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not path.is_file():
        return History(application.name, broken=f"no result, exit code {done.returncode}")
    return History.load(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk the histories one after the other; exit code 3 if a revision does not pass."""
    parser = argparse.ArgumentParser(prog="tests.histories", description=__doc__)
    parser.add_argument("applications", nargs="*", metavar="NAME")
    parser.add_argument("--directory", type=Path, help="where results go")
    parser.add_argument("--first", type=int, help="number of the first revision with a log")
    parser.add_argument("--last", type=int, help="number of the last revision")
    given = parser.parse_args(arguments)
    bounds = {"--first": given.first, "--last": given.last}
    more = [text for name, value in bounds.items() if value for text in (name, str(value))]
    unknown = sorted(set(given.applications) - BY_NAME.keys())
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(BY_NAME)}")
    directory = (given.directory or Path(tempfile.mkdtemp(prefix="oplog-histories-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    histories = []
    with open_server() as url:
        for name in given.applications or [one.name for one in ALL]:
            print(f"{name}: see {directory / name}.log", flush=True)
            found = walk(BY_NAME[name], url, directory=directory, more=more)
            histories.append(found)
            (directory / "report.md").write_text(print_report(histories), encoding="utf-8")
            (directory / "forms.md").write_text(print_forms(histories), encoding="utf-8")
    print(print_report(histories))
    print(f"environments: {find_cache()}; results: {directory}")
    return 3 if any(one.failed for one in histories) else 0


if __name__ == "__main__":
    sys.exit(main())
