"""A publisher that dies, or loses an answer, at every single request: C01-C05, C11, C12.

Each pass is repeated from the same state with one fault after the other, then a new process goes
on. What is published in the end is, to the byte, what an undisturbed run publishes; and whoever
reads meanwhile finds everything that the newest head names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from oplog import ArchiveStepDone, Event, Oplog
from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.index import FANOUT
from oplog.archive.objectstore.memory import Call as MemoryCall
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.step import Step
from oplog.errors import StoreUnavailableError
from oplog.store import StoredRecord
from oplog.sync.exporter import Exporter
from tests.concurrency.workload import Customer, Invoice, Member
from tests.databases import FreshDatabase
from tests.faulty_store import (
    DELAY,
    KILL_AFTER,
    KILL_BEFORE,
    LOSE_ANSWER,
    LOSE_REQUEST,
    Fault,
    FaultyStore,
    Killed,
)
from tests.logged import LoggedDatabase
from tests.published import (
    add_customers,
    check_archive,
    check_whole,
    choose_log,
    copy_objects,
    fill_store,
    list_reachable,
    open_fresh,
    open_workload,
    read_log,
)
from tests.sampling import Sample

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

WRITES = {"create", "put", "delete"}
FAULTS = 1
"""Requests drawn for each kind of fault."""
SMALL = 300
"""Sealed bytes of a segment: two or three records."""


@dataclass(frozen=True)
class State:
    """Everything that a process which begins now can know."""

    objects: dict[str, bytes]
    rows: list[str]


@dataclass(frozen=True)
class Scene:
    """A log, and what of it is published before the pass that is disturbed."""

    logged: LoggedDatabase
    before: State
    page_entries: int
    reach: Callable[[Archive, Head], bool] = lambda _archive, _head: True
    """What the pass must lead to, for the scene to be worth anything."""

    def make_exporter(self, store: ObjectStore, log: Oplog | None = None) -> Exporter:
        return (log or self.logged.log).make_exporter(
            open_fresh(store), page_entries=self.page_entries, segment_bytes=SMALL
        )

    def reset(self) -> MemoryStore:
        """The state before the pass; objects of its own."""
        with self.logged.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM oplog.oplog_archive")
            for row in self.before.rows:
                connection.exec_driver_sql(
                    "INSERT INTO oplog.oplog_archive SELECT (%s::oplog.oplog_archive).*", (row,)
                )
        return fill_store(self.before.objects)

    def save(self, store: ObjectStore) -> State:
        with self.logged.engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT (a)::text FROM oplog.oplog_archive a")
            return State(copy_objects(store), list(rows.scalars()))


def add(*rows: object) -> Callable[[Session], None]:
    return lambda session: session.add_all(rows)


def write(logged: LoggedDatabase, *works: Callable[[Session], None]) -> None:
    for work in works:
        with logged.sessions.begin() as session:
            work(session)


def begin(logged: LoggedDatabase) -> list[Callable[[], None]]:
    """A first pass."""
    return [lambda: None, lambda: add_customers(logged, 1, 3)]


def fill_node(logged: LoggedDatabase) -> list[Callable[[], None]]:
    """A later pass, in which a node of the index becomes full and one more segment follows."""
    return [
        lambda: add_customers(logged, 1, FANOUT - 1),
        lambda: add_customers(logged, 20, 21),
    ]


def change_types(logged: LoggedDatabase) -> list[Callable[[], None]]:
    """A later pass that finds types that were not there before."""
    return [
        lambda: add_customers(logged, 1, 3),
        lambda: write(
            logged,
            add(Invoice(id=1, customer_id=1, amount=1)),
            add(Member(id=1, team="a", points=2), Member(id=2, team="b", points=3)),
        ),
    ]


def grow(logged: LoggedDatabase) -> list[Callable[[], None]]:
    """A record that is larger than a page and larger than five segments, among others."""

    def work() -> None:
        add_customers(logged, 4, 4)
        # Names that do not compress.
        names = {n: sha256(b"%d" % n).hexdigest() for n in range(10, 70)}
        write(logged, add(*(Customer(id=n, name=name) for n, name in names.items())))
        add_customers(logged, 80, 81)

    return [lambda: add_customers(logged, 1, 3), work]


Script = Callable[[LoggedDatabase], list[Callable[[], None]]]
Reach = Callable[[Archive, Head], bool]
SCRIPTS: dict[str, tuple[Script, int, Reach]] = {
    "first pass": (begin, 2, lambda _, head: head.number == 2),
    "a node becomes full": (fill_node, 1, lambda _, head: len(head.levels) == 2),
    "new types": (change_types, 2, lambda _, head: head.types is not None and head.types.types > 1),
    "a huge record": (
        grow,
        4,
        lambda archive, head: any(
            record.sealed_bytes > 5 * SMALL and len(record.aggregates) > 4
            for record in read_log(archive, head)
        ),
    ),
}


@pytest.fixture
def logged(fresh_database: FreshDatabase) -> LoggedDatabase:
    return open_workload(fresh_database)


@pytest.fixture(params=SCRIPTS)
def scene(request: pytest.FixtureRequest, logged: LoggedDatabase) -> Scene:
    script, page_entries, reach = SCRIPTS[request.param]
    earlier, now = script(logged)
    earlier()
    store = MemoryStore("test")
    start = Scene(logged, State({}, []), page_entries)
    start.make_exporter(store).publish_all(logged.engine)
    before = start.save(store)
    now()
    return Scene(logged, before, page_entries, reach)


@dataclass(frozen=True)
class Undisturbed:
    """What a run without faults leads to."""

    log: dict[str, bytes]
    sequence: int
    chain: bytes
    records: list[StoredRecord]
    calls: list[tuple[int, str]]


def run_undisturbed(scene: Scene) -> Undisturbed:
    """Raises no fault, and does what the scene is for."""
    store = FaultyStore(scene.reset())
    scene.make_exporter(store).publish_all(scene.logged.engine)
    calls = [(call.number, call.operation) for call in store.calls]
    head = check_archive(store.inner, scene.logged.engine)
    assert scene.reach(open_fresh(store.inner), head)
    log = choose_log(copy_objects(store.inner))
    # Nothing was put that is not used.
    assert log == list_reachable(open_fresh(store.inner), head)
    records = read_log(open_fresh(store.inner), head)
    return Undisturbed(log, head.sequence, head.chain, records, calls)


def finish(scene: Scene, store: MemoryStore, expected: Undisturbed) -> None:
    """A new process goes on; then everything is as if nothing had happened."""
    published = check_whole(store)
    assert published == expected.records[: len(published)]
    scene.make_exporter(store).publish_all(scene.logged.engine)
    head = check_archive(store, scene.logged.engine)
    assert (head.sequence, head.chain) == (expected.sequence, expected.chain)
    assert choose_log(copy_objects(store)) == expected.log
    check_receipt(scene, head)
    check_idle(scene, store)


def check_receipt(scene: Scene, head: Head) -> None:
    """The database knows what is published, also where a process died before it said so."""
    with scene.logged.engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT head, sequence, chain FROM oplog.oplog_archive WHERE archive_id = %s",
            (head.archive_id,),
        ).one()
    assert tuple(row) == (head.number, head.sequence, head.chain)


def check_idle(scene: Scene, store: MemoryStore) -> None:
    """Another pass, in another process, writes nothing anywhere."""
    before = scene.save(store)
    watched = FaultyStore(store)
    report = scene.make_exporter(watched).publish_all(scene.logged.engine)
    assert (report.entries, report.segments, report.bytes) == (0, 0, 0)
    assert {call.operation for call in watched.calls} <= {"get", "head", "list"}
    assert scene.save(store) == before


def choose_faults(operation: str, before: str) -> list[Fault]:
    # A read changes nothing: a death after it is one before whatever comes next. And between a
    # write and the next one nothing changes but the database, which happens before a read.
    kill = [KILL_BEFORE] if (operation in WRITES) != (before in WRITES) else []
    if operation in WRITES:
        return [*kill, KILL_AFTER, LOSE_ANSWER, LOSE_REQUEST, DELAY]
    return [*kill, LOSE_ANSWER]


@pytest.mark.sampled
def test_a_fault_at_every_request(scene: Scene, sample: Sample) -> None:
    expected = run_undisturbed(scene)
    assert {operation for _, operation in expected.calls} >= {"get", "create", "put"}
    every: dict[Fault, list[int]] = {}
    for (_, before), (number, operation) in pairwise([(0, ""), *expected.calls]):
        for fault in choose_faults(operation, before):
            every.setdefault(fault, []).append(number)
    assert set(every) == {KILL_BEFORE, KILL_AFTER, LOSE_ANSWER, LOSE_REQUEST, DELAY}
    assert len(every[LOSE_ANSWER]) == len(expected.calls)
    for fault, numbers in every.items():
        for number in sample(numbers, FAULTS, what=str(fault)):
            break_once(scene, expected, number, fault=fault)


def break_once(scene: Scene, expected: Undisturbed, number: int, *, fault: Fault) -> None:
    """A pass with a fault at one request, and what must come of it."""
    inner = scene.reset()
    store = FaultyStore(inner, {number: fault})
    exporter = scene.make_exporter(store)
    with suppress(Killed, StoreUnavailableError):
        exporter.publish_all(scene.logged.engine)
    if not store.dead:
        # The same process tries again, as the worker does.
        exporter.publish_all(scene.logged.engine)
    assert len(store.calls) >= number, f"call {number} was never made"
    finish(scene, inner, expected)
    if store.land():
        # A request of the process that is no more arrives only now.
        finish(scene, inner, expected)


def test_readers_find_everything_at_every_moment(scene: Scene) -> None:
    inner = scene.reset()
    seen: list[int] = []

    def look(call: MemoryCall) -> None:
        if call.done and call.operation in WRITES:
            seen.append(len(check_whole(inner)))

    inner.on_call = look
    scene.make_exporter(inner).publish_all(scene.logged.engine)
    inner.on_call = lambda _: None
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    # A record is never seen in part: `check_whole` would have found that.
    check_archive(inner, scene.logged.engine)


# -- the database goes away -----------------------------------------------------------------


def end_sessions(url: sa.URL) -> None:
    """Kill every other session of the database."""
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class Interrupter:
    """Kills the publishing session when the n-th step is done."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.steps: list[str] = []
        self._url = engine.url
        self._number = number

    def __call__(self, event: Event) -> None:
        if isinstance(event, ArchiveStepDone):
            self.steps.append(event.step)
            if len(self.steps) == self._number:
                end_sessions(self._url)


def interrupt(scene: Scene, inner: MemoryStore, number: int) -> tuple[list[str], list[str | None]]:
    """Steps of a pass whose session ended after one of them, and what it failed with.

    The worker that lost its session has tried again afterwards.
    """
    interrupter = Interrupter(scene.logged.engine, number)
    log = Oplog(scene.logged.log.catalog, plaintext=True, on_event=interrupter)
    exporter = scene.make_exporter(inner, log)
    failures: list[str | None] = []
    try:
        exporter.publish_all(scene.logged.engine)
    except DBAPIError as error:
        failures.append(getattr(error.orig, "sqlstate", None))
    steps = list(interrupter.steps)
    exporter.publish_all(scene.logged.engine)
    return steps, failures


@pytest.mark.sampled
def test_the_session_ends_at_every_step(scene: Scene, sample: Sample) -> None:
    """C03, C04 as well: the head is there, and the row in the database is not."""
    expected = run_undisturbed(scene)
    every: dict[str, list[int]] = {}
    for number, step in enumerate(interrupt(scene, scene.reset(), 0)[0], start=1):
        every.setdefault(step, []).append(number)
    for step, numbers in every.items():
        for number in sample(numbers, 1, what=step):
            inner = scene.reset()
            steps, failures = interrupt(scene, inner, number)
            assert steps[number - 1] == step
            assert failures in ([None], ["57P01"])
            finish(scene, inner, expected)
    assert set(every) >= {
        Step.TAKE_EPOCH,
        Step.READ_NEWS,
        Step.PUT_SEGMENT,
        Step.CREATE_HEAD,
        Step.CHECK_PREDECESSOR,
        Step.ACKNOWLEDGE,
        Step.WRITE_HINT,
    }
