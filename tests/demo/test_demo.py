"""The whole demonstration as a stranger runs it, and with faults planted in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.history import ROOT

pytestmark = pytest.mark.postgres

DEMO = [sys.executable, "-m", "examples.demo", "--quick", "--bundled", "--seed", "7"]
PLANTED = """
import sys
from examples.demo import tampering
from examples.demo.__main__ import main
tampering.set_balance = lambda database, *, balance: None
sys.exit(main(["--quick", "--bundled"]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for everything temporary, which the server's account can enter, too."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def surroundings(place: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(place), "PYTHONWARNINGS": "error"}


def list_left_behind(place: Path) -> list[str]:
    """Files below the directory, and processes that were told of it."""
    commands = [entry / "cmdline" for entry in Path("/proc").glob("[0-9]*")]
    found = [str(path) for path in place.iterdir()]
    for command in commands:
        try:
            said = command.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, which is all that is asked of it
        if os.fsencode(place) in said:
            found.append(said.decode(errors="replace"))
    return found


def test_everything_is_proved_and_nothing_left(place: Path) -> None:
    done = subprocess.run(
        DEMO, cwd=ROOT, env=surroundings(place), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for statement in (
        "Alembic revision oplog_0003 created the log's",
        "exactly what git listed when it was recorded",
        "conflicts happened, and were resolved",
        "money is conserved: 8000.00",
        "each balance is what the",
        "replay equals live",
        "the log's own verify says the same",
        "changes of this account are known, and who made each",
        "verify finds exactly that row and column",
        "put right by hand, the table agrees with the log again",
        "after 4 times kill -9 nothing is half-written",
        "and verify is clean",
        "killed with a segment uploaded and not committed",
        "another worker took over by itself",
        "a write waited until it was archived",
        "the restored database is the destroyed one",
        "published as the next record",
        "what replay gave there, exactly what git listed when it was recorded",
        "the plan takes back 6 transactions and leaves Grace's alone",
        "and what Grace wrote stays",
        "the undo undone: the afternoon is back",
        "are conflicts with that teller's name",
        "nothing is left behind",
    ):
        assert any(
            line.lstrip().startswith("proved:") and statement in line
            for line in done.stdout.splitlines()
        ), statement
    assert "by teller-" in done.stdout
    assert "\x1b" not in done.stdout
    assert list_left_behind(place) == []


def test_a_fault_is_reported_and_nothing_left(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANTED],
        cwd=ROOT, env=surroundings(place), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "NOT PROVED: step 4: verify found none" in done.stderr
    assert "verify finds exactly" not in done.stdout
    assert list_left_behind(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_cleans_up(place: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=surroundings(place), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line.startswith("3. A bank") for line in process.stdout)
        assert list_left_behind(place) != []
        # The whole foreground group, as a terminal does it.
        os.killpg(process.pid, number)
        said, complained = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in said + complained
    assert list_left_behind(place) == []
