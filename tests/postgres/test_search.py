"""A search finds what a filter over the whole log finds, in pages, and says how far it got."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive, FoundChange, OpType, SearchPage
from oplog.errors import ConfigurationError, PrunedError, UnknownTypeError
from tests.databases import Cluster, FreshDatabase
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import open_plain, prune_small, sync
from tests.postgres.replay_models import (
    Account,
    Bench,
    Car,
    Line,
    Owner,
    Task,
    Vehicle,
    make_bench,
)

pytestmark = pytest.mark.postgres

TITLES = ("open", "done", None)


def write_tasks(bench: Bench, chance: random.Random, count: int) -> None:
    """Transactions on a few tasks and lines, by two people."""
    for _ in range(count):
        with bench.sessions.begin() as session:
            bench.log.annotate(session, actor=chance.choice(["ann", "bob"]))
            for _ in range(chance.randint(1, 3)):
                number = chance.randint(1, 4)
                task = session.get(Task, number)
                if task is None:
                    session.add(Task(id=number, project="p", title=chance.choice(TITLES)))
                elif chance.random() < 0.2:
                    session.delete(task)
                elif chance.random() < 0.2:
                    task.project = chance.choice("pqr")
                else:
                    task.title = chance.choice(TITLES)
                session.flush()
            session.merge(Line(order_id=chance.randint(1, 2), number="a", weight=1.5))


@dataclass
class Written:
    bench: Bench
    archive: Archive
    whole: list[FoundChange]
    """Every change, oldest first; `before` has all that the row had."""


def tell_changes(bench: Bench, archive: Archive | None) -> list[FoundChange]:
    """Every change of the log, with the row before it: what a search is held to."""
    rows: dict[Any, dict[str, Any]] = {}
    found = []
    with open_plain(bench.engine).connect() as connection:
        entries = list(bench.log.read(connection, archive=archive))
        told = [(entry, one) for entry in entries for one in entry.operations]
        order = {entry.entry_id: number for number, entry in enumerate(entries)}
        # A row that moves to another aggregate is deleted there first.
        told.sort(key=lambda t: (order[t[0].entry_id], t[1].kind is not OpType.DELETE))
        for entry, one in told:
            place = (one.type_name, tuple(one.key.values()))
            before = rows.get(place, {})
            found.append(
                FoundChange(
                    position=entry.position,
                    sequence=entry.sequence,
                    aggregate=entry.aggregate,
                    kind=one.kind,
                    type_name=one.type_name,
                    key=one.key,
                    fields=one.fields,
                    metadata=entry.metadata,
                    recorded_at=entry.recorded_at,
                    entry_id=entry.entry_id,
                    before=dict(before),
                )
            )
            rows[place] = {} if one.kind is OpType.DELETE else {**before, **one.fields}
    return found


@pytest.fixture(scope="module")
def written(cluster: Cluster) -> Iterator[Written]:
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    bench, chance, archive = make_bench(engine), random.Random(5), open_memory()
    write_tasks(bench, chance, 25)
    sync(bench, archive)
    write_tasks(bench, chance, 25)
    yield Written(bench, archive, tell_changes(bench, reopen(archive)))
    engine.dispose()
    database.drop()


@pytest.fixture(params=["tables", "joined", "archive"])
def ask(request: pytest.FixtureRequest, written: Written) -> Iterator[Callable[..., SearchPage]]:
    place = request.param
    given: Any = {} if place == "tables" else {"archive": reopen(written.archive)}
    with open_plain(written.bench.engine).connect() as connection:

        def call(**options: Any) -> SearchPage:
            where = None if place == "archive" else connection
            return written.bench.log.search(where, **options, **given)

        call.whole = [  # type: ignore[attr-defined]
            c for c in written.whole if place != "archive" or c.sequence is not None
        ]
        yield call


def name(change: FoundChange) -> tuple[Any, ...]:
    """A change, whatever it was found by."""
    return (change.position, change.kind, change.type_name, tuple(change.key.values()))


def collect(ask: Callable[..., SearchPage], **options: Any) -> list[FoundChange]:
    found: list[FoundChange] = []
    cursor: str | None = None
    while True:
        page = ask(cursor=cursor, **options)
        assert page.complete is (page.cursor is None or len(page) == options["limit"])
        found += page
        cursor = page.cursor
        if cursor is None:
            return found


Fits = Callable[[FoundChange], bool]
QUESTIONS: dict[str, tuple[dict[str, Any], Fits]] = {
    "everything": ({}, lambda c: True),
    "type": ({"type": Task}, lambda c: c.type_name == "task"),
    "column": ({"type": Task, "column": "title"}, lambda c: "title" in c.fields),
    "to": (
        {"type": Task, "column": "title", "to": "done"},
        lambda c: c.fields.get("title") == "done",
    ),
    "to NULL": (
        {"type": "task", "column": "title", "to": None},
        lambda c: "title" in c.fields and c.fields["title"] is None,
    ),
    "actor": ({"actor": "ann"}, lambda c: c.metadata["actor"] == ["ann"]),
    "kind": ({"kind": "delete", "type": Task}, lambda c: c.kind is OpType.DELETE),
    "aggregate": ({"aggregate": "order/1"}, lambda c: c.aggregate == "order/1"),
    "all": (
        {"type": Task, "column": "title", "to": "open", "actor": "bob", "kind": OpType.UPDATE},
        lambda c: (
            c.fields.get("title") == "open"
            and c.kind is OpType.UPDATE
            and c.metadata["actor"] == ["bob"]
        ),
    ),
    "float": ({"type": Line, "column": "weight", "to": 1.5}, lambda c: "weight" in c.fields),
    "nothing": ({"type": Task, "column": "title", "to": "never"}, lambda c: False),
}
MOVED: Fits = lambda c: c.type_name == "task"  # noqa: E731 - one of the conditions
BEFORE: dict[str, tuple[dict[str, Any], Fits]] = {
    "before": (
        {"type": Task, "column": "title", "before": "open"},
        lambda c: MOVED(c) and c.before.get("title") == "open",
    ),
    "before and to": (
        {"type": Task, "column": "title", "before": "open", "to": "done"},
        lambda c: c.before.get("title") == "open" and c.fields.get("title") == "done",
    ),
    "before NULL": (
        {"type": Task, "column": "title", "before": None},
        lambda c: "title" in c.before and c.before["title"] is None,
    ),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_a_search_is_a_filter_over_the_whole_log(ask: Any, case: str) -> None:
    question, fits = QUESTIONS[case]
    expected = [name(change) for change in ask.whole if fits(change)][::-1]
    assert expected or case in ("nothing", "all")
    page = ask(limit=1000, **question)
    assert page.cursor is None
    assert page.complete
    assert sorted(map(name, page)) == sorted(expected)
    # Within a record, entries of a whole log come by aggregate, and changes as they happened.
    assert [c.position for c in page] == [one[0] for one in expected]
    for limits in ({"limit": 1}, {"limit": 3, "scan_limit": 2}, {"limit": 1000, "scan_limit": 5}):
        assert collect(ask, **limits, **question) == list(page)


@pytest.mark.parametrize("case", BEFORE)
def test_the_value_before_is_looked_up(ask: Any, case: str) -> None:
    question, fits = BEFORE[case]
    changes = [c for c in ask.whole if fits(c) and ("title" in c.fields or not c.fields)]
    expected = [name(change) for change in changes if change.kind is not OpType.CREATE]
    page = ask(limit=1000, **question)
    # A row that is moved to another aggregate is deleted there and created here.
    found = [one for one in page if one.kind is not OpType.CREATE]
    assert sorted(map(name, found)) == sorted(expected)
    assert found
    for one in page:
        assert one.before == {"title": question["before"]}
    assert collect(ask, limit=1, scan_limit=3, **question) == list(page)


def test_entries_carry_what_they_are_in(ask: Any) -> None:
    (one,) = ask(type=Task, column="title", to="open", limit=1)
    (same,) = [c for c in ask.whole if name(c) == name(one)]
    assert one == replace(same, before={}, sequence=one.sequence)
    assert one.entry_id == same.entry_id
    assert one.to_json()["fields"] == dict(one.fields)
    assert set(one.to_json(redact=True)["fields"].values()) <= {"***"}


def test_progress_and_the_limit_of_a_scan(ask: Callable[..., SearchPage]) -> None:
    told: list[tuple[int, int]] = []
    page = ask(
        type=Task,
        column="title",
        to="never",
        scan_limit=4,
        progress=lambda count, position: told.append((count, position)),
    )
    assert (page.scanned, page.complete, page.reached) == (4, False, told[-1][1])
    assert [count for count, _ in told] == [1, 2, 3, 4]
    assert page.to_json()["complete"] is False
    rest = ask(type=Task, column="title", to="never", cursor=page.cursor)
    assert rest.complete
    assert rest.scanned == ask(type=Task, column="title", to="never").scanned - 4


def test_bounds_and_moments(ask: Any) -> None:
    low, high = ask.whole[5], ask.whole[-6]
    for after, through in ((low.position, high.position), (low.recorded_at, high.recorded_at)):
        found = ask(after=after, through=through, limit=1000)
        assert {c.position for c in found} == {
            c.position for c in ask.whole if low.position < c.position <= high.position
        }


def test_joined_tables_are_searched_where_the_column_is(engine: Engine) -> None:
    bench = make_bench(engine)
    bench.write(lambda s: s.add(Car(id=7, maker="m", doors=3)))
    bench.write(lambda s: setattr(s.get_one(Car, 7), "doors", 5))
    bench.write(lambda s: setattr(s.get_one(Car, 7), "maker", "n"))
    with open_plain(engine).connect() as connection:
        (one,) = bench.log.search(connection, type=Car, column="doors", before=3)
        assert (one.type_name, one.fields, one.before) == ("car", {"doors": 5}, {"doors": 3})
        (one,) = bench.log.search(connection, type=Car, column="maker", to="n")
        assert one.type_name == "vehicle"
        assert len(bench.log.search(connection, type=Vehicle)) == 2
        assert len(bench.log.search(connection, type=Car)) == 4


def test_two_changes_of_a_row_in_one_transaction(engine: Engine) -> None:
    bench = make_bench(engine)
    bench.write(lambda s: s.add(Owner(name="ann", motto="a")))

    def again(session: Any) -> None:
        session.add(Account(id=1, owner_id=1, balance=Decimal("1.50")))

    bench.write(again)
    with open_plain(engine).connect() as connection:
        for same in (Decimal("1.5"), Decimal("1.500"), "1.50"):
            (one,) = bench.log.search(connection, type=Account, column="balance", to=same)
            assert one.fields["balance"] == Decimal("1.50")
        assert bench.log.search(connection, type=Account, column="balance", to=2) == []
        # A row that was not there had no value, not even NULL.
        assert bench.log.search(connection, type=Account, column="balance", before=None) == []


def test_a_pruned_log_is_searched_as_far_as_it_goes(engine: Engine) -> None:
    bench, chance, archive = make_bench(engine), random.Random(2), open_memory()
    write_tasks(bench, chance, 6)
    sync(bench, archive)
    with open_plain(engine).connect() as connection:
        expected = list(bench.log.search(connection, type=Task))
    prune_small(bench, archive)
    write_tasks(bench, chance, 1)
    with open_plain(engine).connect() as connection:
        with pytest.raises(PrunedError):
            bench.log.history(connection, Task, 1)
        left = bench.log.search(connection, type=Task)
        joined = bench.log.search(connection, type=Task, archive=reopen(archive))
    assert [name(c) for c in joined] == [name(c) for c in [*left, *expected]]
    assert left


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"to": 1}, "no column is named"),
        ({"column": "title"}, "and no type"),
        ({"type": Task, "column": "no"}, "no logged column"),
        ({"type": Owner, "column": "secret"}, "no logged column"),
        ({"type": Account, "column": "balance", "to": object()}, "is no value of"),
        ({"type": Account, "column": "balance", "before": "x"}, "is no value of"),
        ({"kind": "insert"}, "no kind"),
        ({"limit": 0}, "limit=0"),
        ({"limit": None}, "limit=None"),
        ({"scan_limit": 0}, "scan_limit=0"),
        ({"cursor": "x"}, "is no cursor"),
        ({"cursor": "a:op3"}, "other direction"),
    ],
)
def test_what_makes_no_sense_is_refused(
    written: Written, question: dict[str, Any], says: str
) -> None:
    bench = written.bench
    bench.write(lambda s: s.merge(Owner(id=None, name=str(random.random()))))
    with (
        open_plain(bench.engine).connect() as connection,
        pytest.raises(ConfigurationError, match=says),
    ):
        bench.log.search(connection, **question)


def test_an_unknown_type_is_refused(written: Written) -> None:
    with (
        open_plain(written.bench.engine).connect() as connection,
        pytest.raises(UnknownTypeError),
    ):
        written.bench.log.search(connection, type="nothing")
