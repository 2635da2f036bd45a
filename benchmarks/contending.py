"""Many writers on one aggregate, and on one each: what gets done, and what is done in vain.

Every way reads a row, adds to it, and writes it back. Processes, not threads: they must not
wait for one interpreter. The ratios are to writers with an aggregate each, in the same run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.capture import retry

WRITERS = (2, 4, 8, 16)
SECONDS = 2.0


class Base(DeclarativeBase):
    """The benchmark's table."""


class Counter(Base):
    """A row that everybody wants."""

    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


def add_explicitly(log: Oplog, number: int) -> Callable[[Session], None]:
    """A ticket first: the loser of a conflict runs again."""

    def work(session: Session) -> None:
        log.take_ticket(session, f"counter/{number}")
        session.get_one(Counter, number).total += 1

    return work


def add_in_line(log: Oplog, number: int) -> Callable[[Session], None]:
    """A lock before the ticket: everybody waits for their turn."""

    def work(session: Session) -> None:
        log.lock(session, f"counter/{number}")
        log.take_ticket(session, f"counter/{number}")
        session.get_one(Counter, number).total += 1

    return work


def add_blindly(_: Oplog, number: int) -> Callable[[Session], None]:
    """The server adds: the ticket is taken by itself, with the row locked."""

    def work(session: Session) -> None:
        counter = session.get_one(Counter, number)
        counter.total = Counter.total + 1

    return work


WAYS = {
    "explicit ticket, never in line": (add_explicitly, 10**9),
    "explicit ticket": (add_explicitly, retry.PATIENCE),
    "lock first": (add_in_line, retry.PATIENCE),
    "automatic ticket": (add_blindly, retry.PATIENCE),
}
"""Name -> what a writer does, and after how many conflicts `run` waits in line."""


def serve_writer(url: str, pipe: Pipe) -> None:
    """A writer process: does what it is told until told to end."""
    sessions = sessionmaker(sa.create_engine(url, pool_size=1))
    attempts: list[object] = []
    log = Oplog(
        TypeCatalog.from_models(Base),
        keyring=Keyring.generate(),
        on_event=attempts.append,
    )
    log.attach(sessions)
    with sessions() as session:
        session.connection()
    while (order := pipe.recv()) is not None:
        way, number = order
        make, retry.PATIENCE = WAYS[way]
        work = make(log, number)
        pipe.send("ready")
        pipe.recv()
        attempts.clear()
        done, until = 0, time.monotonic() + SECONDS
        longest = 0.0
        while (began := time.monotonic()) < until:
            log.run(sessions, work, retries=10**9)
            longest = max(longest, time.monotonic() - began)
            done += 1
        vain = sum(type(event).__name__ == "WorkRetried" for event in attempts)
        pipe.send((done, vain, longest))
    sessions.kw["bind"].dispose()


def fill_counters(url: str) -> None:
    """A row for each writer, through the log."""
    sessions = sessionmaker(sa.create_engine(url, pool_size=1))
    with sessions.kw["bind"].begin() as connection:
        Base.metadata.create_all(connection)
    Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate()).attach(sessions)
    with sessions.begin() as session:
        session.add_all(Counter(id=number, total=0) for number in range(max(WRITERS)))
    sessions.kw["bind"].dispose()


def compare_contention(url: str) -> Iterator[dict[str, Any]]:
    """Commits a second of every way, beside writers that share nothing."""
    fill_counters(url)
    context = multiprocessing.get_context("spawn")
    pipes: list[Pipe] = []
    processes = []
    for _ in range(max(WRITERS)):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_writer, args=(url, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for count in WRITERS:
        apart = _measure(pipes[:count], "explicit ticket", shared=False)
        yield _describe(count, "an aggregate each", apart, apart)
        for way in WAYS:
            yield _describe(count, way, _measure(pipes[:count], way, shared=True), apart)
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join()


def _measure(pipes: list[Pipe], way: str, *, shared: bool) -> tuple[float, float, float]:
    """Commits a second, attempts in vain for each commit, the longest wait in seconds."""
    for number, pipe in enumerate(pipes):
        pipe.send((way, 0 if shared else number))
    for pipe in pipes:
        pipe.recv()
    began = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    answers = [pipe.recv() for pipe in pipes]
    elapsed = time.perf_counter() - began
    done = sum(answer[0] for answer in answers)
    vain = sum(answer[1] for answer in answers)
    return done / elapsed, vain / done, max(answer[2] for answer in answers)


def _describe(
    count: int, way: str, measured: tuple[float, float, float], apart: tuple[float, float, float]
) -> dict[str, Any]:
    return {
        "writers": count,
        "way": way,
        "commits_per_second": round(measured[0], 1),
        "ratio": round(measured[0] / apart[0], 3),
        "vain_per_commit": round(measured[1], 3),
        "longest_seconds": round(measured[2], 3),
    }
