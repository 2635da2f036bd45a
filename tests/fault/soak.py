"""The soak: clients and faults for some minutes, then judgement.

`python -m tests.fault.soak --minutes 10` is what `make soak` runs; tests run a short one. Holds
the course of a run and its summary. Must not know how faults are made. The hard thing is to
notice a run that proves nothing: paths that must be reached are listed, and one that was never
reached fails the run like a violation.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from oplog import Keyring, Outcome, Receipt
from oplog.testing import EmbeddedServer
from tests.fault import history
from tests.fault.client import Job
from tests.fault.counters import create_tables, make_log, read_state
from tests.fault.cutter import Cut, Cutter
from tests.fault.history import Account, History, Violation, judge
from tests.fault.journal import Journal, Journals
from tests.fault.nemesis import (
    CANCELLED,
    CLIENT_KILLED,
    SERVER_KILLED,
    TERMINATED,
    Run,
    Seat,
    count_fences,
)
from tests.fault.operations import KINDS
from tests.fault.planted import plant_in_database

CONTROLLER = "controller"
MUST_REACH = (
    "unknown",
    "resolved committed",
    "resolved aborted",
    "conflict",
    "deadlock",
    "serialization failure",
    "cancelled",
    "key repeated",
)
"""Paths without which a run proves nothing."""
EXPECTED_FAILURES = frozenset(
    {
        "AbandonedError",
        "CancelledError",
        "TicketConflictError",
        "IdempotencyConflictError",
        # The server went away or was shut off before COMMIT: any error without a state.
        "OperationalError",
        "OperationalError 40001",
        "OperationalError 40P01",
        "OperationalError 55P03",
        "OperationalError 57014",
        "OperationalError 57P01",
        "OperationalError 57P02",
        "OperationalError 57P03",
        "InterfaceError",
        "InternalError",
        # Two make the same row, each the first.
        "IntegrityError 23505",
    }
)
"""Definite failures that faults and competition explain; any other is a defect."""
MOST_CUTS = 200
"""Lost COMMITs after which a short run that has not reached a path gives up."""
SYNCHRONOUS = 4
ASYNCHRONOUS = 2


@dataclass(frozen=True)
class Setting:
    """How a run is furnished."""

    seed: int
    synchronous: int = SYNCHRONOUS
    asynchronous: int = ASYNCHRONOUS
    kinds: Sequence[str] = tuple(KINDS)
    limit: int = 0
    plant: str = ""


@contextmanager
def open_run(setting: Setting, directory: Path) -> Iterator[Run]:
    """A server with the tables, a proxy before it, and clients at work.

    Their journals, keys and error output are left in the directory.
    """
    with (
        EmbeddedServer(fsync=True, settings={"deadlock_timeout": "50ms"}) as server,
        Cutter(server.directory / ".s.PGSQL.5432") as cutter,
    ):
        keyring = directory / "keyring.json"
        Keyring.generate().save(keyring)
        engine = sa.create_engine(server.url, pool_pre_ping=True)
        create_tables(engine)
        if setting.plant:
            plant_in_database(engine, setting.plant)
        jobs = [
            _make_job(setting, number, server=server, cutter=cutter, directory=directory)
            for number in range(setting.synchronous + setting.asynchronous)
        ]
        run = Run(
            server=server,
            engine=engine,
            log=make_log(keyring),
            cutter=cutter,
            draw=random.Random(f"{setting.seed}/nemesis"),
            seats=[Seat(job) for job in jobs],
            journals=Journals(directory),
        )
        try:
            for seat in run.seats:
                seat.start()
            yield run
        finally:
            run.kill_clients()
            engine.dispose()


def _make_job(
    setting: Setting, number: int, *, server: EmbeddedServer, cutter: Cutter, directory: Path
) -> Job:
    options = "-c lock_timeout=10s"
    direct = make_url(server.url).update_query_dict({"options": options})
    through = direct.set(host="127.0.0.1", port=cutter.port).difference_update_query(["host"])
    through = through.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
    url = through if number % 2 else direct
    return Job(
        url=url.render_as_string(hide_password=False),
        direct_url=direct.render_as_string(hide_password=False),
        keyring=str(directory / "keyring.json"),
        directory=str(directory),
        number=number,
        incarnation=0,
        seed=setting.seed,
        kinds=list(setting.kinds),
        asynchronous=number >= setting.synchronous,
        limit=setting.limit,
        plant=setting.plant,
    )


# -- courses ------------------------------------------------------------------------------------


def run_short(run: Run) -> None:
    """Every fault at least once, each under load; ends when every path was reached."""
    run.await_acknowledged(60)
    # Late more than once: a lost COMMIT must be asked about while it is still on its way.
    for cut in (*Cut, Cut.LATE, Cut.LATE):
        before = run.cutter.done[cut]
        run.cut(cut)
        run.await_progress(lambda: run.cutter.done[cut] > before, f"cut: {cut.value}")  # noqa: B023 - at once
    for _ in range(2):
        run.await_acknowledged(40)
        run.kill_server()
        run.await_acknowledged(20)
        run.kill_client()
        run.terminate_session()
        run.cancel_statement()
    for _ in range(MOST_CUTS):
        if not list_unreached(run.journals):
            return
        # A lost COMMIT under a key is retried by the product: then another is needed.
        run.cut_anyhow()
        run.await_acknowledged(10)


def run_long(run: Run, *, minutes: float) -> None:
    """Faults at random until the time is over."""
    end = time.monotonic() + minutes * 60
    told = time.monotonic()
    faults = {
        run.kill_server: 2,
        run.kill_client: 2,
        run.terminate_session: 4,
        run.cancel_statement: 4,
        run.cut_anyhow: 8,
    }
    while time.monotonic() < end:
        run.await_acknowledged(run.draw.randint(5, 100))
        (fault,) = run.draw.choices(list(faults), list(faults.values()))
        fault()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            tell_progress(run, left=end - told)


def tell_progress(run: Run, *, left: float) -> None:
    """A line on stderr."""
    counts = run.journals.counts
    print(  # noqa: T201 - what a program is for
        f"{max(0, left):5.0f} s left: {counts[history.ACKNOWLEDGED]} acknowledged, "
        f"{run.done[SERVER_KILLED]} kills of the server, {counts[history.UNKNOWN]} unknown",
        file=sys.stderr,
        flush=True,
    )


# -- judgement ----------------------------------------------------------------------------------


def resolve_all(run: Run) -> None:
    """Ask about every outcome that nobody was told, and again about those that somebody asked.

    All clients are gone: whatever is not known now never will be.
    """
    run.journals.catch_up()
    with Journal(run.journals.directory / f"{CONTROLLER}.jsonl") as journal:
        for operation, account in History(run.journals.events).accounts.items():
            for question, receipts in _list_questions(account):
                outcome = run.log.resolve(question, run.engine, wait_seconds=10.0)
                journal.say(history.RESOLVED, operation, receipts=receipts, verdict=outcome.name)
                if outcome is Outcome.PENDING:
                    run.complaints.append(f"{operation} is pending and all clients are gone")


def _list_questions(account: Account) -> Iterator[tuple[str | list[Receipt], list[Receipt]]]:
    if account.end is not None and account.end.what != history.UNKNOWN:
        return
    if account.end is not None and account.end.receipts:
        receipts = [
            Receipt(UUID(p.record_id), p.aggregate, p.version, bytes.fromhex(p.record_hash))
            for p in account.end.receipts
        ]
        yield receipts, receipts
    if account.invoked.key is not None:
        yield account.invoked.key, []


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    violations: list[Violation]
    complaints: list[str]
    unreached: list[str]
    counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and what was to be reached was."""
        return not (self.violations or self.complaints or self.unreached)

    def __str__(self) -> str:
        lines = [f"{name:24} {count:>9}" for name, count in self.counts.items()]
        lines += [f"VIOLATION {violation}" for violation in self.violations[:30]]
        lines += [f"COMPLAINT {complaint}" for complaint in self.complaints[:30]]
        lines += [f"NEVER REACHED {path}" for path in self.unreached]
        return "\n".join(lines)


def conclude(run: Run) -> Verdict:
    """Judge a run whose clients have ended."""
    run.journals.catch_up()
    unreached = list_unreached(run.journals)
    resolve_all(run)
    run.journals.catch_up()
    state = read_state(run.log, run.engine, earlier=run.earlier)
    violations = judge(run.journals.events, state)
    wrong = len({v.where for v in violations if v.law == "verdicts"})
    reached = count_reached(run.journals)
    counts = run.journals.counts
    return Verdict(
        violations=violations,
        complaints=run.complaints + list_unexpected(run),
        unreached=unreached,
        counts={
            "operations": counts[history.INVOKED],
            "acknowledged": counts[history.ACKNOWLEDGED],
            "failed": counts[history.FAILED],
            SERVER_KILLED: run.done[SERVER_KILLED],
            CLIENT_KILLED: run.done[CLIENT_KILLED],
            TERMINATED: run.done[TERMINATED],
            CANCELLED: run.done[CANCELLED],
            "connections cut": run.cutter.done.total(),
            "unknown outcomes": reached["unknown"],
            "resolved": reached["resolved"],
            "resolved right": reached["resolved"] - wrong,
            "resolved committed": reached["resolved committed"],
            "resolved aborted": reached["resolved aborted"],
            "conflicts": reached["conflict"],
            "serialization failures": reached["serialization failure"],
            "deadlocks": reached["deadlock"],
            "cancelled tasks": reached["cancelled"],
            "fenced": count_fences(run.engine),
            "key repeats": reached["key repeated"],
            "entries": len(state.entries),
            "violations": len(violations),
        },
    )


def count_reached(journals: Journals) -> Counter[str]:
    """How often each path was walked so far."""
    reached = Counter(journals.notes)
    verdicts: dict[str, str] = {}
    for event in journals.events:
        reached["unknown"] += event.what == history.UNKNOWN
        if event.what == history.RESOLVED and event.verdict != history.PENDING:
            verdicts[event.operation] = f"resolved {str(event.verdict).lower()}"
    reached["resolved"] = len(verdicts)
    return reached + Counter(verdicts.values())


def list_unreached(journals: Journals) -> list[str]:
    """Paths that must be reached and were not; what the controller asks does not count."""
    reached = count_reached(journals)
    return [path for path in MUST_REACH if not reached[path]]


def list_unexpected(run: Run) -> list[str]:
    """Failures that neither faults nor competition explain."""
    failures = Counter(e.why for e in run.journals.events if e.what == history.FAILED)
    return [
        f"{count} operations failed with {why}"
        for why, count in failures.items()
        if why not in EXPECTED_FAILURES
    ]


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Clients and faults for some minutes.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed} (SEED={seed} repeats the draws)", flush=True)  # noqa: T201
    directory = Path(tempfile.mkdtemp(prefix="oplog-soak-"))
    with open_run(Setting(seed), directory) as run:
        try:
            run_long(run, minutes=arguments.minutes)
        except AssertionError as failure:
            # What there is can be judged all the same.
            run.complaints.append(str(failure))
        run.stop_clients()
        verdict = conclude(run)
    print(verdict, flush=True)  # noqa: T201
    if verdict.ok:
        shutil.rmtree(directory)
        return 0
    print(f"journals are kept in {directory}", flush=True)  # noqa: T201
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
