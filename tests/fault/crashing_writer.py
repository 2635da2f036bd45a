"""A process that forks writers which kill themselves at a named point of their transaction.

Run as a program: `crashing_writer.py URL KEYRING`. Reads the name of a point per line and
answers with the signal that ended the writer (0 if it ended by itself). It has one thread and
no connection of its own, so that it may be forked at any time.
"""

from __future__ import annotations

import os
import signal
import sys
from unittest import mock

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.capture import transaction
from oplog.events import EntriesAppended, EntriesDrafted, Event
from tests.concurrency.workload import Base, Customer, Invoice

NOTHING_STORED = ("begun", "flushed", "savepoint kept", "drafted", "appended")
"""Points at which the transaction must not have happened."""
STORED = ("committed", "returned")


class Writer:
    """One transaction that ends at `point`."""

    def __init__(self, url: str, keyring: str, *, point: str) -> None:
        self.url = url
        self.point = point
        self.log = Oplog(
            TypeCatalog.from_models(Base),
            keyring=Keyring.from_file(keyring),
            on_event=self.on_event,
        )

    def reach(self, point: str) -> None:
        if point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, event: Event) -> None:
        if isinstance(event, EntriesDrafted):
            self.reach("drafted")
        elif isinstance(event, EntriesAppended):
            self.reach("committed" if event.committed else "appended")

    def work(self, session: Session) -> None:
        session.connection()
        self.reach("begun")
        session.get_one(Customer, 1).name = "changed"
        session.add(Invoice(customer_id=1, amount=1))
        session.flush()
        self.reach("flushed")
        with session.begin_nested():
            session.add(Invoice(customer_id=1, amount=2))
        self.reach("savepoint kept")

    def run(self) -> None:
        sessions = sessionmaker(create_engine(self.url))
        self.log.attach(sessions)
        with sessions.begin() as session:
            self.work(session)
        self.reach("returned")

    def run_apart(self) -> None:
        """Here the entries are sent before COMMIT, not together with it."""
        with mock.patch.object(transaction, "can_commit_at_once", return_value=False):
            self.run()


def crash(url: str, keyring: str, *, point: str) -> int:
    """Fork a writer, let it run into `point`, and return the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            writer = Writer(url, keyring, point=point)
            if point == "appended":
                writer.run_apart()
            else:
                writer.run()
            status = 0
        finally:
            os._exit(status)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main() -> None:
    url, keyring = sys.argv[1:]
    for line in sys.stdin:
        print(crash(url, keyring, point=line.strip()), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
