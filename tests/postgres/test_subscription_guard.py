"""Rows that logical replication brings into a guarded table are refused, and doctor says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.pool import NullPool

from oplog import Finding
from oplog.schema.tables import track_statements, untrack_statements
from oplog.testing import EmbeddedServer
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.older import NEWEST_AND_OLDER, find_programs
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

PARTITIONED = (
    "CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE part PARTITION OF whole DEFAULT",
)


@pytest.fixture(scope="module", params=NEWEST_AND_OLDER)
def programs(request: pytest.FixtureRequest) -> Path | None:
    return find_programs(request.param)


@pytest.fixture(scope="module")
def publisher(programs: Path | None) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(settings={"wal_level": "logical"}, bin_dir=programs) as server:
        url = make_url(server.url)
        Base.metadata.create_all(sa.create_engine(url, poolclass=NullPool))
        administer(url, *PARTITIONED, "INSERT INTO account (owner, balance) VALUES ('there', 1)")
        yield server


@pytest.fixture
def subscribing(programs: Path | None) -> Iterator[EmbeddedServer]:
    settings = {
        "wal_level": "logical",
        "wal_retrieve_retry_interval": "100ms",
        "log_error_verbosity": "verbose",
    }
    with EmbeddedServer(settings=settings, bin_dir=programs) as server:
        yield server


@pytest.fixture
def subscriber(subscribing: EmbeddedServer) -> LoggedDatabase:
    engine = sa.create_engine(subscribing.url, poolclass=NullPool)
    with engine.begin() as connection:
        install_log(connection)
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    administer(engine.url, *PARTITIONED, *track_statements(["whole"]))
    with db.sessions.begin() as session:
        session.add(Account(id=100, owner="local", balance=1))
    return db


@contextmanager
def connect(url: URL) -> Iterator[Connection]:
    """Each statement commits by itself, and nobody listens."""
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def subscribe(db: LoggedDatabase, publisher: EmbeddedServer, *tables: str, options: str) -> None:
    named = ", ".join(f"TABLE {table}" for table in tables)
    administer(
        make_url(publisher.url), "DROP PUBLICATION IF EXISTS p", f"CREATE PUBLICATION p FOR {named}"
    )
    administer(
        db.engine.url,
        f"CREATE SUBSCRIPTION s CONNECTION 'host={publisher.directory} user=postgres "
        f"dbname=postgres' PUBLICATION p WITH ({options})",
    )


def wait_for(connection: Connection, condition: str) -> None:
    """Until the server says so, which it is asked again and again for a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if connection.exec_driver_sql(f"SELECT ({condition}), pg_sleep(0.02)").one()[0]:
            return
    raise AssertionError(f"this never came true: {condition}")


def wait_for_refusals(subscribing: EmbeddedServer, most: int) -> None:
    """Until a worker was refused more often, which before PostgreSQL 15 only its log tells."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (subscribing.directory / "log").read_text().count("ERROR:  OP003: ") > most:
            return
        time.sleep(0.02)
    raise AssertionError("the guard refused no worker")


def find(db: LoggedDatabase, what: str) -> list[Finding]:
    with db.engine.connect() as connection:
        return [f for f in db.log.diagnose(connection) if f.what == what]


CHANGES = {
    "insert": ("account", "INSERT INTO account (id, owner, balance) VALUES (7, 'x', 1)"),
    "update": ("account", "UPDATE account SET balance = 2"),
    "delete": ("account", "DELETE FROM account"),
    "truncate": ("account", "TRUNCATE account"),
    "partition": ("whole", "INSERT INTO whole VALUES (1)"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_worker_applies_is_refused(
    subscribing: EmbeddedServer,
    subscriber: LoggedDatabase,
    publisher: EmbeddedServer,
    *,
    table: str,
    change: str,
) -> None:
    db = subscriber
    # The row that is changed is on both sides, as after a dump.
    administer(
        db.engine.url,
        "BEGIN; SET LOCAL oplog.bypass = 'from a dump'; "
        "INSERT INTO account (id, owner, balance) VALUES (1, 'there', 1); COMMIT",
    )
    subscribe(db, publisher, table, options="copy_data = false")
    with connect(db.engine.url) as connection:
        wait_for(connection, "SELECT every(srsubstate = 'r') FROM pg_subscription_rel")
        before = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar()
        administer(make_url(publisher.url), "BEGIN; " + change + "; COMMIT")
        wait_for_refusals(subscribing, 1)
        rows = "SELECT (SELECT string_agg(a::text, ' ' ORDER BY id) FROM account a), "
        live = connection.exec_driver_sql(rows + "(SELECT count(*) FROM whole)").one()
        after = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar()
        connection.exec_driver_sql("DROP SUBSCRIPTION s")
    assert (after, live[1]) == (before, 0)
    assert "(1,there,1.00" in live[0]
    assert "(100,local" in live[0]
    assert "(7," not in live[0]


def test_the_first_copy_is_refused(
    subscribing: EmbeddedServer, subscriber: LoggedDatabase, publisher: EmbeddedServer
) -> None:
    db = subscriber
    administer(make_url(publisher.url), "INSERT INTO account (owner, balance) VALUES ('more', 1)")
    subscribe(db, publisher, "account", options="copy_data = true")
    with connect(db.engine.url) as connection:
        wait_for_refusals(subscribing, 0)
        connection.exec_driver_sql("DROP SUBSCRIPTION s")
    assert db.count("account") == 1
    db.assert_replays()


def test_doctor_finds_subscriptions(subscriber: LoggedDatabase, publisher: EmbeddedServer) -> None:
    db = subscriber
    assert find(db, "guard-subscribed") == []
    subscribe(db, publisher, "account", "whole", options="copy_data = false, enabled = false")
    account, whole = find(db, "guard-subscribed")
    assert (account.where, whole.where) == ("public.account", "public.part")
    assert account.severity == "problem"
    assert "once it is enabled" in account.message
    assert "REFRESH PUBLICATION" in account.hint
    # A role that may not read how the publisher is reached finds it as well.
    administer(db.engine.url, "CREATE ROLE guest", "GRANT USAGE ON SCHEMA oplog TO guest")
    with db.engine.connect() as connection:
        connection.exec_driver_sql("SET ROLE guest")
        told = [f.where for f in db.log.diagnose(connection) if f.what == "guard-subscribed"]
    assert told == ["public.account", "public.part"]
    administer(db.engine.url, "ALTER SUBSCRIPTION s ENABLE")
    assert "writes this guarded table" in find(db, "guard-subscribed")[0].message
    administer(make_url(publisher.url), "ALTER PUBLICATION p SET TABLE order_line")
    administer(db.engine.url, "ALTER SUBSCRIPTION s REFRESH PUBLICATION WITH (copy_data = false)")
    assert [f.where for f in find(db, "guard-subscribed")] == ["public.order_line"]
    administer(db.engine.url, "DROP SUBSCRIPTION s")
    assert find(db, "guard-subscribed") == []


def test_doctor_finds_a_subscription_to_a_table_without_a_guard(
    subscriber: LoggedDatabase, publisher: EmbeddedServer
) -> None:
    """Nobody refuses its rows, and `verify` tells them."""
    db = subscriber
    administer(db.engine.url, *untrack_statements(["account"], reason="a move"))
    subscribe(db, publisher, "account", options="copy_data = false")
    with connect(db.engine.url) as connection:
        wait_for(connection, "SELECT every(srsubstate = 'r') FROM pg_subscription_rel")
        (found,) = find(db, "table-subscribed")
        assert (found.where, found.severity) == ("public.account", "problem")
        assert "REFRESH PUBLICATION" in found.hint
        administer(
            make_url(publisher.url),
            "INSERT INTO account (id, owner, balance) VALUES (8, 'streamed', 1)",
        )
        wait_for(connection, "SELECT count(*) = 1 FROM account WHERE id = 8")
        connection.exec_driver_sql("DROP SUBSCRIPTION s")
    administer(make_url(publisher.url), "DELETE FROM account WHERE id = 8")
    assert find(db, "table-subscribed") == []
    with db.engine.connect() as connection:
        (difference,) = db.log.verify(connection).differences
    assert (difference.kind, difference.key) == ("extra", {"id": 8})


def test_a_publication_of_all_tables_has_those_of_the_log(
    subscriber: LoggedDatabase, programs: Path | None
) -> None:
    """Both sides have a log, as a dump of the schema makes it: each keeps its own."""
    db = subscriber
    with EmbeddedServer(settings={"wal_level": "logical"}, bin_dir=programs) as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        with engine.begin() as connection:
            install_log(connection)
        other = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
        administer(engine.url, *PARTITIONED, "CREATE PUBLICATION p FOR ALL TABLES")
        administer(
            db.engine.url,
            f"CREATE SUBSCRIPTION s CONNECTION 'host={server.directory} user=postgres "
            "dbname=postgres' PUBLICATION p WITH (copy_data = false)",
        )
        told = {finding.where for finding in find(db, "log-subscribed")}
        assert any(name.startswith("oplog.oplog_record") for name in told)
        assert "public.account" in {finding.where for finding in find(db, "guard-subscribed")}
        with connect(db.engine.url) as connection:
            wait_for(connection, "SELECT every(srsubstate = 'r') FROM pg_subscription_rel")
            # What is published is logged where it is written.
            with other.sessions.begin() as session:
                session.add(Account(id=9, owner="streamed", balance=1))
            wait_for(connection, "SELECT apply_error_count > 1 FROM pg_stat_subscription_stats")
            connection.exec_driver_sql("DROP SUBSCRIPTION s")
        assert other.tell() == ["CREATE account 9"]
        other.assert_replays()
    assert db.tell() == ["CREATE account 100"]
    db.assert_replays()
