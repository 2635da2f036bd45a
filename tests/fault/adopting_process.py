"""A process that adopts and is killed while it does.

Run as a program: `adopting_process.py URL KEYRING POINT NUMBER`. Kills itself when it comes to
the point for the NUMBERth time; at "any" it says so on stdout for each chunk, to be killed by
whoever listens, and goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

from sqlalchemy import create_engine

from oplog import Keyring, Oplog, TypeCatalog
from oplog.events import EntriesAppended, EntriesDrafted, Event
from tests.concurrency.workload import Base

POINTS = ("drafted", "appended", "committed")
CHUNK_ROWS = 50


def main() -> None:
    url, keyring, point, number = sys.argv[1:]
    counts: Counter[str] = Counter()

    def reach(name: str) -> None:
        counts[name] += 1
        if (point, int(number)) == (name, counts[name]):
            os.kill(os.getpid(), signal.SIGKILL)

    def see(event: Event) -> None:
        if isinstance(event, EntriesDrafted):
            reach("drafted")
        elif isinstance(event, EntriesAppended):
            reach("appended")

    def say(done: int, expected: int) -> None:
        reach("committed")
        if point == "any":
            print(done, flush=True)  # noqa: T201 - its answer

    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring), on_event=see)
    with create_engine(url).connect() as connection:
        log.adopt(connection, "invoice", chunk_rows=CHUNK_ROWS, progress=say)


if __name__ == "__main__":
    main()
