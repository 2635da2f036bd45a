"""A process that prunes and is killed while it does.

Run as a program: `pruning_process.py DATABASE ARCHIVE POINT`. Kills itself when it has come to the
point: the number of a batch and a step's name, such as "1 removed".
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta

from sqlalchemy import create_engine

from oplog import open_archive
from oplog.upkeep.prune import PruneStep, prune_log


def main() -> None:
    database, archive, point = sys.argv[1:]
    done = 0

    def reach(step: PruneStep) -> None:
        nonlocal done
        if f"{done} {step.value}" == point:
            os.kill(os.getpid(), signal.SIGKILL)
        done += step is PruneStep.COMMITTED

    report = prune_log(
        create_engine(database),
        open_archive(archive),
        keep=timedelta(0),
        schema="oplog",
        batch_entries=10,
        reach=reach,
    )
    print(report.total_entries)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
