"""A process that writes one transaction, and says how it ended.

Run as a program: `writing_process.py URL DIRECT KEYRING NUMBER HOW`. Before it is committed it
says "drafted" and waits for a line. HOW is "plain", or an idempotency key, under which it says
"ready" and waits before it begins, and nothing later. It ends with one line of JSON. URL is
written through, DIRECT asked.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import CommitOutcomeUnknownError
from oplog.events import EntriesDrafted, Event
from tests.concurrency.workload import Base
from tests.fault.lost_commits import check_pool, commit, write_new


def say(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - its answer


def say_and_wait(word: str) -> None:
    say(word)
    sys.stdin.readline()


def interrupt(signal_number: int, frame: Any) -> None:
    say("interrupted")
    raise KeyboardInterrupt


def commit_plainly(log: Oplog, engine: Engine, direct: Engine, number: int) -> dict[str, Any]:
    """Told by a KeyboardInterrupt, which any program may catch."""
    signal.signal(signal.SIGINT, interrupt)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    told: dict[str, Any] = {"told": None}
    try:
        commit(sessions, number)
    except KeyboardInterrupt as error:
        told = {"told": [kind.__name__ for kind in type(error).__mro__]}
        if isinstance(error, CommitOutcomeUnknownError):
            told["outcome"] = log.resolve(error, direct).value
            told["process"] = error.receipts[0].process_id
    with engine.connect() as connection:
        told["next process"] = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    check_pool(engine)
    commit(sessions, number + 1)
    check_pool(engine)
    return told


def commit_under_key(log: Oplog, engine: Engine, number: int, key: str) -> dict[str, Any]:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    worked: list[int] = []

    def work(session: Session) -> None:
        worked.append(number)
        write_new(session, number)

    say_and_wait("ready")
    receipts = log.run(sessions, work, idempotency_key=key, idempotency_request="the same")
    assert isinstance(receipts, list)
    return {"receipts": [str(receipt) for receipt in receipts], "worked": len(worked)}


def main() -> None:
    url, direct_url, keyring, number, how = sys.argv[1:]

    def see(event: Event) -> None:
        if isinstance(event, EntriesDrafted) and how == "plain" and not drafted:
            drafted.append(event)
            say_and_wait("drafted")

    drafted: list[Event] = []
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file(keyring), on_event=see)
    engine, direct = create_engine(url), create_engine(direct_url)
    if how == "plain":
        told = commit_plainly(log, engine, direct, int(number))
    else:
        told = commit_under_key(log, engine, int(number), how)
    say(json.dumps(told))


if __name__ == "__main__":
    main()
