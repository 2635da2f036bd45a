"""`python -m tests.real optuna mlflow`: run programs from the package index with a log.

Each does its work in an environment of its own, with the log attached by its database URL and
guards on all tables. Then the tests that it ships run without and with the log. What became of
each is in the directory `--directory`: a JSON file, logs of all that ran, and `table.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from oplog import Keyring
from oplog.migration import CreateOplogOp
from oplog.outside.program_settings import KEYRING
from oplog.testing import EmbeddedServer
from tests.histories.__main__ import find_programs
from tests.histories.cluster import Cluster
from tests.real.program_environment import find_cache
from tests.real.programs import ALL, BY_NAME
from tests.real.trial import Trial
from tests.real.tried import Tried, print_table

SETTINGS = {"max_prepared_transactions": "50"}


def add_log(url: sa.URL) -> None:
    """Make the log in the template of new databases, also of those that tests make."""
    engine = sa.create_engine(url.set(database="template1"))
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        CreateOplogOp.create_oplog(operations, 1)
    engine.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the programs one after the other; exit code 3 if the log did anything it must not."""
    parser = argparse.ArgumentParser(prog="tests.real", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="NAME")
    parser.add_argument("--directory", type=Path, help="where results go")
    parser.add_argument("--no-tests", action="store_true", help="only the work")
    parser.add_argument("--tests", help="arguments for pytest in place of the program's own")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.programs) - BY_NAME.keys())
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(BY_NAME)}")
    directory = (given.directory or Path(tempfile.mkdtemp(prefix="oplog-real-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    # Of this run alone; programs find it where the engine plugin looks for it.
    os.environ[KEYRING] = Keyring.generate().to_text()
    found: list[Tried] = []
    for name in given.programs or [one.name for one in ALL]:
        print(f"{name}: see {directory}/{name}-*.log", flush=True)
        # A server for each: what tests leave behind is gone with it.
        with EmbeddedServer(bin_dir=find_programs(), settings=SETTINGS) as server:
            url = sa.make_url(server.url)
            add_log(url)
            selected = tuple(given.tests.split()) if given.tests else ()
            trial = Trial(
                BY_NAME[name],
                Cluster(url),
                directory,
                tested=not given.no_tests,
                selected=selected,
            )
            found.append(trial.run())
        found[-1].save(directory / f"{name}-tried.json")
        (directory / "table.md").write_text(print_table(found), encoding="utf-8")
    print(print_table(found))
    print(f"environments: {find_cache()}; results: {directory}")
    return 3 if any(one.failed for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
