"""One run: processes in any order, and whatever may happen between their steps.

Draws everything from the seed, so that a run can be repeated. The hard thing is to reach the
rare orders: each run has its own likelihoods, some of them nought, and processes are stopped for
ages and wake up again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.model.collection import collect, pin, read, scribble
from tests.model.invariants import Judge, demand
from tests.model.postgres import Server
from tests.model.rules import Rules
from tests.model.values import Path
from tests.model.worker import Worker
from tests.model.world import Faults, Process, Request, World

PRESSURES: dict[str, dict[str, float]] = {
    "": {},
    "heads": {
        "work": 8.0,
        "collect": 4.0,
        "stop": 6.0,
        "resume": 0.6,
        "land": 1.0,
        "promote": 0.0,
        "fail": 0.0,
        "pin": 0.0,
        "crash": 0.0,
        "step": 100.0,
    },
    "echoes": {
        "work": 8.0,
        "collect": 3.0,
        "stop": 6.0,
        "resume": 1.0,
        "land": 0.6,
        "promote": 0.0,
        "fail": 0.0,
        "pin": 0.0,
        "crash": 0.0,
        "step": 100.0,
    },
    "snapshots": {
        "begin": 10.0,
        "finish": 10.0,
        "work": 0.8,
        "collect": 3.0,
        "stop": 0.5,
        "resume": 1.0,
        "crash": 0.2,
        "promote": 0.1,
        "fail": 0.0,
        "pin": 0.0,
        "read": 0.2,
        "step": 120.0,
    },
    "pins": {"pin": 5.0, "collect": 4.0, "stop": 3.0, "resume": 2.0, "step": 80.0},
}
STEPS = 700
MOST_PROCESSES = 6
LIKELIHOODS: dict[str, tuple[float, ...]] = {
    "begin": (4.0, 8.0),
    "finish": (6.0, 10.0),
    "work": (2.0, 5.0),
    "promote": (0.0, 0.5, 1.5),
    "fail": (0.0, 0.0, 1.0),
    "collect": (0.0, 2.0, 6.0),
    "pin": (0.0, 0.0, 1.0),
    "read": (0.5, 2.0),
    "scribble": (0.0, 0.5),
    "crash": (0.0, 1.0, 3.0),
    "stop": (0.0, 2.0, 5.0),
    "resume": (0.2, 1.0, 4.0),
    "land": (0.5, 2.0, 5.0),
    "step": (60.0, 120.0),
}


class Run:
    """A world with its processes. `trace` is called with every step, for a person to read."""

    def __init__(
        self, seed: int, rules: Rules, *, trace: Callable[[str], None] | None = None
    ) -> None:
        self.world = World(rules, seed)
        self.rules = rules
        self.judge = Judge(self.world)
        self.trace = trace
        self.processes: dict[str, Process[None]] = {}
        self.answers: dict[str, Any] = {}
        self.stopped: dict[str, Process[None]] = {}
        self.started = 0
        self.eager = 0.0
        self.steps: Counter[str] = Counter()

    def go(self) -> Counter[str]:
        """Play the run to its end; what was reached, counted. Raises `Violation`."""
        random = self.world.random
        odds = {name: random.choice(choices) for name, choices in LIKELIHOODS.items()}
        odds |= PRESSURES[self.rules.pressure]
        if not self.rules.failovers:
            odds["promote"] = odds["fail"] = 0.0
        if self.rules.collect == "never":
            odds["collect"] = odds["pin"] = 0.0
        if self.rules.forgers:
            odds |= {"forge": 1.5, "clean": 3.0, "rotate": 0.3}
        self.eager = random.choice((0.2, 0.5, 0.8))
        quiet = random.random() < 0.1
        self.world.faults = Faults() if quiet else Faults(0.05, 0.04, 0.03, 0.02)
        if self.rules.pressure == "echoes":
            self.world.faults = Faults(0.1, 0.0, 0.6, 0.0, heads_only=True)
        names = list(odds)
        for action in random.choices(names, weights=list(odds.values()), k=STEPS):
            getattr(self, f"_{action}")()
        if self.rules.promise == "all":
            self._settle()
        self.steps.update(self.judge.counts)
        return self.steps

    def _say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(text)

    # -- Postgres ---------------------------------------------------------------------------

    def _pick_server(self) -> Server:
        random = self.world.random
        return random.choice(self.world.servers) if random.random() < 0.25 else self.world.primary

    def _begin(self) -> None:
        self._pick_server().begin()

    def _finish(self) -> None:
        random = self.world.random
        self._pick_server().finish(random.random(), commit=random.random() < 0.85)

    def _promote(self) -> None:
        """A standby takes over; now and then two do, from one primary, to one timeline."""
        world = self.world
        old = world.primary
        if len(world.servers) > 1 and world.random.random() < 0.2:
            old, timeline = world.servers[-2], world.primary.timeline
        else:
            timeline = world.primary.timeline + 1
        world.primary = old.promote(timeline=timeline, lost=world.random.randrange(0, 6))
        world.servers.append(world.primary)
        self._say(f"promote: timeline {timeline}, {len(world.primary.read().records)} records")

    def _fail(self) -> None:
        """A crash and a restart: commits that were not flushed are gone, the timeline stays."""
        server = self._pick_server()
        server.lose(self.world.random.randrange(0, 3))
        self._say(f"server crash: {len(server.read().records)} records left")

    # -- somebody who may write to the store, and has no key of today ------------------------

    def _forge(self) -> None:
        """A head after the newest: nothing ever was, and everything is garbage."""
        world, newest = self.world, self.judge.newest
        if newest is None:
            return
        stolen = newest.replaced and world.random.random() < 0.5
        forged = newest._replace(
            number=newest.number + 1,
            nonce=world.draw_nonce(),
            previous=world.table.digest(newest),
            writer="forger",
            sequence=0,
            chain=world.table.empty_chain,
            levels=(),
            types=None,
            snapshots=(),
            horizon=1 << 60,
            key=world.random.choice(newest.replaced) if stolen else 0,
            replaced=(),
        )
        digest = world.table.digest(forged)
        world.forged.add(digest)
        self._say(f"forged: head {forged.number}, key {forged.key}")
        world.land(Request("create", Path("HEAD", forged.number), digest))
        self.judge.look()

    def _clean(self) -> None:
        """The operator removes heads that are forged."""
        named = self.world.store.named
        for path in [
            one for one in named if one.kind == "HEAD" and named[one] in self.world.forged
        ]:
            self._say(f"removed: forged head {path.order}")
            self.world.land(Request("delete", path))
        self.judge.look()

    def _rotate(self) -> None:
        self.world.key += 1

    # -- processes --------------------------------------------------------------------------

    def _start(self, kind: str, process: Process[None]) -> None:
        if len(self.processes) >= MOST_PROCESSES:
            return
        self.started += 1
        name = f"{kind}{self.started}"
        self.processes[name] = process
        self.answers[name] = None

    def _work(self) -> None:
        server = self._pick_server()
        worker = Worker(self.world, name=f"w{self.started}", server=server, eager=self.eager)
        self._start("worker", worker.run(self.world.random.randrange(1, 20)))

    def _collect(self) -> None:
        self._start("collector", collect(self.world))

    def _pin(self) -> None:
        self._start("pinner", pin(self.world))

    def _read(self) -> None:
        self._start("reader", read(self.world))

    def _scribble(self) -> None:
        self._start("scribbler", scribble(self.world))

    def _crash(self) -> None:
        if self.processes:
            name = self.world.random.choice(list(self.processes))
            self._say(f"{name}: crash")
            del self.processes[name]

    def _stop(self) -> None:
        if self.processes and len(self.stopped) < MOST_PROCESSES:
            name = self.world.random.choice(list(self.processes))
            self._say(f"{name}: stopped")
            self.stopped[name] = self.processes.pop(name)

    def _resume(self) -> None:
        if self.stopped:
            name = self.world.random.choice(list(self.stopped))
            self._say(f"{name}: goes on")
            self.processes[name] = self.stopped.pop(name)

    def _land(self) -> None:
        late = self.world.late
        if late:
            request = late.pop(self.world.random.randrange(len(late)))
            self._say(f"late: {request}")
            self.world.land(request)
            self.judge.look()

    def _step(self) -> None:
        if self.processes:
            self._advance(self.world.random.choice(list(self.processes)))

    def _advance(self, name: str) -> bool:
        """One step of a process; false when it has ended."""
        try:
            step, operation = self.processes[name].send(self.answers[name])
        except StopIteration:
            del self.processes[name]
            self.judge.look()
            return False
        self.judge.look()
        answer = self.world.answer(operation)
        self.answers[name] = answer
        self.steps[step] += 1
        if self.trace is not None:
            what = operation if operation[0] in {"get", "list", "put", "create", "delete"} else ""
            self._say(f"{name}: {step} {what} -> {answer}")
        self.judge.look()
        return True

    # -- the end ----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Faults stop: one fresh worker must bring the archive up to date, and then be idle."""
        world = self.world
        self.processes.clear()
        self._clean()
        world.faults = Faults()
        if world.random.random() < 0.5:
            while world.late:
                self._land()
        worker = self._finish_with("last", passes=6)
        if worker.refused:
            self.steps["refused"] += 1
            return
        newest = self.judge.newest
        published = set(world.table.history(newest.chain)) if newest else set()
        demand(published == world.primary.list_uids(), "I8 a fresh worker does not converge")
        if newest:
            row = world.primary.row
            told = (row.sequence, row.chain) == (newest.sequence, newest.chain)
            demand(told, "I8 what is published is not acknowledged in the end")
        before = world.store.mutations
        self._finish_with("idle", passes=1)
        demand(world.store.mutations == before, "I9 a pass with nothing new wrote something")

    def _finish_with(self, name: str, *, passes: int) -> Worker:
        worker = Worker(self.world, name=name, server=self.world.primary, eager=0.0)
        self.processes[name], self.answers[name] = worker.run(passes), None
        while self._advance(name):
            pass
        return worker
