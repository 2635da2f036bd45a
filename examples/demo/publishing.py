"""Publishing while the bank runs: one worker is killed halfway, another one continues.

Proves that objects which a dead worker uploaded have no effect until a head names them, and that
the next worker loses nothing and needs no help.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.database import Database
from examples.demo.narration import Narrator
from examples.demo.worker import Worker
from oplog import Archive, open_archive


@dataclass
class Press:
    """The worker that publishes now, and where to."""

    database: Database
    narrator: Narrator
    archive: Archive
    worker: Worker
    stack: ExitStack

    def replace(self) -> None:
        """Kill the worker half way through a commit to the archive, and start another."""
        before = self.archive.read_head()
        stopped = self.worker.expect("stopped")
        self.worker.kill9()
        path = stopped["path"]
        after = self.archive.read_head()
        named = {item.path for item in self.archive.iterate_items(after.levels)}
        self.narrator.prove(
            f"a worker killed with a segment uploaded and not committed: the archive is still at "
            f"record {after.sequence:,}, as if it had never been sent",
            holds=self.archive.store.head(path) is not None
            and path not in named
            and after == before,
            otherwise=f"{path} is {'named' if path in named else 'not named'} by head "
            f"{after.number}, and head {before.number} was the newest",
        )
        self.worker = self.stack.enter_context(
            start_worker(self.database, self.archive, name="publisher-2")
        )
        settled = self.worker.expect("settled")
        snapshots = self.archive.read_head().snapshots
        self.narrator.prove(
            f"another worker took over by itself, at record {settled['sequence']:,} by now, and "
            "took a snapshot of the tables",
            holds=settled["sequence"] >= after.sequence and len(snapshots) == 1,
            otherwise=f"it is at record {settled['sequence']}, with {len(snapshots)} snapshots",
        )


@contextmanager
def publish(database: Database, narrator: Narrator) -> Iterator[Press]:
    """Keep an archive up to date, in a directory beside the keys, until the block ends."""
    url = (database.directory / "archive").as_uri()
    archive = open_archive(url, unsigned=True)
    with ExitStack() as stack:
        worker = stack.enter_context(
            start_worker(database, archive, name="publisher-1", stopping=True)
        )
        settled = worker.expect("settled")
        narrator.say(
            f"A worker publishes the log to {Path(database.directory).name}/archive: "
            f"{settled['sequence']:,} records so far."
        )
        yield Press(database, narrator, archive, worker, stack)


def start_worker(
    database: Database, archive: Archive, *, name: str, stopping: bool = False
) -> Worker:
    """A worker process; with `stopping`, one that stops in the middle of a pass."""
    return Worker("publisher", database, name=name, archive=archive.url, stopping=stopping)
