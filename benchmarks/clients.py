"""Client processes of one contender: they wait for work, and report what it took.

A process has one engine and one connection. The first one creates the tables. All processes of
all contenders stay alive while others have their turn.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.contenders import CONTENDERS, Plain
from benchmarks.turns import Slice, join_clients
from benchmarks.wire import count_wire
from benchmarks.workloads import ALL_WORKLOADS, MIXED, Turn, Workload, make_values
from oplog.errors import EntryTooLargeError


class Seat:
    """A contender inside its client process, with what its transactions need."""

    def __init__(self, side: Plain) -> None:
        self.side = side
        self._number = 0
        self._known: deque[int] = deque()

    def transact(self, workload: Workload) -> int:
        """One transaction of a workload, with its metadata; the attempts that it took."""
        turns = []

        def attempt(session: Session) -> None:
            turns.append(Turn(self._number, self._known, self.side.model))
            self.side.begin(session, self._number)
            self.side.finish(session, workload.run(session, turns[-1]))

        self.side.run(attempt)
        turns[-1].close()
        self._number += 1
        return len(turns)

    def work(self, order: tuple[str, float]) -> Slice:
        """Transactions of a workload for some seconds, one at least."""
        workload = ALL_WORKLOADS[order[0]]
        return _take_turn(lambda: self.transact(workload), order[1])

    def repeat(self, order: tuple[str, int]) -> None:
        """So many transactions of a workload."""
        for _ in range(order[1]):
            self.transact(ALL_WORKLOADS[order[0]])

    def prepare_history(self, rows: int) -> None:
        """Rows with three changes each, ten rows in a transaction, and an index to find them."""
        side = self.side
        for _ in range(rows // 10):
            self._known.clear()
            self.transact(MIXED)
            for status in ("checked", "settled"):
                side.run(partial(self._set_status, status=status))
        side.index_history()
        with side.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")

    def _set_status(self, session: Session, *, status: str) -> None:
        """Update the rows of the last transaction."""
        self.side.begin(session, self._number)
        model = self.side.model
        rows = session.scalars(sa.select(model).where(model.id.in_(self._known))).all()
        for row in rows:
            row.status = status
        self.side.finish(session, [("update", row) for row in rows])

    def read(self, order: tuple[int, float]) -> Slice:
        """Histories of rows for some seconds; each must have the three changes, or be the row."""
        rows, seconds = order
        expected = 1 if type(self.side) is Plain else 3

        def read_one() -> int:
            self._number += 1
            with self.side.sessions() as session:
                # A step that shares no factor with the number of rows: every row in turn.
                found = self.side.read_history(session, self._number * 7919 % rows + 1)
            if found != expected:
                raise RuntimeError(f"{found} changes of a row were read")
            return 1

        return _take_turn(read_one, seconds)

    def measure_memory(self, rows: int) -> int | None:
        """Peak of resident bytes, after many rows in one transaction, a thousand a statement.

        None if the log refuses so many rows in one transaction.
        """
        side = self.side
        try:
            with side.sessions.begin() as session:
                side.begin(session, 0)
                for first in range(0, rows, 1000):
                    values = [make_values(number) for number in range(first, first + 1000)]
                    session.execute(sa.insert(side.model), values)
                side.finish(session, [])
        except EntryTooLargeError:
            return None
        return read_peak_bytes()

    def trace(self, name: str) -> tuple[float, float]:
        """Statements and round trips of one transaction, in a steady state."""
        workload = ALL_WORKLOADS[name]
        count = max(workload.transactions // 20, 2)
        self.repeat((name, count))
        return count_wire(self.side.engine, lambda: self.repeat((name, count)), count)

    def measure_size(self, _: None) -> int:
        """Bytes of the tables that hold the history, with their indexes."""
        size = sa.func.pg_total_relation_size(sa.column("oid"))
        tables = sa.text(self.side.relations).columns(sa.column("oid")).subquery()
        with self.side.engine.connect() as connection:
            return int(connection.scalars(sa.select(sa.func.sum(size)).select_from(tables)).one())


class Clients:
    """All client processes of one contender."""

    def __init__(self, name: str, url: str, *, count: int, server_pid: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._server_pid = server_pid
        self._pipes: list[Pipe] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (name, url, number == 0, theirs)
            process = context.Process(target=serve_client, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
            if number == 0:
                _receive(ours)
        for pipe in self._pipes[1:]:
            _receive(pipe)

    def take_turn(self, workload: str, seconds: float) -> Slice:
        """One turn of all clients at once."""
        return self._clock(Seat.work, (workload, seconds))

    def read_turn(self, rows: int, seconds: float) -> Slice:
        """One turn of reading histories."""
        return self._clock(Seat.read, (rows, seconds))

    def ask(self, job: Callable[[Seat, Any], Any], argument: Any) -> Any:
        """Let the first client do something, and return what it answers."""
        self._pipes[0].send((job.__name__, argument))
        return _receive(self._pipes[0])

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            # One that failed is gone, and its error was raised where it was asked.
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in self._processes:
            process.join()

    def _clock(self, job: Callable[[Seat, Any], Slice], argument: Any) -> Slice:
        before = read_server_seconds(self._server_pid)
        for pipe in self._pipes:
            pipe.send((job.__name__, argument))
        slices = [_receive(pipe) for pipe in self._pipes]
        after = read_server_seconds(self._server_pid)
        spent = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
        return join_clients(slices, spent if after else None)


def serve_client(name: str, url: str, first: bool, pipe: Pipe) -> None:  # noqa: FBT001 - a process's argument
    """Run a client process: prepare, report, and do what it is told until told to end."""
    try:
        side = CONTENDERS[name](url)
        if first:
            side.create()
        side.attach()
        with side.sessions.begin() as session:
            # Connect and bind before anything is measured.
            session.execute(sa.select(1))
        seat = Seat(side)
        pipe.send(None)
        while (order := pipe.recv()) is not None:
            job, argument = order
            pipe.send(getattr(seat, job)(argument))
        side.engine.dispose()
    except Exception as error:
        # The parent waits for an answer, and shall see why there is none.
        pipe.send(error if _is_plain(error) else RuntimeError(f"{type(error).__name__}: {error}"))
        raise


def read_server_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of the server's processes so far, by process id; empty where not known."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {}
    found = {}
    for child in map(int, children):
        try:
            # Nanoseconds on a processor; the usual counters only tell hundredths of a second.
            spent = Path(f"/proc/{child}/schedstat").read_text().split()[0]
        except OSError:
            continue  # a worker that has just ended
        found[child] = int(spent) / 1e9
    return found


def read_peak_bytes() -> int:
    """Peak of this process's resident memory.

    Not `ru_maxrss`: that one begins with what the parent had.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _take_turn(once: Callable[[], int], seconds: float) -> Slice:
    """Do something for some seconds, once at least; it returns the attempts that it took."""
    count = attempts = 0
    cpu = time.process_time()
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds or not count:
        attempts += once()
        count += 1
    spent = time.process_time() - cpu
    return Slice(count, count / elapsed, spent, vain=attempts - count)


def _receive(pipe: Pipe) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_plain(error: Exception) -> bool:
    return type(error) in {RuntimeError, ValueError, TypeError}
