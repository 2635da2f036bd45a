"""The run of a soak: a server, clients that come and go, and what is done to them.

Holds processes and the faults. Must not judge and must not know what operations do. The hard
thing is that faults strike under load: each waits for progress that it can see in the journals,
never for time alone, and a run that makes none within its patience fails.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Oplog
from oplog.testing import EmbeddedServer
from tests.fault.client import Job
from tests.fault.counters import read_entries
from tests.fault.cutter import Cut, Cutter
from tests.fault.history import ACKNOWLEDGED, KeptEntry, locate
from tests.fault.journal import Journals

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0

SERVER_KILLED = "kills of the server"
CLIENT_KILLED = "kills of clients"
TERMINATED = "sessions terminated"
CANCELLED = "statements cancelled"

_PICK = """SELECT {function}(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'
  AND pid <> pg_backend_pid() AND datname = current_database() AND xact_start IS NOT NULL
  ORDER BY random() LIMIT 1"""


@dataclass
class Seat:
    """The place of a client: when one dies, another takes it."""

    job: Job
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a client."""
        errors = Path(self.job.directory) / f"{self.job.name}.stderr"
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.client", json.dumps(asdict(self.job))],
                cwd=ROOT,
                stderr=file,
            )

    def wait(self, seconds: float) -> str:
        """Wait for the client's end; what is wrong with it, or nothing."""
        assert self.process is not None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"client {self.job.name} did not end"
        if status in {0, -signal.SIGTERM}:
            return ""  # told to stop before it had begun, it ends by the signal
        errors = Path(self.job.directory) / f"{self.job.name}.stderr"
        said = errors.read_text(errors="replace").strip().splitlines()[-25:]
        return "\n".join([f"client {self.job.name} ended with {status}", *said])


@dataclass
class Run:
    """Everything that lives while a soak runs."""

    server: EmbeddedServer
    engine: Engine
    log: Oplog
    cutter: Cutter
    draw: random.Random
    seats: list[Seat]
    journals: Journals
    done: Counter[str] = field(default_factory=Counter)
    earlier: dict[tuple[str, str], KeptEntry] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    # -- waiting ----------------------------------------------------------------------------

    def await_progress(self, reached: Callable[[], bool], what: str) -> None:
        """Return once the journals show it; `what` names it for whoever waits in vain."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.journals.catch_up()
            if reached():
                return
            self.check_clients()
            if time.monotonic() > deadline:
                raise AssertionError(f"never reached in {PATIENCE_SECONDS:.0f} s: {what}")
            time.sleep(0.02)  # between two looks at files

    def await_acknowledged(self, more: int) -> None:
        """So many operations more are acknowledged."""
        self.journals.catch_up()
        enough = self.journals.counts[ACKNOWLEDGED] + more
        self.await_progress(
            lambda: self.journals.counts[ACKNOWLEDGED] >= enough, f"{more} operations more"
        )

    def check_clients(self) -> None:
        """A client that ended by itself had no leave to."""
        for seat in self.seats:
            if seat.process is not None and seat.process.poll() not in {None, 0}:
                raise AssertionError(seat.wait(0))

    # -- faults -----------------------------------------------------------------------------

    def kill_server(self) -> None:
        """As a power failure would, but for the disk; then start it again."""
        self.server.kill9()
        self.done[SERVER_KILLED] += 1
        self.server.restart()
        self.observe()

    def observe(self) -> None:
        """Remember what can be read now: it must be there in the end."""
        after = max((entry.position for entry in self.earlier.values()), default=0)
        snapshot = self.engine.execution_options(isolation_level="REPEATABLE READ")
        with snapshot.connect() as connection:
            for entry in read_entries(self.log, connection, after=after):
                self.earlier[locate(entry)] = entry

    def kill_client(self) -> None:
        """Kill one and let another take its seat."""
        seat = self.draw.choice(self.seats)
        assert seat.process is not None
        seat.process.kill()
        seat.process.wait()
        self.done[CLIENT_KILLED] += 1
        seat.job = replace(seat.job, incarnation=seat.job.incarnation + 1)
        seat.start()

    def terminate_session(self) -> None:
        """End a session that is in a transaction."""
        self._pick(TERMINATED, "pg_terminate_backend")

    def cancel_statement(self) -> None:
        """Cancel what a session does."""
        self._pick(CANCELLED, "pg_cancel_backend")

    def _pick(self, what: str, function: str) -> None:
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql(_PICK.format(function=function)).scalar()
        self.done[what] += bool(found)

    def cut(self, cut: Cut) -> None:
        """Lose the next COMMIT."""
        self.cutter.arm(cut)

    def cut_anyhow(self) -> None:
        """Lose the next COMMIT, one way or another."""
        self.cutter.arm(self.draw.choice(list(Cut)))

    # -- the end ----------------------------------------------------------------------------

    def stop_clients(self) -> None:
        """Tell all to stop, and wait until they have put their last questions."""
        for seat in self.seats:
            assert seat.process is not None
            if seat.process.poll() is None:
                seat.process.send_signal(signal.SIGTERM)
        self.wait_for_clients()

    def wait_for_clients(self) -> None:
        """Wait until all have ended by themselves."""
        self.complaints += [said for seat in self.seats if (said := seat.wait(PATIENCE_SECONDS))]

    def kill_clients(self) -> None:
        """Leave no process behind, whatever happened."""
        for seat in self.seats:
            if seat.process is not None and seat.process.poll() is None:
                seat.process.kill()
                seat.process.wait()


def count_fences(engine: Engine) -> int:
    """How many lost transactions the resolver has shut out."""
    with engine.connect() as connection:
        return int(
            connection.execute(
                sa.text("SELECT count(*) FROM oplog.oplog_outcome WHERE position IS NULL")
            ).scalar_one()
        )
