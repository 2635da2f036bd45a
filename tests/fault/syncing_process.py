"""A process that publishes until it is told to stop, or until something is done to it.

Run as a program: `syncing_process.py DATABASE STORE DO STEP NUMBER`. When STEP is done for the
NUMBERth time it does to itself what DO says: "kill", "stop" (SIGSTOP), "ask" (says the step and
waits for a line), or "nothing". Ends as the command line would: 0 after SIGTERM, else the
error's exit code. With DO "lives" it has a child for each line that it gets, a NUMBER each, which
is killed so; starting Python anew would take most of the time.
"""

from __future__ import annotations

import os
import signal
import sys

import sqlalchemy as sa

from oplog import ArchiveStepDone, Event, Oplog, TypeCatalog
from oplog.archive.archive import Archive
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.objectstore.store_url import open_store
from oplog.errors import OplogError
from oplog.sync.wake import Wake
from oplog.sync.worker import SyncLoop
from tests.concurrency.workload import Base

LEASE_SECONDS = 0.3
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def say(text: str) -> None:
    # Not through a buffer: a signal handler may say something while something is being said.
    os.write(1, f"{text}\n".encode())


class Fate:
    """What befalls this process, and when."""

    def __init__(self, do: str, step: str, number: str) -> None:
        self._do = do
        self._step = step
        self._left = int(number)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, ArchiveStepDone) or self._step not in ("any", event.step):
            return
        self._left -= 1
        if self._left:
            return
        if self._do in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self._do])
        elif self._do == "ask":
            say(event.step)
            sys.stdin.readline()


def main() -> int:
    database, url, do, step, number = sys.argv[1:]
    if do != "lives":
        return publish(database, url, Fate(do, step, number))
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            publish(database, url, Fate("kill", step, line))
        say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    return 0


def publish(database: str, url: str, fate: Fate) -> int:
    # It needs no keys.
    log = Oplog(TypeCatalog.from_models(Base), plaintext=True, on_event=fate)
    engine = sa.create_engine(database)
    archive = Archive(open_store(url), verdict=Verdict.ATOMIC)
    loop = SyncLoop(
        log.make_exporter(archive, page_entries=3, segment_bytes=600),
        engine,
        interval_seconds=0.01,
        lease_seconds=LEASE_SECONDS,
        wake=Wake(engine),
    )

    def stop(*_: object) -> None:
        loop.stop()
        say("stopping")

    signal.signal(signal.SIGTERM, stop)
    say("ready")
    try:
        loop.run()
    except OplogError as error:
        say(f"{type(error).__name__}: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    # At once: while the interpreter ends, SIGTERM is no longer heard and would be the exit code.
    os._exit(main())
