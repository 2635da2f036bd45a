"""Workers that are killed, told to end, put to sleep and doubled, while writers write.

Real processes and a directory. C06, C07: whoever wakes up late finds out by itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.objectstore.store_url import open_store
from oplog.archive.step import Step
from tests.concurrency.workload import Customer
from tests.databases import FreshDatabase
from tests.logged import LoggedDatabase
from tests.published import (
    add_customers,
    check_archive,
    check_whole,
    open_fresh,
    open_workload,
    read_database,
)

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
KILLS = 20
DEADLINE_SECONDS = 60


@dataclass
class Place:
    """A log, and a directory that it is published to."""

    logged: LoggedDatabase
    url: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> ObjectStore:
        return open_store(self.url)

    def start(self, do: str = "nothing", step: str = "any", number: int = 1) -> Worker:
        database = self.logged.engine.url.render_as_string(hide_password=False)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fault.syncing_process",
                *(database, self.url, do, step, str(number)),
            ],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.processes.append(process)
        return Worker(process)

    def wait_until_published(self) -> None:
        """Until the archive has what the log has now."""
        count = len(read_database(self.logged.engine))
        wait_until(lambda: self.count() >= count)

    def count(self) -> int:
        head = open_fresh(self.store).find_head()
        return 0 if head is None else head.sequence

    def end_session(self) -> None:
        """What Postgres does with a publishing session that stands still for five minutes."""
        self.logged.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND state = 'idle in transaction'"
        )


@dataclass(frozen=True)
class Worker:
    """One process."""

    process: subprocess.Popen[str]

    def hear(self, *expected: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line in expected, (line, self.process.poll())
        return line

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def wait_until_stopped(self) -> None:
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE_SECONDS * 50):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it never came to pass")


@pytest.fixture
def place(fresh_database: FreshDatabase, tmp_path: Path) -> Iterator[Place]:
    place = Place(open_workload(fresh_database), (tmp_path / "archive").as_uri())
    yield place
    for process in place.processes:
        process.kill()
        process.communicate()


@contextmanager
def writing(logged: LoggedDatabase) -> Iterator[None]:
    """Two writers, and a transaction that stays open for long, until the block ends."""
    done = threading.Event()

    def write(first: int) -> None:
        number = first
        while not done.wait(0.05):
            with logged.sessions.begin() as session:
                session.add_all(
                    Customer(id=number + n, name="written meanwhile") for n in range(number % 3 + 1)
                )
                if number % 7 == 0:
                    session.flush()
                    done.wait(0.1)
            number += 5

    threads = [threading.Thread(target=write, args=(n * 10_000_000,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_killed_at_any_step_while_others_write(place: Place) -> None:
    draw = random.Random(5)
    add_customers(place.logged, 1, 2)
    read: list[object] = []
    nursery = place.start("lives")
    nursery.hear("ready")
    with writing(place.logged):
        for _ in range(KILLS):
            nursery.tell(str(draw.randint(1, 25)))
            while nursery.hear("ready", str(-signal.SIGKILL)) == "ready":
                pass
            now = check_whole(place.store)
            assert now[: len(read)] == read
            read = list(now)
    last = place.start()
    place.wait_until_published()
    assert last.end() == 0
    head = check_archive(place.store, place.logged.engine)
    # Each took an epoch, but for those that died before they did.
    assert head.epoch > KILLS // 2
    assert head.sequence > 2 * KILLS


@pytest.mark.parametrize("step", [Step.PUT_SEGMENT, Step.CREATE_HEAD])
def test_told_to_end_it_finishes_the_head(place: Place, step: Step) -> None:
    add_customers(place.logged, 1, 9)
    worker = place.start("ask", step, 2)
    worker.hear("ready")
    worker.hear(step)
    worker.process.send_signal(signal.SIGTERM)
    worker.hear("stopping")
    worker.tell("")
    assert worker.wait() == 0
    head = open_fresh(place.store).read_head()
    # The head that it was making, and none after it.
    assert (head.number, head.sequence) == (2, 6)
    assert len(check_whole(place.store)) == 6
    with place.logged.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT head, sequence FROM oplog.oplog_archive")
    assert tuple(row) == (2, 6)


def test_told_to_end_while_it_waits(place: Place) -> None:
    add_customers(place.logged, 1, 2)
    worker = place.start()
    worker.hear("ready")
    place.wait_until_published()
    assert worker.end() == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "step",
    [Step.TAKE_EPOCH, Step.PUT_SEGMENT, Step.CREATE_HEAD, Step.ACKNOWLEDGE],
)
def test_whoever_sleeps_in_a_pass_is_overtaken(place: Place, step: Step) -> None:
    """C07: it wakes up, publishes nothing wrong, and goes on or ends, as for a lost lease."""
    add_customers(place.logged, 1, 8)
    sleeper = place.start("stop", step, 1)
    sleeper.wait_until_stopped()
    waiting = place.start()
    waiting.hear("ready")
    if step is Step.ACKNOWLEDGE:
        # It holds the row: nobody can pass until Postgres ends its session.
        place.end_session()
    place.wait_until_published()
    add_customers(place.logged, 20, 27)
    place.wait_until_published()
    before = check_archive(place.store, place.logged.engine)
    sleeper.process.send_signal(signal.SIGCONT)
    if step is not Step.CREATE_HEAD:
        # It sees the head of the other before it creates its own, or lost its session: it begins
        # again.
        add_customers(place.logged, 40, 41)
        place.wait_until_published()
        assert sleeper.end() in (0, 11)
    else:
        assert sleeper.wait() == 11
        assert check_heads_since(place, before.number) == before.number
        assert waiting.process.poll() is None
    assert waiting.end() in (0, 11)
    check_archive(place.store, place.logged.engine)


def check_heads_since(place: Place, number: int) -> int:
    """The newest head's number, `number` being one that was there."""
    newest = open_fresh(place.store).read_head().number
    assert newest >= number
    return newest


def test_two_at_once(place: Place) -> None:
    """C06: each entry once, whoever publishes; one that loses its turn ends and says so."""
    add_customers(place.logged, 1, 2)
    ended: list[int] = []
    with writing(place.logged):
        workers = [place.start() for _ in range(2)]
        for worker in workers:
            worker.hear("ready")
        begun = place.count()
        # Each may take the other's turn away, and then nobody publishes until one is started.
        wait_until(lambda: place.count() > begun + 30 or None not in poll(workers))
        ended = [code for code in poll(workers) if code is not None]
    survivor = place.start() if len(ended) == len(workers) else None
    place.wait_until_published()
    assert {worker.end() for worker in workers} <= {0, 11}
    if survivor is not None:
        assert survivor.end() == 0
    check_archive(place.store, place.logged.engine)
    # Of this database only: other tests have locks on the same server. And it may take the server
    # a moment to see that a process is gone.
    wait_until(lambda: count_locks(place.logged) == 0)


def poll(workers: Sequence[Worker]) -> list[int | None]:
    return [worker.process.poll() for worker in workers]


def count_locks(logged: LoggedDatabase) -> int:
    with sa.create_engine(logged.engine.url, poolclass=NullPool).connect() as connection:
        return int(
            connection.exec_driver_sql(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE l.relation = 'oplog.oplog_lock'::regclass AND d.datname = current_database()"
            ).scalar_one()
        )
