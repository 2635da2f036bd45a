"""A client process of the soak: does operations until it is told to stop, and keeps a journal.

Run as a program with a job as JSON. Must not judge, and must not know which faults there are. The
hard thing is honesty: what it writes down is what the product told it and nothing else. An error
that the product does not call unknown is a definite failure, and the checker will hold it to that.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Event, Outcome, Receipt, WorkRetried
from oplog.errors import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    OplogError,
    TicketConflictError,
)
from tests.fault.counters import OPERATION, make_log
from tests.fault.history import ACKNOWLEDGED, FAILED, INVOKED, RESOLVED, UNKNOWN
from tests.fault.journal import Journal
from tests.fault.operations import (
    KINDS,
    READ_COMMITTED,
    REPEATABLE_READ,
    SERIALIZABLE,
    AbandonedError,
    Bench,
    Kind,
)
from tests.fault.planted import plant_in_client

REACHED_BY_STATE = {
    "40P01": "deadlock",
    "40001": "serialization failure",
    "57014": "statement cancelled",
    "57P01": "session terminated",
}
AWAY_SECONDS = 0.1
"""Between two tries while the server is away."""
MOST_PENDING = 3
"""Unknown outcomes after which a client asks before it goes on."""
LANES = 3
"""Tasks of an asynchronous client."""


@dataclass(frozen=True)
class Job:
    """What a client is told. `limit` is a number of operations, 0 for as many as there is time."""

    url: str
    direct_url: str
    """Of the same server, for asking about outcomes: not through the proxy."""
    keyring: str
    directory: str
    number: int
    incarnation: int
    seed: int
    kinds: list[str]
    asynchronous: bool = False
    limit: int = 0
    plant: str = ""

    @property
    def name(self) -> str:
        """Tells this process from all others of the run, its own successors included."""
        return f"{self.number}.{self.incarnation}"


@dataclass
class Plan:
    """An operation before it is tried. With `run`, the product tries again after conflicts."""

    operation: str
    kind: Kind
    runs: bool
    key: str | None = None
    request: str | None = None
    receipts: list[Receipt] = field(default_factory=list)
    """What a session was given that is not closed yet."""


@dataclass
class Lost:
    """An operation whose outcome the product could not tell."""

    plan: Plan
    receipts: list[Receipt]


@dataclass
class Client:
    """What synchronous and asynchronous clients have in common."""

    job: Job
    journal: Journal
    lost: list[Lost] = field(default_factory=list)
    done: int = 0
    keyed: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.job.seed}/{self.job.name}")
        self.log = make_log(Path(self.job.keyring), on_event=self.on_event)
        self.parent = os.getppid()
        self.asking = sa.create_engine(self.job.direct_url, pool_size=1, pool_pre_ping=True)
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())

    @property
    def goes_on(self) -> bool:
        """There is more to do: nobody said stop, and the controller lives."""
        limited = 0 < self.job.limit <= self.done
        return not (self.stopping.is_set() or limited or os.getppid() != self.parent)

    def open_engine(self, engine: Any) -> dict[str, Any]:
        """The engine at each isolation level, noting what goes wrong on it."""
        event.listen(getattr(engine, "sync_engine", engine), "handle_error", self.on_error)
        return {
            level: engine.execution_options(isolation_level=level)
            for level in (READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE)
        }

    def on_error(self, context: Any) -> None:
        """Note which path of Postgres was reached."""
        state = getattr(context.original_exception, "sqlstate", None)
        if state in REACHED_BY_STATE:
            self.journal.note(REACHED_BY_STATE[state])

    def on_event(self, event: Event) -> None:
        """Note what `run` takes care of by itself."""
        if isinstance(event, WorkRetried):
            self.journal.note(f"retried {event.reason}")
            if event.reason == TicketConflictError.__name__:
                self.journal.note("conflict")

    # -- one operation ----------------------------------------------------------------------

    def draw_plan(self) -> Plan:
        """What to do next. Two neighbours go through the same keys, and so use some twice."""
        names = self.job.kinds
        name = self.draw.choices(names, [KINDS[name].weight for name in names])[0]
        self.done += 1
        plan = Plan(f"{self.job.name}.{self.done}", KINDS[name], self.draw.random() < 0.5)
        if self.draw.random() < 0.15:
            self.keyed += 1
            plan.key = f"{self.job.number // 2}/{self.job.incarnation}/{self.keyed}"
            plan.request = "other" if self.draw.random() < 0.1 else "same"
        return plan

    def begin(self, plan: Plan) -> None:
        """Write the plan down before anything of it happens."""
        self.journal.say(INVOKED, plan.operation, key=plan.key, request=plan.request)

    def claim(self, session: Session, plan: Plan) -> list[Receipt]:
        """Take the plan's key, if it has one: receipts where somebody had it before."""
        if plan.key is None:
            return []
        request = plan.request or ""
        return self.log.annotate(session, idempotency_key=plan.key, idempotency_request=request)

    def work(self, session: Session, plan: Plan) -> None:
        """The operation itself."""
        self.log.annotate(session, **{OPERATION: plan.operation})
        plan.kind.work(Bench(self.log, session, self.draw))

    def acknowledge(self, plan: Plan, receipts: list[Receipt], *, worked: bool) -> None:
        """The product said that it is committed."""
        if not worked:
            self.journal.note("key repeated")
        self.journal.say(ACKNOWLEDGED, plan.operation, receipts=receipts)

    def conclude(self, plan: Plan, error: BaseException) -> None:
        """Write down what the product said went wrong."""
        if isinstance(error, asyncio.CancelledError):
            self.journal.note("cancelled")
        if isinstance(error, CommitOutcomeUnknownError):
            self.journal.say(UNKNOWN, plan.operation, receipts=error.receipts)
            self.lost.append(Lost(plan, error.receipts))
            return
        if isinstance(error, TicketConflictError):
            self.journal.note("conflict")
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        self.journal.say(
            FAILED, plan.operation, why=f"{type(error).__name__} {state or ''}".strip()
        )

    # -- unknown outcomes -------------------------------------------------------------------

    def draw_question(self, lost: Lost) -> str | list[Receipt]:
        """By key or by receipts, where there are both."""
        by_key = lost.plan.key is not None and (not lost.receipts or self.draw.random() < 0.5)
        return lost.plan.key if by_key and lost.plan.key is not None else lost.receipts

    def note_verdict(self, lost: Lost, question: str | list[Receipt], outcome: Outcome) -> None:
        """Write down what the resolver said."""
        receipts = [] if isinstance(question, str) else question
        self.journal.say(RESOLVED, lost.plan.operation, receipts=receipts, verdict=outcome.name)
        if outcome is not Outcome.PENDING:
            self.lost.remove(lost)

    def must_ask(self) -> bool:
        """Some questions are put at once, others while more happens."""
        return len(self.lost) > MOST_PENDING or bool(self.lost and self.draw.random() < 0.5)


class BlockingClient(Client):
    """One session at a time."""

    def run(self) -> None:
        """Operations, then the last questions."""
        engine = sa.create_engine(self.job.url, pool_size=1)
        sessions = {}
        for level, at_level in self.open_engine(engine).items():
            sessions[level] = sessionmaker(at_level)
            self.log.attach(sessions[level])
        plant_in_client(self.job.plant)
        while self.goes_on:
            self.try_once(self.draw_plan(), sessions)
            if self.must_ask():
                self.ask()
        while self.lost and os.getppid() == self.parent:
            self.ask()

    def try_once(self, plan: Plan, sessions: dict[str, sessionmaker[Session]]) -> None:
        """One operation, and what became of it."""
        self.begin(plan)
        held: list[Session] = []
        try:
            receipts = self.execute(plan, sessions[plan.kind.isolation], held)
        except (AbandonedError, OplogError, DBAPIError) as error:
            self.conclude(plan, error)
            if getattr(error, "connection_invalidated", False) or is_away(error):
                self.stopping.wait(AWAY_SECONDS)
        else:
            self.acknowledge(plan, receipts, worked=bool(held))

    def execute(
        self, plan: Plan, sessions: sessionmaker[Session], held: list[Session]
    ) -> list[Receipt]:
        """Do it; `held` gets the session if the work was begun."""

        def work(session: Session) -> None:
            held[:] = [session]
            self.work(session, plan)

        if plan.runs:
            found = self.log.run(
                sessions,
                work,
                retries=8,
                idempotency_key=plan.key,
                idempotency_request=plan.request,
            )
            return list(found) if plan.key is not None and found else self.log.receipts(held[0])
        with sessions.begin() as session:
            first = self.claim(session, plan)
            if first:
                return first
            work(session)
        return self.log.receipts(session)

    def ask(self) -> None:
        """Put every open question."""
        for lost in list(self.lost):
            question = self.draw_question(lost)
            try:
                outcome = self.log.resolve(question, self.asking, wait_seconds=2.0)
            except DBAPIError:
                self.stopping.wait(AWAY_SECONDS)
                return
            self.note_verdict(lost, question, outcome)


def describe(error: BaseException) -> str:
    """The error's kind, as far as the controller tells expected ones from others by it."""
    name = type(error).__name__
    if isinstance(error, DBAPIError):
        return f"{name} {getattr(error.orig, 'sqlstate', None) or ''}".strip()
    if isinstance(error, ConfigurationError):
        return f"{name}: {error}"
    return name


def is_away(error: BaseException) -> bool:
    """No connection was to be had."""
    orig = getattr(error, "orig", None)
    return orig is not None and getattr(orig, "sqlstate", None) is None


def main() -> None:
    """Do the job given as the only argument."""
    warnings.simplefilter("error")
    job = Job(**json.loads(sys.argv[1]))
    with Journal(Path(job.directory) / f"{job.name}.jsonl") as journal:
        if job.asynchronous:
            from tests.fault.async_client import AsyncClient  # noqa: PLC0415 - it builds on this

            asyncio.run(AsyncClient(job, journal).run())
        else:
            BlockingClient(job, journal).run()


if __name__ == "__main__":
    main()
