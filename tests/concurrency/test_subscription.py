"""Batches: whole, committed with the work or not at all, delivered again until then."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.errors import ConfigurationError, ConflictError
from oplog.store.cursor import Cursor
from oplog.store.feed import Feed
from tests.concurrency.workload import (
    COPY,
    Customer,
    add_customer,
    apply_entries,
    consume,
    list_rows,
    tail,
)

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

START = Cursor("1", 1, None)


def test_an_uncommitted_batch_is_delivered_again(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    add_customer(sessions, 1)
    first = log.subscribe(engine, name="c").read_batch()
    again = log.subscribe(engine, name="c").read_batch()
    assert first is not None
    assert again is not None
    assert list(first) == list(again)
    again.commit()
    assert log.subscribe(engine, name="c").read_batch() is None


def test_the_cursor_commits_with_the_work_or_not_at_all(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    add_customer(sessions, 1)
    subscription = log.subscribe(engine, name="c")

    def work(*, fail: bool) -> None:
        batch = subscription.read_batch()
        assert batch is not None
        with engine.begin() as connection:
            apply_entries(connection, batch)
            batch.commit(connection)
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(fail=True)
    work(fail=False)
    assert subscription.read_batch() is None
    with engine.connect() as connection:
        assert list_rows(connection, schema=COPY) == list_rows(connection)


@pytest.mark.parametrize("first", [True, False])
def test_two_processes_with_one_name_do_not_share_a_batch(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], first: bool
) -> None:
    add_customer(sessions, 1)
    if not first:
        consume(log, engine)
        add_customer(sessions, 2)
    one = log.subscribe(engine, name="c").read_batch()
    two = log.subscribe(engine, name="c").read_batch()
    assert one is not None
    assert two is not None
    one.commit()
    with pytest.raises(ConflictError, match="not where this batch began"):
        two.commit()
    assert consume(log, engine) == []


def test_iterating_without_committing_is_refused(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    add_customer(sessions, 1)
    batches = iter(log.subscribe(engine, name="c"))
    next(batches)
    with pytest.raises(ConfigurationError, match=r"batch\.commit"):
        next(batches)


SIZES = [3, 2, 1, 3]
"""Aggregates of records at positions from 1."""


@pytest.mark.parametrize(
    ("max_entries", "expected"),
    [
        (1, [[1], [2], [3], [4]]),
        (3, [[1], [2, 3], [4]]),
        (4, [[1, 2], [3, 4]]),
        (5, [[1, 2], [3, 4]]),
        (6, [[1, 2, 3], [4]]),
        (100, [[1, 2, 3, 4]]),
    ],
)
def test_records_are_delivered_whole(
    engine: Engine, log: Oplog, max_entries: int, expected: list[list[int]]
) -> None:
    """A page ends with the record that fills it, however many entries that has."""
    insert_records(engine, SIZES)
    feed, cursor = Feed("oplog"), START
    pages: list[list[int]] = []
    with engine.connect() as connection:
        snapshot = feed.read_snapshot(connection)
        news = feed.find_news(connection, cursor, snapshot=snapshot)
        assert news is not None
        goal = cursor.advance(snapshot, [news.newest_transaction])
        cursor = cursor.begin(goal, after=news.first_position - 1)
        while cursor.target is not None:
            page = feed.read_page(connection, cursor, limit=max_entries)
            pages.append([record.position for record in page.records])
            cursor = cursor.finish() if page.last is None else cursor.reach(page.last)
        assert feed.find_news(connection, cursor, snapshot=snapshot) is None
    assert pages == expected


def insert_records(engine: Engine, sizes: list[int]) -> None:
    """Records with so many aggregates, at positions from 1, each in a transaction of its own."""
    for position, size in enumerate(sizes, start=1):
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO oplog.oplog_record (position, record_id, format, key_id, data, parts, "
                "aggregates, record_hash, created_at) "
                "VALUES (%s, gen_random_uuid(), 1, '', '', 1, %s::text[], sha256(''), now())",
                (position, [f"a/{position}/{number}" for number in range(size)]),
            )


def test_entries_of_one_transaction_share_a_position_and_a_batch(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    for first in (1, 10):
        with sessions.begin() as session:
            session.add_all(Customer(id=first + n, name="new") for n in range(5))
    batches: list[list[str]] = []
    for batch in log.subscribe(engine, name="c", max_entries=2):
        assert len({(entry.position, entry.entry_id) for entry in batch}) == 1
        batches.append([entry.aggregate for entry in batch])
        batch.commit()
    assert batches == [sorted(f"customer/{first + n}" for n in range(5)) for first in (1, 10)]


def test_a_consumer_resumes_inside_a_long_way(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    for number in range(5):
        add_customer(sessions, number)
    half: list[int] = []
    for batch, _ in zip(log.subscribe(engine, name="c", max_entries=1), range(2), strict=False):
        half += [entry.position for entry in batch]
        batch.commit()
    add_customer(sessions, 5)
    rest = consume(log, engine, max_entries=1)
    assert half + rest == tail(log, engine, after=0)


def test_nothing_is_held_open_between_batches(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    add_customer(sessions, 1)
    for _ in log.subscribe(engine, name="c"):
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        break


@pytest.mark.parametrize("broken", [{"name": ""}, {"name": "a\x00"}, {"max_entries": 0}])
def test_bad_subscriptions_are_refused(engine: Engine, log: Oplog, broken: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        log.subscribe(engine, **{"name": "c", **broken})  # type: ignore[arg-type]
