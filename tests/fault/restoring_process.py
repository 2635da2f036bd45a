"""A process that restores and is killed while it does.

Run as a program: `restoring_process.py SOURCE TARGET KEYRING POINT`. Kills itself when it has
come to the point, a step's name or "page 3" for the third page of the log.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

from sqlalchemy import create_engine

from oplog import Keyring, Oplog, TypeCatalog
from oplog.recovery import restore_log
from oplog.store import SequencedPage
from tests.concurrency.workload import Base
from tests.kept import KeptLog, open_log


def main() -> None:
    source, target, keyring, point = sys.argv[1:]

    def reach(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    class Watched(KeptLog):
        def iterate_sequence(self, *, after: int = 0) -> Iterator[SequencedPage]:
            for number, page in enumerate(super().iterate_sequence(after=after)):
                reach(f"page {number}")
                yield page

    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring))
    kept = Watched(log.store)
    with create_engine(source).connect() as connection:
        kept.take(connection)
    with create_engine(target).connect() as connection:
        report = restore_log(
            connection,
            kept,
            log=open_log(log, kept),
            schema="oplog",
            batch_rows=10,
            reach=reach,
        )
    print(report.digest)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
