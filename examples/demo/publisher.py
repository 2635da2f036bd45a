"""A worker that publishes the log to an archive, in a process of its own.

It reports when everything is published, including a snapshot unless it is to be stopped. If the
job asks for it, it stops between two requests to the store, reports that, and waits to be
killed. SIGTERM ends it normally.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from examples.demo.database import open_database
from examples.demo.worker import read_message, send_message
from oplog import Archive, SnapshotPolicy, SyncReport, SyncWorker, open_archive
from oplog.events import ArchiveStepDone, Event

INTERVAL_SECONDS = 0.02


class Publisher:
    """Reports on a worker's passes; `stopping` says to stop in the middle of a later one."""

    def __init__(self, archive: Archive, *, stopping: bool) -> None:
        self._archive = archive
        self._stopping = stopping
        self._settled = False

    def end_pass(self, report: SyncReport) -> None:
        """Report the first pass with nothing new; later records come from the bank."""
        if self._settled or report.entries:
            return
        # The snapshot is taken beside the passes.
        if self._stopping or self._archive.read_head().snapshots:
            self._settled = True
            send_message("settled", sequence=report.sequence)

    def hear(self, event: Event) -> None:
        """Stop when a segment is in the store and no head names it yet."""
        if not isinstance(event, ArchiveStepDone):
            return
        if self._stopping and self._settled and event.step == "put_segment":
            send_message("stopped", path=event.path)
            read_message()


def main() -> None:
    """Do the one job that the parent sends."""
    job = read_message()
    publisher = Publisher(open_archive(job["archive"], unsigned=True), stopping=job["stopping"])
    database = open_database(
        job["url"], Path(sys.argv[1]), name=job["name"], on_event=publisher.hear
    )
    worker = SyncWorker(
        database.log,
        database.engine,
        open_archive(job["archive"], unsigned=True),
        interval_seconds=INTERVAL_SECONDS,
        # The first one is due at once.
        snapshots=None if job["stopping"] else SnapshotPolicy(),
        check_hours=None,
        on_pass=publisher.end_pass,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    main()
