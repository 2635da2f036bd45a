"""Reading while others write: nothing missed, nothing twice, no effect before its cause."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.errors import ConfigurationError
from oplog.store.cursor import Cursor
from oplog.store.feed import Feed
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import (
    COPY,
    Base,
    Consumer,
    Customer,
    Invoice,
    Member,
    Writers,
    add_customer,
    apply_entries,
    consume,
    list_rows,
    make_copies,
    make_log,
    tail,
    waiting_for_lock,
)
from tests.support import install_log

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]

SEED = int(os.environ.get("OPLOG_TEST_SEED", "20260"))
START = Cursor("1", 1, None)


# -- the workload ---------------------------------------------------------------------------


def test_random_writers_miss_nothing_repeat_nothing_and_keep_causes_first(
    engine: Engine, log: Oplog
) -> None:
    """20 writers, early transaction ids, pauses, savepoints, rollbacks, a foreign key."""
    busy = create_engine(engine.url, pool_size=20)
    sessions = sessionmaker(busy)
    log.attach(sessions)
    writers = Writers(sessions, log, SEED, steps=12)
    # Small pages, so that batches end in the middle of what a snapshot shows.
    consumer = Consumer(engine, log.subscribe(engine, name="copier", max_entries=7))
    threads = writers.run(20)
    consumer.follow(threads)
    busy.dispose()

    assert writers.failures == [], f"seed {SEED}"
    with engine.connect() as connection:
        stored = [entry.position for entry in log.read(connection)]
        copies, live = list_rows(connection, schema=COPY), list_rows(connection)
    assert sorted(consumer.positions) == stored, f"seed {SEED}"
    assert copies == live, f"seed {SEED}"
    # The workload must have been what it is meant to be.
    expected = {
        "committed", "rolled back", "early transaction ids", "savepoints kept",
        "savepoints rolled back",
    }  # fmt: skip
    assert min(writers.done[what] for what in expected) >= 10
    assert consumer.batches > 10


def test_a_late_commit_is_missed_by_position_and_not_by_the_cursor(
    engine: Engine,
    log: Oplog,
    sessions: sessionmaker[Session],
    prepared_sessions: sessionmaker[Session],
) -> None:
    with prepared_sessions() as slow:
        slow.add(Customer(id=1, name="slow"))
        slow.prepare()  # its position is drawn, it is not committed
        add_customer(sessions, 2)
        first = consume(log, engine)
        naive = tail(log, engine, after=0)
        assert first == naive
        slow.commit()

    (late,) = consume(log, engine)
    assert late < first[0]
    assert tail(log, engine, after=naive[-1]) == []  # missed for ever
    with engine.connect() as connection:
        everything = {entry.position for entry in log.read(connection)}
    assert everything == {late, *first}


def test_a_cause_with_a_later_transaction_id_comes_first(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    with sessions() as early, sessions() as still_open:
        for session in (early, still_open):
            session.execute(sa.text("SELECT pg_current_xact_id()"))
        add_customer(sessions, 1)
        early.add(Invoice(customer_id=1, amount=5))
        early.commit()
        # While the second one is open, a reader of "every transaction before the oldest running
        # one" gets the effect, and not its cause.
        batch = log.subscribe(engine, name="c").read_batch()
    assert batch is not None
    cause, effect = batch
    assert (cause.aggregate, effect.aggregate) == ("customer/1", "invoice/1")
    assert cause.transaction_id > effect.transaction_id
    with engine.begin() as connection:
        apply_entries(connection, batch)


@pytest.mark.parametrize("teams", ["m", "mz"])
def test_positions_rise_with_the_versions_of_every_aggregate(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session], teams: str
) -> None:
    """A writer waits for a ticket, another appends: the first draws its position after it."""
    with sessions.begin() as session:
        session.add_all(Member(id=n, team=team) for n, team in enumerate("mz"))
    with sessions.begin() as session:
        # From its second version on an aggregate has a ticket.
        session.get_one(Member, 0).points = 5

    def change() -> None:
        with sessions.begin() as session:
            # Changed together, by the last flush: no ticket is taken before.
            for member in [session.get_one(Member, n) for n in range(len(teams))]:
                member.points += 1

    with sessions() as holder:
        holder.execute(
            sa.text("SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'team/m' FOR UPDATE")
        )
        with waiting_for_lock(engine):
            held_up = threading.Thread(target=change)
            held_up.start()
        holder.add(Member(id=10, team="m"))
        holder.commit()
    held_up.join()

    with engine.connect() as connection:
        entries = list(log.read(connection, aggregate="team/m"))
    assert [entry.version for entry in entries] == [1, 2, 3, 4]


# -- two-phase commit -----------------------------------------------------------------------


def test_a_prepared_transaction_is_invisible_then_delivered_once(
    engine: Engine,
    log: Oplog,
    sessions: sessionmaker[Session],
    prepared_sessions: sessionmaker[Session],
) -> None:
    seen: list[int] = []
    with prepared_sessions() as session:
        session.add(Customer(id=1, name="prepared"))
        session.prepare()
        for number in (2, 3):
            add_customer(sessions, number)
            seen += consume(log, engine)
            with engine.connect() as connection:
                assert [e.aggregate for e in log.read(connection)][-1] == f"customer/{number}"
        assert len(seen) == 2
        session.commit()
    (delivered,) = consume(log, engine)
    assert delivered < min(seen)
    assert consume(log, engine) == []


def test_a_prepared_transaction_that_is_rolled_back_is_never_delivered(
    engine: Engine,
    log: Oplog,
    sessions: sessionmaker[Session],
    prepared_sessions: sessionmaker[Session],
) -> None:
    with prepared_sessions() as session:
        session.add(Customer(id=1, name="prepared"))
        session.prepare()
        add_customer(sessions, 2)
        assert len(consume(log, engine)) == 1
        session.rollback()
    add_customer(sessions, 3)
    assert len(consume(log, engine)) == 1


# -- one history ----------------------------------------------------------------------------


@contextmanager
def logged_server() -> Iterator[tuple[EmbeddedServer, Engine, Oplog, sessionmaker[Session]]]:
    with EmbeddedServer(settings={"wal_writer_delay": "10s", "autovacuum": "off"}) as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            install_log(connection)
            Base.metadata.create_all(connection)
            make_copies(connection)
        log, sessions = make_log(), sessionmaker(engine)
        log.attach(sessions)
        try:
            yield server, engine, log, sessions
        finally:
            engine.dispose()


def test_transaction_ids_issued_again_after_a_crash_are_not_skipped() -> None:
    """For a cursor kept elsewhere: saving it in the same database makes the ids durable."""
    feed = Feed("oplog")

    def count_new(connection: sa.Connection, cursor: Cursor) -> int:
        snapshot = feed.read_snapshot(connection)
        if (news := feed.find_news(connection, cursor, snapshot=snapshot)) is None:
            return 0
        goal = cursor.advance(snapshot, [news.newest_transaction])
        way = cursor.begin(goal, after=news.first_position - 1)
        return len(feed.read_page(connection, way, limit=100).records)

    with logged_server() as (server, engine, _, sessions):
        add_customer(sessions, 1)
        with engine.connect() as connection:
            for _ in range(5):
                connection.exec_driver_sql("SELECT pg_current_xact_id()")
                connection.rollback()
            snapshot = feed.read_snapshot(connection)
            news = feed.find_news(connection, START, snapshot=snapshot)
            assert news is not None
        clamped = START.advance(snapshot, [news.newest_transaction])
        raw = replace(START, snapshot=snapshot)
        server.kill9()
        engine.dispose()
        server.restart()
        for number in range(2, 10):
            add_customer(sessions, number)
        with engine.connect() as connection:
            assert count_new(connection, raw) < 8, "the crash made no transaction id come again"
            assert count_new(connection, clamped) == 8


def test_standbys_and_other_histories_are_refused() -> None:
    with logged_server() as (server, engine, log, sessions):
        add_customer(sessions, 1)
        consume(log, engine)
        server.kill9()
        engine.dispose()
        standby = server.directory / "data" / "standby.signal"
        standby.touch()
        server.restart()
        with pytest.raises(ConfigurationError, match="standby"):
            log.subscribe(engine, name="c").read_batch()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT pg_promote()").scalar_one() is True
        add_customer(sessions, 2)
        with pytest.raises(ConfigurationError, match=r"timeline 1, this is .* timeline 2"):
            log.subscribe(engine, name="c").read_batch()
        # Another consumer, which begins here, is not concerned.
        assert len(consume(log, engine, name="new")) == 2
        change = "UPDATE oplog.oplog_consumer SET cursor = cursor || '{\"timeline\": 2}'"
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
        assert len(consume(log, engine)) == 1
