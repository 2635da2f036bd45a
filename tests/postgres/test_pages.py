"""Entries and histories in pages and newest first: the same ones, at the cost of what is given."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.engine import Connection, Engine

from oplog import Archive, LoggedEntry
from oplog.errors import ChainBrokenError, ConfigurationError
from oplog.reading.reader import RecordReader
from tests.databases import Cluster, FreshDatabase
from tests.postgres.archived import open_memory, reopen
from tests.postgres.pruned import open_plain, prune_small, sync, write_random
from tests.postgres.replay_models import Account, Bench, Line, Owner, Task, make_bench

pytestmark = pytest.mark.postgres

ROWS = [(Task, 1), (Task, 2), (Line, (1, "a")), (Line, (2, "a")), (Owner, 1)]
FILTERS: list[dict[str, Any]] = [
    {},
    {"aggregate": "project/p"},
    {"aggregate": "order/1"},
    {"aggregate": "none"},
    {"metadata": {"actor": "ann"}},
    {"metadata": {"actor": "ann", "request": "r1"}},
    {"metadata": {"actor": "bob"}, "aggregate": "project/q"},
]


@dataclass
class Written:
    bench: Bench
    archive: Archive


def write(bench: Bench, chance: random.Random, count: int) -> None:
    write_random(bench, chance, count)
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor=["ann", "bob"], request=f"r{chance.randint(1, 2)}")
        session.merge(Task(id=9, project="p", title=str(chance.random())))


@pytest.fixture(scope="module")
def written(cluster: Cluster) -> Iterator[Written]:
    """A log whose beginning is pruned and archived, whose middle is both, whose end is new."""
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    bench, chance, archive = make_bench(engine), random.Random(18), open_memory()
    write(bench, chance, 5)
    sync(bench, archive)
    prune_small(bench, archive)
    write(bench, chance, 5)
    sync(bench, archive)
    for _ in range(3):
        write(bench, chance, 3)
    yield Written(bench, archive)
    engine.dispose()
    database.drop()


@pytest.fixture(params=["tables", "joined", "archive"])
def ask(request: pytest.FixtureRequest, written: Written) -> Iterator[Callable[..., Any]]:
    """Calls a method of the log on one of the places where it can be read."""
    place = request.param
    given = {} if place == "tables" else {"archive": reopen(written.archive)}
    with open_plain(written.bench.engine).connect() as connection:

        def call(method: str, *arguments: Any, **options: Any) -> Any:
            where = None if place == "archive" else connection
            return getattr(written.bench.log, method)(where, *arguments, **options, **given)

        call.place = place  # type: ignore[attr-defined]
        yield call


def collect(ask: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """All pages, one after the other."""
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = ask(*arguments, cursor=cursor, **options)
        items = list(page)
        assert len(items) == options["limit"] or page.cursor is None
        assert items or cursor is None
        found += items
        cursor = page.cursor
        if cursor is None:
            return found


# -- the same entries ---------------------------------------------------------------------------


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_newest_first_is_the_reverse_and_pages_are_the_whole(
    ask: Callable[..., Any], filter: dict[str, Any]
) -> None:
    whole = list(ask("read", **filter))
    assert len(whole) >= 12 or filter
    assert list(ask("read", newest_first=True, **filter)) == whole[::-1]
    for limit in (1, 3, len(whole) or 1, len(whole) + 1):
        assert collect(ask, "read", limit=limit, **filter) == whole
        assert collect(ask, "read", limit=limit, newest_first=True, **filter) == whole[::-1]
    assert list(ask("tail", last=4, **filter)) == whole[-4:]
    assert list(ask("tail", last=4, newest_first=True, **filter)) == whole[-4:][::-1]
    assert list(ask("tail", last=0, **filter)) == []


def test_bounds_hold_in_both_directions(ask: Callable[..., Any]) -> None:
    whole: list[LoggedEntry] = list(ask("read"))
    low, high = whole[4], whole[-5]
    for after, through in ((low.position, high.position), (low.recorded_at, high.recorded_at)):
        expected = list(ask("read", after=after, through=through))
        assert 0 < len(expected) < len(whole)
        bounds = {"after": after, "through": through}
        assert list(ask("read", newest_first=True, **bounds)) == expected[::-1]
        assert collect(ask, "read", limit=2, newest_first=True, **bounds) == expected[::-1]


@pytest.mark.parametrize(("model", "key"), ROWS)
def test_histories_are_the_same_in_pages(ask: Callable[..., Any], model: Any, key: Any) -> None:
    if ask.place == "tables":  # type: ignore[attr-defined]
        pytest.skip("a log that was pruned has no whole history without its archive")
    whole = list(ask("history", model, key))
    assert ask("history", model, key, newest_first=True) == whole[::-1]
    for limit in (1, 2, 50):
        assert collect(ask, "history", model, key, limit=limit) == whole
        backwards = collect(ask, "history", model, key, limit=limit, newest_first=True)
        assert backwards == whole[::-1]
    if len(whole) > 2:
        bounds = {"after": whole[0].position, "through": whole[-2].recorded_at}
        assert ask("history", model, key, **bounds) == whole[1:-1]
        assert ask("history", model, key, newest_first=True, **bounds) == whole[1:-1][::-1]


# -- while others write, archive and prune ------------------------------------------------------


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("place", ["tables", "joined"])
def test_pages_stay_while_others_write(engine: Engine, place: str, *, newest_first: bool) -> None:
    bench, chance, archive = make_bench(engine), random.Random(7), open_memory()
    write(bench, chance, 8)
    sync(bench, archive)
    write(bench, chance, 8)
    options: dict[str, Any] = {"limit": 3, "newest_first": newest_first}

    def read(cursor: str | None) -> tuple[list[LoggedEntry], str | None]:
        given: Any = {} if place == "tables" else {"archive": reopen(archive)}
        with open_plain(engine).connect() as connection:
            page = bench.log.read(connection, cursor=cursor, **options, **given)
            return [replace(entry, sequence=None) for entry in page], page.cursor

    with open_plain(engine).connect() as connection:
        before = [replace(e, sequence=None) for e in bench.log.read(connection)]
    found, cursor = read(None)
    rounds = 0
    while cursor is not None:
        rounds += 1
        if rounds == 1:
            write(bench, chance, 2)
        if rounds == 2:
            # What the pages have not given yet moves into the archive.
            sync(bench, archive)
        if rounds == 3 and place == "joined":
            prune_small(bench, archive)
        page, cursor = read(cursor)
        found += page
    assert rounds > 4
    known = {(entry.entry_id, entry.aggregate) for entry in before}
    if newest_first:
        assert [(e.entry_id, e.aggregate) for e in found] == [
            (e.entry_id, e.aggregate) for e in before[::-1]
        ]
    else:
        told = [(e.entry_id, e.aggregate) for e in found]
        assert len(set(told)) == len(told)
        assert known < set(told)


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_while_a_thread_writes(engine: Engine, *, newest_first: bool) -> None:
    bench, chance = make_bench(engine), random.Random(4)
    write(bench, chance, 8)
    plain = open_plain(engine)
    stop = threading.Event()

    def write_on() -> None:
        while not stop.is_set():
            write(bench, chance, 1)

    def ask(cursor: str | None) -> tuple[list[tuple[Any, str]], str | None]:
        with plain.connect() as connection:
            page = bench.log.read(connection, limit=3, newest_first=newest_first, cursor=cursor)
            return [(entry.entry_id, entry.aggregate) for entry in page], page.cursor

    with plain.connect() as connection:
        before = [(e.entry_id, e.aggregate) for e in bench.log.read(connection)]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_on)
        try:
            found, cursor = ask(None)
            while cursor is not None and not set(before) <= set(found):
                page, cursor = ask(cursor)
                found += page
        finally:
            stop.set()
        writing.result()
    assert len(set(found)) == len(found)
    assert [one for one in found if one in set(before)] == (
        before[::-1] if newest_first else before
    )


def test_a_prune_while_the_newest_are_read(engine: Engine) -> None:
    bench, chance, archive = make_bench(engine), random.Random(3), open_memory()
    write(bench, chance, 6)
    sync(bench, archive)
    write(bench, chance, 12)
    plain = open_plain(engine).execution_options(isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        whole = list(bench.log.read(connection))
        entries = bench.log.read(
            connection, newest_first=True, archive=reopen(archive), limit=len(whole)
        )
        found = [next(entries)]
        sync(bench, archive)
        prune_small(bench, archive)
        found += entries
    assert [(e.position, e.aggregate) for e in found] == [
        (e.position, e.aggregate) for e in whole[::-1]
    ]


# -- what it costs ------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the records that are opened."""
    positions: list[int] = []
    true_open = RecordReader.open

    def count(reader: RecordReader, stored: Any, **options: Any) -> Any:
        positions.append(stored.position)
        return true_open(reader, stored, **options)

    monkeypatch.setattr(RecordReader, "open", count)
    return positions


def count_rows(connection: Connection, work: Callable[[], Any]) -> int:
    """Rows of the log's tables that some work made the server read."""

    def count() -> int:
        found = connection.exec_driver_sql(
            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) "
            "FROM pg_stat_xact_user_tables WHERE schemaname = 'oplog'"
        )
        return int(found.scalar_one())

    before = count()
    work()
    return count() - before


LONG = 1500


@pytest.fixture(scope="module")
def long_bench(cluster: Cluster) -> Iterator[Bench]:
    """A log in which one account has most of the entries."""
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    bench = make_bench(engine)
    with bench.sessions.begin() as session:
        session.add(Owner(name="ann"))
        session.flush()
        session.add(Account(id=1, owner_id=1, balance=Decimal(0)))
    with bench.sessions() as session:
        for number in range(LONG):
            bench.log.annotate(session, actor="rare" if number % 500 == 0 else "often")
            session.get_one(Account, 1).balance = Decimal(number + 1)
            session.commit()
    with open_plain(engine).connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    yield bench
    engine.dispose()
    database.drop()


@pytest.mark.parametrize(
    "work",
    [
        lambda log, c, **p: log.history(c, Account, 1, **p),
        lambda log, c, **p: list(log.read(c, **p)),
        lambda log, c, **p: list(log.read(c, aggregate="account/1", **p)),
        lambda log, c, **p: list(log.read(c, metadata={"actor": "often"}, **p)),
        lambda log, c, **p: list(log.tail(c, last=p["limit"])),
    ],
)
def test_a_page_costs_what_it_gives(
    long_bench: Bench, opened: list[int], work: Callable[..., list[Any]]
) -> None:
    with open_plain(long_bench.engine).connect() as connection:
        assert len(work(long_bench.log, connection, limit=50, newest_first=True)) == 50
        assert len(opened) <= 51
        assert read_page_rows(connection, work, long_bench) < 51 * 4


def read_page_rows(connection: Connection, work: Callable[..., Any], bench: Bench) -> int:
    return count_rows(connection, lambda: work(bench.log, connection, limit=50, newest_first=True))


def test_a_later_page_of_a_history_costs_no_more(long_bench: Bench, opened: list[int]) -> None:
    options: dict[str, Any] = {"limit": 50, "newest_first": True}
    with open_plain(long_bench.engine).connect() as connection:
        history = long_bench.log.history
        page = history(connection, Account, 1, **options)
        for _ in range(20):
            page = history(connection, Account, 1, cursor=page.cursor, **options)
        opened.clear()
        rows = count_rows(
            connection, lambda: history(connection, Account, 1, cursor=page.cursor, **options)
        )
        assert len(opened) == 51
        assert rows < 51 * 4


def test_a_history_up_to_a_moment_costs_no_more(long_bench: Bench) -> None:
    with open_plain(long_bench.engine).connect() as connection:
        history = long_bench.log.history
        whole = history(connection, Account, 1)
        for back in (True, False):
            bounds: Any = {"through" if back else "after": whole[700].recorded_at}
            rows = count_rows(
                connection,
                lambda back=back, bounds=bounds: history(  # type: ignore[misc]
                    connection, Account, 1, limit=50, newest_first=back, **bounds
                ),
            )
            page = history(connection, Account, 1, limit=50, newest_first=back, **bounds)
            assert page == (whole[651:701][::-1] if back else whole[701:751])
            # The moment is looked up in an index of ranges.
            assert rows < LONG + 51 * 5


def test_the_rarer_condition_is_looked_up(long_bench: Bench, opened: list[int]) -> None:
    options: dict[str, Any] = {"metadata": {"actor": "rare"}, "limit": 50, "newest_first": True}
    with open_plain(long_bench.engine).connect() as connection:
        found = list(long_bench.log.read(connection, **options, aggregate="account/1"))
        assert len(opened) == len(found) == 3


# -- what is wrong ------------------------------------------------------------------------------


def test_altered_links_are_found_backwards(bench_of_three: Bench) -> None:
    bench = bench_of_three
    with open_plain(bench.engine).connect() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE oplog.oplog_entry DISABLE TRIGGER ALL; "
            "DELETE FROM oplog.oplog_entry WHERE aggregate_name = 'order/1' AND version = 2"
        )
        with pytest.raises(ChainBrokenError, match="version 3"):
            bench.log.history(connection, Line, (1, "a"), newest_first=True)


def test_a_missing_beginning_is_found_backwards(bench_of_three: Bench) -> None:
    bench = bench_of_three
    with open_plain(bench.engine).connect() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE oplog.oplog_entry DISABLE TRIGGER ALL; "
            "DELETE FROM oplog.oplog_entry WHERE aggregate_name = 'order/1' AND version = 1"
        )
        with pytest.raises(ChainBrokenError, match="version 1"):
            bench.log.history(connection, Line, (1, "a"), newest_first=True)


@pytest.fixture
def bench_of_three(engine: Engine) -> Bench:
    bench = make_bench(engine)
    for weight in (1.0, 2.0, 3.0):
        bench.write(lambda s, weight=weight: s.merge(Line(order_id=1, number="a", weight=weight)))  # type: ignore[misc]
    return bench


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "3"])
def test_a_limit_is_a_number(written: Written, limit: Any) -> None:
    with open_plain(written.bench.engine).connect() as connection:
        for call in (written.bench.log.read, written.bench.log.history):
            key = () if call == written.bench.log.read else (Task, 1)
            with pytest.raises(ConfigurationError, match="limit"):
                call(connection, *key, limit=limit)


def test_a_cursor_is_one_of_the_same_direction_and_place(written: Written) -> None:
    log = written.bench.log
    with open_plain(written.bench.engine).connect() as connection:
        newest = log.read(connection, limit=1, newest_first=True)
        list(newest)
        assert newest.cursor is not None
        with pytest.raises(ConfigurationError, match="other direction"):
            log.read(connection, limit=1, cursor=newest.cursor)
        for text in ("", "n", "np", "np1x", "7", "np99999999999999999999", 7, "ne3"):
            with pytest.raises(ConfigurationError, match="is no cursor"):
                log.read(connection, newest_first=True, cursor=text)  # type: ignore[arg-type]
        archived = log.read(None, limit=1, archive=reopen(written.archive))
        list(archived)
        with pytest.raises(ConfigurationError, match="archive"):
            list(log.read(connection, limit=1, cursor=archived.cursor))


def test_a_moment_without_a_zone_is_refused(written: Written) -> None:
    with open_plain(written.bench.engine).connect() as connection:
        for bound in ("after", "through"):
            with pytest.raises(ConfigurationError, match="time zone"):
                list(written.bench.log.read(connection, limit=1, **{bound: datetime(2025, 1, 1)}))  # type: ignore[arg-type]
