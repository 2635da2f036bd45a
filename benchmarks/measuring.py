"""Running a workload in one or several processes, and counting what goes over the wire."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.workloads import WORKLOADS, WRITERS, Transfer, Workload, make_log
from oplog import Keyring

_SWITCH = re.compile(r"^(?:[\d\-: .]*\t)?([FB])\t", re.MULTILINE)


class Clients:
    """Client processes that wait for work; each has its own engine for each way of writing."""

    def __init__(self, url: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.count = count
        self._pipes: list[Pipe] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_client, args=(url, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def measure(self, way: str, workload: Workload) -> float:
        """Transactions per second over all clients, which start together."""
        for pipe in self._pipes:
            pipe.send((way, workload.name))
        for pipe in self._pipes:
            pipe.recv()
        begun = time.perf_counter()
        for pipe in self._pipes:
            pipe.send("go")
        for pipe in self._pipes:
            pipe.recv()
        elapsed = time.perf_counter() - begun
        return len(self._pipes) * workload.transactions / elapsed

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def serve_client(url: str, pipe: Pipe) -> None:
    """Run a client process: prepare, report, wait for the start, work, report."""
    sessions = {way: make_sessions(url, way, Keyring.generate()) for way in WRITERS}
    workloads = {workload.name: workload for workload in WORKLOADS}
    while (order := pipe.recv()) is not None:
        way, name = order
        workload = workloads[name]
        known = list_rows(sessions["plain"], workload)
        pipe.send("ready")
        pipe.recv()
        WRITERS[way](sessions[way], workload, known)
        pipe.send("done")
    for maker in sessions.values():
        maker.kw["bind"].dispose()


def make_sessions(url: str, way: str, keyring: Keyring) -> sessionmaker[Session]:
    """A sessionmaker on an engine of its own, attached if the way of writing says so."""
    sessions = sessionmaker(sa.create_engine(url, pool_size=1))
    if way.startswith("log"):
        make_log(way, keyring).attach(sessions)
    with sessions.begin() as session:
        # Connect and bind before anything is measured.
        session.execute(sa.select(1))
    return sessions


def list_rows(sessions: sessionmaker[Session], workload: Workload) -> list[int]:
    """Make new rows for the mixed workload to change, so that clients do not share rows."""
    if workload.name != "mixed":
        return []
    with sessions.begin() as session:
        rows = [
            Transfer(source=n, target=n, amount=1, memo="to be changed")
            for n in range(workload.transactions * 6)
        ]
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


def count_statements(url: str, way: str, workload: Workload) -> tuple[float, float]:
    """Statements and network round trips of one transaction, in a steady state."""
    sessions = make_sessions(url, way, Keyring.generate())
    engine: Engine = sessions.kw["bind"]
    known = list_rows(sessions, workload)
    WRITERS[way](sessions, workload, known)
    known = list_rows(sessions, workload)
    raw: Any = engine.raw_connection()
    with tempfile.NamedTemporaryFile() as file:
        raw.driver_connection.pgconn.trace(file.fileno())
        raw.close()
        WRITERS[way](sessions, workload, known)
        raw = engine.raw_connection()
        raw.driver_connection.pgconn.untrace()
        raw.close()
        file.seek(0)
        trace = file.read().decode("utf-8", "replace")
    engine.dispose()
    statements = trace.count("\tExecute\t") + trace.count("\tQuery\t")
    return statements / workload.transactions, _count_trips(trace) / workload.transactions


def _count_trips(trace: str) -> int:
    directions: Sequence[str] = _SWITCH.findall(trace)
    return sum(a == "F" and b == "B" for a, b in itertools.pairwise(directions))
