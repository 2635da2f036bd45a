"""What clients of the soak do in one transaction: many ways to add one to some counters.

Each is a function of a session, to be run again as it is. Must not know journals, processes or
faults. The hard thing is that every way is correct by what the documentation promises for it, so
that a lost update is the product's fault and never the workload's: what reads before it writes
takes a ticket or a lock first, locks the row, or runs in a snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from oplog import Oplog
from tests.fault.counters import Counter, Member, Tally

READ_COMMITTED = "READ COMMITTED"
REPEATABLE_READ = "REPEATABLE READ"
SERIALIZABLE = "SERIALIZABLE"

HOT = range(1, 5)
LOCKED = range(11, 14)
"""Counters that everybody locks before reading; one who did not would be overrun."""
COLD = range(1_000, 6_000)
TEAMS = range(1, 4)
MEMBERS_OF_TEAM = 3


class AbandonedError(Exception):
    """A client thinks better of it."""


@dataclass(frozen=True)
class Bench:
    """What an operation works with."""

    log: Oplog
    session: Session
    draw: random.Random

    def choose(self) -> int:
        """A counter's id: mostly one that others want as well."""
        return self.draw.choice(HOT if self.draw.random() < 0.75 else COLD)

    def pause(self) -> None:
        """Stay in the transaction for a moment; the server sleeps."""
        seconds = self.draw.choice((0, 0, 0.001, 0.003))
        if seconds:
            self.session.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    def add_one(self, id: int, *, locking: bool = False) -> None:
        """Read a counter, think, write it."""
        counter = self.session.get(Counter, id, with_for_update=locking)
        self.pause()
        if counter is None:
            self.session.add(Counter(id=id, seen=0, value=1))
        else:
            counter.seen, counter.value = counter.value, counter.value + 1
        self.session.flush()


def take_ticket(bench: Bench) -> None:
    """Optimistic: a ticket before reading."""
    number = bench.choose()
    bench.log.take_ticket(bench.session, f"counter/{number}")
    bench.add_one(number)


def add_blindly(bench: Bench) -> None:
    """The database adds; nothing is read."""
    number = bench.choose()
    changed = bench.session.get(Counter, number)
    if changed is None:
        bench.session.add(Counter(id=number, seen=0, value=1))
    else:
        changed.seen = Counter.__table__.c.value
        changed.value = Counter.__table__.c.value + 1
    bench.session.flush()
    bench.pause()


def lock_row(bench: Bench) -> None:
    """SELECT FOR UPDATE."""
    bench.add_one(bench.choose(), locking=True)


def read_and_write(bench: Bench) -> None:
    """Nothing but the snapshot protects it."""
    bench.add_one(bench.choose())


def lock_aggregate(bench: Bench) -> None:
    """Pessimistic: `log.lock` before reading."""
    chosen = bench.draw.sample(LOCKED, bench.draw.choice((1, 1, 2)))
    bench.log.lock(bench.session, [f"counter/{number}" for number in chosen])
    for number in sorted(chosen):
        bench.add_one(number)


def write_several(bench: Bench) -> None:
    """Several aggregates, their rows locked in any order: deadlocks are to be expected."""
    for number in bench.draw.sample(HOT, bench.draw.choice((2, 2, 3))):
        bench.add_one(number, locking=True)
        bench.pause()


def join_team(bench: Bench) -> None:
    """Read the whole team, write one row of it that others may not touch."""
    team = bench.draw.choice(TEAMS)
    bench.log.take_ticket(bench.session, f"team/{team}")
    _score(bench, team)


def join_team_in_snapshot(bench: Bench) -> None:
    """The same without a ticket: the one taken at the flush must be of the snapshot."""
    _score(bench, bench.draw.choice(TEAMS))


def _score(bench: Bench, team: int) -> None:
    points = sa.select(sa.func.coalesce(sa.func.sum(Member.points), 0)).where(Member.team == team)
    seen = int(bench.session.execute(points).scalar_one())
    bench.pause()
    number = team * 100 + bench.draw.randrange(MEMBERS_OF_TEAM)
    member = bench.session.get(Member, number)
    if member is None:
        bench.session.add(Member(id=number, team=team, points=1, seen=seen, value=seen + 1))
    else:
        member.points, member.seen, member.value = member.points + 1, seen, seen + 1
    bench.session.flush()


def roll_back_savepoint(bench: Bench) -> None:
    """What a savepoint took back is not logged, and what is around it is."""
    kept, dropped, last = bench.draw.sample(HOT, 3)
    bench.add_one(kept, locking=True)
    savepoint = bench.session.begin_nested()
    bench.add_one(dropped, locking=True)
    savepoint.rollback()
    if bench.draw.random() < 0.5:
        with bench.session.begin_nested():
            bench.add_one(last, locking=True)


def abandon(bench: Bench) -> None:
    """A deliberate rollback."""
    bench.add_one(bench.choose(), locking=True)
    raise AbandonedError


def write_text(bench: Bench) -> None:
    """SQL text on a guarded table: only its guard sees what it does."""
    statement = sa.text(
        f"INSERT INTO {Tally.__tablename__} AS t VALUES (:id, 0, 1) "
        "ON CONFLICT (id) DO UPDATE SET seen = t.value, value = t.value + 1"
    )
    bench.session.execute(statement, {"id": bench.draw.choice(HOT)})
    bench.pause()


@dataclass(frozen=True)
class Kind:
    """A way to write, at the isolation level that makes it correct."""

    work: Callable[[Bench], None]
    isolation: str = READ_COMMITTED
    weight: int = 2


KINDS: Mapping[str, Kind] = {
    "ticket": Kind(take_ticket, weight=4),
    "ticket in snapshot": Kind(take_ticket, REPEATABLE_READ),
    "blind": Kind(add_blindly, weight=3),
    "row lock": Kind(lock_row),
    "repeatable": Kind(read_and_write, REPEATABLE_READ),
    "serializable": Kind(read_and_write, SERIALIZABLE),
    "lock": Kind(lock_aggregate, weight=3),
    "several": Kind(write_several, weight=4),
    "team": Kind(join_team, weight=3),
    "team repeatable": Kind(join_team_in_snapshot, REPEATABLE_READ),
    "team serializable": Kind(join_team_in_snapshot, SERIALIZABLE),
    "savepoint": Kind(roll_back_savepoint),
    "abandon": Kind(abandon, weight=1),
    "text": Kind(write_text, weight=3),
}
