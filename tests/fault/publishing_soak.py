"""The soak of publishing: real workers, an S3 server, and faults at all of it, for some minutes.

`python -m tests.fault.publishing_soak --minutes 10` is a part of `make soak`. Writers write, two
workers of the program publish and take snapshots, an operator collects. Workers are killed and put
to sleep, the database is killed, connections to the store are cut, the store stands still. In the
end the archive must have every record of the database once, what was acknowledged as archived was
there before, and a restore equals the source. A fault that never struck fails the run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Archive, Keyring, Oplog, Receipt
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.store_url import open_store
from oplog.errors import OplogError
from oplog.testing import EmbeddedServer
from oplog.upkeep.retention import Retention
from tests.concurrency.workload import Base, Customer, make_log
from tests.fault.relay import Relay
from tests.logged import track
from tests.ministack_server import MinistackServer, run_ministack
from tests.s3stub import CREDENTIALS
from tests.support import administer, install_log

ROOT = Path(__file__).parents[2]
WORKERS, WRITERS = 2, 2
FAULTS = (
    "worker killed",
    "worker asleep",
    "connections cut",
    "store stands still",
    "server killed",
)
SYNC = (
    *("sync", "--follow", "--unsigned", "--interval", "0.2"),
    *("--snapshot-records", "150", "--check-hours", "0.005"),
)
APPLICATION = """
from oplog import Keyring
from tests.concurrency.workload import make_log
log = make_log(keyring=Keyring.from_file("keyring.json"))
"""


@dataclass(frozen=True)
class Worker:
    """One process of the program, and what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def is_silent(self) -> bool:
        """Whether it runs and has not yet said what it does."""
        return self.process.poll() is None and self.log.stat().st_size == 0


@dataclass
class Course:
    """A run under way."""

    directory: Path
    server: EmbeddedServer
    store: MinistackServer
    relay: Relay
    draw: random.Random
    done: Counter[str] = field(default_factory=Counter)
    archived: set[int] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    workers: list[Worker] = field(default_factory=list)
    started: int = 0

    @property
    def url(self) -> str:
        return "s3://soak/archive"

    def open_engine(self) -> Engine:
        return sa.create_engine(self.server.url, poolclass=NullPool)

    def open_log(self) -> Oplog:
        return make_log(keyring=Keyring.from_file(self.directory / "keyring.json"))

    def open_archive(self) -> Archive:
        # Past the relay: what is cut belongs to the workers.
        options = {"endpoint": self.store.endpoint, **CREDENTIALS}
        return Archive(open_store(self.url, options=options), trust=HeadTrust(unsigned=True))

    def read_last_words(self) -> str:
        """The end of what workers printed."""
        logs = sorted(self.directory.glob("worker-*.log"))
        return "\n".join(path.read_text(errors="replace")[-1000:] for path in logs)

    def start_worker(self) -> Worker:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.directory)]),
            "OPLOG_APP": "soak_application:log",
            "OPLOG_DATABASE_URL": self.server.url,
            "OPLOG_ARCHIVE_URL": self.url,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.relay.port}",
            "AWS_ACCESS_KEY_ID": CREDENTIALS["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret_access_key"],
            "AWS_REGION": CREDENTIALS["region"],
            "AWS_ALLOW_HTTP": "true",
        }
        self.started += 1
        path = self.directory / f"worker-{self.started}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "oplog", *SYNC],
                cwd=self.directory,
                env=environment,
                stdout=log,
                stderr=log,
            )
        return Worker(process, path)


# -- who works ----------------------------------------------------------------------------------


def write(course: Course, writer: int) -> None:
    """Transactions of all sizes; now and then one whose archiving is waited for."""
    engine, log, draw = course.open_engine(), course.open_log(), random.Random(writer)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    number = 0
    while not course.over.wait(draw.random() / 20):
        first = number * WRITERS * 100 + writer * 100 + 1
        number += 1
        with suppress(DBAPIError, OplogError):
            with sessions.begin() as session:
                session.add_all(
                    Customer(id=first + n, name=f"customer {n}" * draw.randint(1, 20))
                    for n in range(draw.randint(1, 30))
                )
            course.done["transactions"] += 1
            if number % 20 == 0:
                await_archived(course, log, log.receipts(session)[0], first)


def await_archived(course: Course, log: Oplog, receipt: Receipt, first: int) -> None:
    log.wait_until_archived(receipt, course.open_archive(), timeout=20)
    course.archived.add(first)
    course.done["acknowledged as archived"] += 1


def collect(course: Course) -> None:
    """What an operator's timer does."""
    engine, log = course.open_engine(), course.open_log()
    while not course.over.wait(7):
        with suppress(DBAPIError, OplogError):
            log.collect(engine, course.open_archive(), retention=Retention(), grace_seconds=30)
            course.done["collected"] += 1


# -- what befalls them --------------------------------------------------------------------------


def strike(course: Course, fault: str) -> None:
    """One fault, which is over when this returns."""
    worker = course.draw.choice(course.workers).process
    if fault == "worker killed":
        worker.kill()
        worker.wait()
    elif fault == "worker asleep":
        worker.send_signal(signal.SIGSTOP)
        course.over.wait(course.draw.uniform(0.5, 4))
        worker.send_signal(signal.SIGCONT)
    elif fault == "connections cut":
        course.relay.cut()
    elif fault == "store stands still":
        course.store.process.send_signal(signal.SIGSTOP)
        course.over.wait(course.draw.uniform(0.5, 4))
        course.store.process.send_signal(signal.SIGCONT)
    else:
        course.server.kill9()
        course.over.wait(0.5)
        course.server.restart()
    course.done[fault] += 1


def replace_ended(course: Course) -> None:
    """What a supervisor does. A worker may end when it loses its database, never with a lie."""
    for place, worker in enumerate(course.workers):
        code = worker.process.poll()
        if code is None:
            continue
        # 1: it was started while the database was away, which it says at once.
        if code not in {-signal.SIGKILL, 1}:
            course.complaints.append(f"a worker ended with {code}: {course.read_last_words()}")
        course.done[f"worker ended with {code}"] += 1
        course.workers[place] = course.start_worker()


def run_course(course: Course, *, minutes: float) -> None:
    """Faults at random until the time is over; each at least once."""
    left = list(FAULTS)
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end or left:
        course.over.wait(course.draw.uniform(0.5, 4))
        replace_ended(course)
        fault = left.pop() if left else course.draw.choice(FAULTS)
        strike(course, fault)


# -- judgement ----------------------------------------------------------------------------------


def judge(course: Course) -> list[str]:
    """What is wrong in the end."""
    engine, log, archive = course.open_engine(), course.open_log(), course.open_archive()
    log.sync(engine, archive)
    with engine.connect() as connection:
        stored = [(e.position, e.aggregate, e.entry_hash) for e in log.read(connection)]
    archived = [(e.position, e.aggregate, e.entry_hash) for e in log.read(None, archive=archive)]
    # The archive's order is another one, which is causal as well.
    wrong = [] if sorted(archived) == sorted(stored) else ["the archive has other records"]
    course.done["entries"] = len(stored)
    wrong += [
        f"check: {one.path}: {one.message}"
        for one in log.check(course.open_archive(), engine).problems
        if not one.harmless
    ]
    with engine.connect() as connection:
        kept = set(connection.scalars(sa.select(Customer.id)))
    wrong += [f"customer {one} was archived and is lost" for one in course.archived - kept]
    administer(make_url(course.server.url), "CREATE DATABASE restored")
    target = sa.create_engine(make_url(course.server.url).set(database="restored"))
    with target.begin() as connection:
        Base.metadata.create_all(connection)
        install_log(connection)
    with target.connect() as connection:
        log.restore(course.open_archive(), connection)
    rows = sa.select(Customer.id, Customer.name).order_by(Customer.id)
    with target.connect() as there, engine.connect() as here:
        if there.execute(rows).all() != here.execute(rows).all():
            wrong.append("what was restored is not what was there")
        if not log.verify(there).ok:
            wrong.append("what was restored does not verify")
    target.dispose()
    return wrong + [f"{fault}: never" for fault in FAULTS if not course.done[fault]]


@contextmanager
def open_course(directory: Path, *, seed: int) -> Iterator[Course]:
    """Server, store, workers and writers at work; all of them gone in the end."""
    Keyring.generate().save(directory / "keyring.json")
    (directory / "soak_application.py").write_text(APPLICATION)
    place = directory / "store"
    place.mkdir()
    with (
        EmbeddedServer(fsync=True) as server,
        run_ministack(place) as store,
        Relay(store.port) as relay,
    ):
        store.make_bucket("soak")
        course = Course(directory, server, store, relay, random.Random(seed))
        engine = course.open_engine()
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            install_log(connection)
        track(engine, *Base.metadata.sorted_tables)
        course.workers = [course.start_worker() for _ in range(WORKERS)]
        threads = [threading.Thread(target=write, args=(course, n)) for n in range(WRITERS)]
        threads.append(threading.Thread(target=collect, args=(course,)))
        for thread in threads:
            thread.start()
        try:
            yield course
        finally:
            course.over.set()
            for thread in threads:
                thread.join()
            for worker in course.workers:
                worker.process.kill()
                worker.process.wait()


def stop_workers(course: Course) -> None:
    """As an operator does it: they end within seconds, and say that nothing failed."""
    replace_ended(course)
    begun = time.monotonic()
    # A program that is still being imported dies of the signal, as any would.
    while any(worker.is_silent() for worker in course.workers) and time.monotonic() - begun < 60:
        time.sleep(0.2)
    for worker in course.workers:
        worker.process.send_signal(signal.SIGTERM)
    for worker in course.workers:
        code = worker.process.wait(60)
        if code != 0:
            said = course.read_last_words()
            course.complaints.append(f"a worker that was asked to stop ended with {code}: {said}")


def run(directory: Path, *, minutes: float, seed: int) -> tuple[list[str], Counter[str]]:
    """What is wrong, and what was done."""
    with open_course(directory, seed=seed) as course:
        run_course(course, minutes=minutes)
        stop_workers(course)
        course.over.set()
        time.sleep(1)
        return [*course.complaints, *judge(course)], course.done


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        wrong, done = run(Path(directory), minutes=given.minutes, seed=given.seed)
    lines = [f"seed {given.seed}", *(f"{name:28} {count:>7}" for name, count in done.items())]
    lines += [f"WRONG {one}" for one in wrong]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
