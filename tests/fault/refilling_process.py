"""A process that logs rows again after DDL and is killed while it does.

Run as a program: `refilling_process.py URL KEYRING POINT NUMBER`, with the points of
`adopting_process`.
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
from tests.fault.adopting_process import CHUNK_ROWS
from tests.refilling import bind, refill


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
    engine = create_engine(url)
    with engine.begin() as connection:
        bound = bind(connection, log, "invoice")
    with engine.connect() as connection:
        refill(connection, log, bound, chunk_rows=CHUNK_ROWS, progress=say)


if __name__ == "__main__":
    main()
