"""Servers that are replaced: promoted standbys, databases set back, restarts at a bad moment.

Whatever is lost, the log and the tables lose together; receipts are answered by what is there
now; and a consumer stops where going on would skip entries.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog, Outcome
from oplog.errors import CommitOutcomeUnknownError, ConfigurationError
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer, add_customer, consume, make_log
from tests.logged import track
from tests.standby import Pair, open_pair
from tests.support import administer, assert_replays, install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]


def set_up(engine: Engine) -> tuple[Oplog, sessionmaker[Session]]:
    with engine.begin() as connection:
        install_log(connection)
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.tables.values())
    log, sessions = make_log(), sessionmaker(engine)
    log.attach(sessions)
    return log, sessions


def attach(log: Oplog, engine: Engine) -> sessionmaker[Session]:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return sessions


def rename(log: Oplog, sessions: sessionmaker[Session], name: str) -> int:
    with sessions.begin() as session:
        session.get_one(Customer, 1).name = name
    (receipt,) = log.receipts(session)
    return receipt.version


@pytest.fixture
def pair() -> Iterator[Pair]:
    with open_pair() as pair:
        yield pair


def test_a_promoted_standby_goes_on(pair: Pair) -> None:
    log, sessions = set_up(pair.primary_engine)
    add_customer(sessions, 1)
    assert rename(log, sessions, "before") == 2
    assert consume(log, pair.primary_engine) == [1, 2]
    subscription = log.subscribe(pair.standby_engine, name="c")
    pair.catch_up()
    with pytest.raises(ConfigurationError, match="standby"):
        subscription.read_batch()
    pair.primary.kill9()
    pair.promote()
    promoted = attach(log, pair.standby_engine)
    assert rename(log, promoted, "after") == 3
    add_customer(promoted, 2)
    assert_replays(log, pair.standby_engine)
    # The transaction ids of the new timeline may be those of lost transactions.
    with pytest.raises(ConfigurationError, match=r"timeline 1, this is server .* timeline 2"):
        subscription.read_batch()


def test_commits_that_a_failover_lost(pair: Pair) -> None:
    """B06: the standby is behind when it takes over."""
    log, sessions = set_up(pair.primary_engine)
    add_customer(sessions, 1)
    assert consume(log, pair.primary_engine) == [1]
    with sessions.begin() as session:
        session.get_one(Customer, 1).name = "kept"
    kept = log.receipts(session)
    pair.catch_up()
    pair.cut()
    lost = []
    for number in range(3):
        with sessions.begin() as session:
            session.get_one(Customer, 1).name = f"lost {number}"
        lost += log.receipts(session)
    assert len(consume(log, pair.primary_engine)) == 4
    pair.primary.kill9()
    pair.promote()

    promoted = attach(log, pair.standby_engine)
    assert_replays(log, pair.standby_engine)
    assert [log.resolve(receipt, pair.standby_engine) for receipt in kept] == [Outcome.COMMITTED]
    assert [log.resolve(r, pair.standby_engine) for r in lost] == [Outcome.ABORTED] * 3
    assert rename(log, promoted, "again") == lost[0].version == 3
    assert_replays(log, pair.standby_engine)
    with pytest.raises(ConfigurationError, match=r"timeline 1, this is server .* timeline 2"):
        log.subscribe(pair.standby_engine, name="c").read_batch()


# -- a directory set back -------------------------------------------------------------------


def copy_data(server: EmbeddedServer, *, back: bool) -> None:
    """The killed server's data, aside or back again, owners and all."""
    data, aside = server.directory / "data", server.directory / "aside"
    source, target = (aside, data) if back else (data, aside)
    if target.exists():
        shutil.rmtree(target)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def test_a_database_set_back_to_an_older_point() -> None:
    """B07: everything after the copy is gone, and no timeline says so."""
    with EmbeddedServer(fsync=True) as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        log, sessions = set_up(engine)
        add_customer(sessions, 1)
        running = log.subscribe(engine, name="c")
        for batch in running:
            batch.commit()
        server.kill9()
        copy_data(server, back=False)
        server.restart()
        lost = []
        for number in range(2, 5):
            add_customer(sessions, number)
            with sessions.begin() as session:
                session.get_one(Customer, 1).name = f"lost {number}"
            lost += log.receipts(session)
        for batch in running:
            batch.commit()
        # It reads where it stands, and that is now further than the copy.
        assert running.read_batch() is None
        server.kill9()
        copy_data(server, back=True)
        server.restart()

        assert_replays(log, engine)
        assert [log.resolve(receipt, engine) for receipt in lost] == [Outcome.ABORTED] * 3
        assert rename(log, sessions, "again") == lost[0].version == 2
        assert_replays(log, engine)
        with pytest.raises(ConfigurationError, match="behind what it has read before"):
            running.read_batch()
        # Its cursor was set back with the log: started anew, it misses nothing.
        with engine.connect() as connection:
            stored = [entry.position for entry in log.read(connection)]
        assert consume(log, engine) == stored[1:]


# -- restarts -------------------------------------------------------------------------------


def test_a_restart_between_ticket_and_commit() -> None:
    """B16: a definite end, nothing written, and the next try succeeds."""
    with EmbeddedServer(fsync=True) as server:
        engine = sa.create_engine(server.url, pool_pre_ping=True)
        log, sessions = set_up(engine)
        add_customer(sessions, 1)
        with sessions() as session:
            log.take_ticket(session, "customer/1")
            session.get_one(Customer, 1).name = "never"
            server.restart()
            with pytest.raises(DBAPIError) as caught:
                session.commit()
            assert not isinstance(caught.value, CommitOutcomeUnknownError)
        assert rename(log, sessions, "later") == 2
        assert_replays(log, engine)
        engine.dispose()


def test_a_kill_while_commit_waits_for_a_standby() -> None:
    """B03: written here, confirmed nowhere; the client cannot know, and can ask."""
    with EmbeddedServer(fsync=True) as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        log, sessions = set_up(engine)
        add_customer(sessions, 1)
        administer(
            make_url(server.url),
            "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
            "SELECT pg_reload_conf()",
        )
        failures: list[BaseException] = []

        def write() -> None:
            try:
                rename(log, sessions, "unconfirmed")
            except BaseException as failure:  # noqa: BLE001 - judged below
                failures.append(failure)

        writer = threading.Thread(target=write)
        writer.start()
        wait_for_event(engine, "SyncRep")
        server.kill9()
        writer.join(60)
        (failure,) = failures
        assert isinstance(failure, CommitOutcomeUnknownError)
        server.restart()
        administer(
            make_url(server.url),
            "ALTER SYSTEM RESET synchronous_standby_names",
            "SELECT pg_reload_conf()",
        )
        assert log.resolve(failure, engine) is Outcome.COMMITTED
        assert rename(log, sessions, "next") == 3
        assert_replays(log, engine)


def wait_for_event(engine: Engine, event: str) -> None:
    """Until a session of the server waits for it."""
    query = sa.text(
        "SELECT count(*), pg_sleep(0.002) FROM pg_stat_activity WHERE wait_event = :event"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(10_000):
            if connection.execute(query, {"event": event}).one()[0]:
                return
    raise AssertionError(f"no session came to wait for {event}")
