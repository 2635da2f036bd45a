"""A process of an application that is deployed in a rolling way, in one of its versions.

Run as a program: `rolling_process.py URL KEYRING VERSION NUMBER HOW`. It says "ready" after its
first write, writes until it is given a line, and ends with one line of JSON: the tokens of writes
that were acknowledged, the errors that were not retryable, and how often it tried again. HOW is
"run", for `log.run`, or "plain", for sessions of its own that are tried again by hand.

Version 1 writes `name`. Version 2 writes `name` and `full_name`. Version 3 has no `name` any more.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, registry, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.capture.retry import is_retryable
from oplog.errors import OplogError
from oplog.events import Event, WorkRetried

COLUMNS = {1: ("name",), 2: ("name", "full_name"), 3: ("full_name",)}
SHARED = 5
"""Rows that all processes update."""
MOST_WRITES = 2000


class Person:
    """A row of the table, in the version's columns."""


def make_models(version: int) -> sa.MetaData:
    """The models of a version of the application."""
    metadata = sa.MetaData()
    table = sa.Table(
        "person",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text) for name in COLUMNS[version]),
        sa.Column("hits", sa.Integer, nullable=False),
    )
    registry(metadata=metadata).map_imperatively(Person, table)
    return metadata


class Process:
    """One worker of the application."""

    def __init__(self, url: str, keyring: str, version: int, number: int) -> None:
        self.columns = COLUMNS[version]
        self.number = number
        self.draws = random.Random(number)
        catalog = TypeCatalog.from_models(make_models(version))
        self.log = Oplog(catalog, keyring=Keyring.from_file(keyring), on_event=self.see)
        self.sessions = sessionmaker(sa.create_engine(url))
        self.log.attach(self.sessions)
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.again: Counter[str] = Counter()

    def see(self, event: Event) -> None:
        if isinstance(event, WorkRetried):
            self.again[event.reason] += 1

    def write(self, count: int, how: str) -> None:
        token = f"{self.number}/{count}"

        def work(session: Session) -> None:
            self.log.annotate(session, token=token)
            person = Person()
            values = dict.fromkeys(self.columns, token)
            for name, value in {"id": self.number * 10_000 + count, "hits": 0, **values}.items():
                setattr(person, name, value)
            session.add(person)
            shared: Any = session.get_one(Person, self.draws.randrange(SHARED))
            # In SQL: what was read may be old by now.
            shared.hits = Person.hits + 1  # type: ignore[attr-defined]
            for name, value in values.items():
                setattr(shared, name, value)

        if how == "run":
            self.log.run(self.sessions, work)
        else:
            self._try_by_hand(work)
        self.acknowledged.append(token)

    def _try_by_hand(self, work: Any) -> None:
        while True:
            try:
                with self.sessions.begin() as session:
                    work(session)
            except (OplogError, SQLAlchemyError) as error:
                if not is_retryable(error):
                    raise
                self.again[type(error).__name__] += 1
            else:
                return

    def go_on(self, how: str, stopped: threading.Event) -> None:
        for count in range(MOST_WRITES):
            try:
                self.write(count, how)
            except (OplogError, SQLAlchemyError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                if len(self.errors) > 3:
                    break
            if count == 0:
                say("ready")
            if stopped.wait(0.01):
                break


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - its answer


def main() -> None:
    url, keyring, version, number, how = sys.argv[1:]
    process = Process(url, keyring, int(version), int(number))
    stopped = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stopped.set()

    threading.Thread(target=listen, daemon=True).start()
    process.go_on(how, stopped)
    told = {"acknowledged": process.acknowledged, "errors": process.errors}
    say(json.dumps(told | {"again": dict(process.again)}))


if __name__ == "__main__":
    main()
