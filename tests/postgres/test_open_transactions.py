"""Transactions that do not end: warned of, waited for, and nothing of them is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from oplog import Finding
from oplog.doctor import environment
from oplog.doctor.activity import Activity, OpenTransaction, read_activity
from oplog.doctor.environment import LONG_TRANSACTION_SECONDS, OLD_DATABASE_AGE, judge_activity
from tests.concurrency.workload import consume
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.shop import open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)


@contextmanager
def open_session(url: URL, *, name: str) -> Iterator[Connection]:
    """A connection in a transaction, under the application's `name`."""
    engine = sa.create_engine(url.update_query_dict({"application_name": name}), poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        yield connection


@contextmanager
def leave_prepared(engine: Engine, name: str) -> Iterator[None]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.exec_driver_sql("SHOW max_prepared_transactions").scalar() == "0":
            pytest.skip("the server allows no prepared transactions")
        quoted = name.replace("'", "''")
        connection.exec_driver_sql(f"BEGIN; PREPARE TRANSACTION '{quoted}'")
        try:
            yield
        finally:
            connection.exec_driver_sql(f"ROLLBACK PREPARED '{quoted}'")


def look(engine: Engine) -> Activity:
    with engine.connect() as connection:
        return read_activity(connection)


def age(activity: Activity, seconds: int) -> list[Finding]:
    """What would be said if every transaction had been open for `seconds`."""
    aged = [replace(one, seconds=seconds) for one in activity.transactions]
    return list(judge_activity(replace(activity, transactions=aged)))


def test_open_transactions_are_seen(engine: Engine, database_url: URL) -> None:
    with (
        open_session(database_url, name="report") as first,
        open_session(database_url, name=""),
        leave_prepared(engine, "it's"),
    ):
        found = look(engine).transactions
        assert [(one.application_name, one.state, one.prepared) for one in found] == [
            ("report", "idle in transaction", None),
            ("", "idle in transaction", None),
            ("", "", "it's"),
        ]
        pid = first.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        assert found[0].process_id == pid
        assert age(look(engine), LONG_TRANSACTION_SECONDS - 1) == []
        old = age(look(engine), LONG_TRANSACTION_SECONDS)
        assert [(f.severity, f.what, f.where) for f in old] == [
            ("notice", "transaction-old", f"process {pid}"),
            ("notice", "transaction-old", f"process {found[1].process_id}"),
            ("notice", "transaction-prepared", "prepared transaction it's"),
        ]
        assert f"pg_terminate_backend({pid})" in old[0].hint
        assert "(report) has had a transaction open for 5 minutes, idle in" in old[0].message
        assert "ROLLBACK PREPARED 'it''s'" in old[2].hint
    assert look(engine).transactions == []


def test_a_database_that_was_not_cleaned() -> None:
    assert list(judge_activity(Activity([], OLD_DATABASE_AGE - 1))) == []
    (finding,) = judge_activity(Activity([], OLD_DATABASE_AGE))
    assert (finding.severity, finding.what) == ("notice", "wraparound")
    assert "1,000,000,000 transactions" in finding.message


def test_the_age_of_a_database(engine: Engine) -> None:
    before = look(engine).frozen_age
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_current_xact_id()")
    assert look(engine).frozen_age > before >= 0


def test_doctor_and_status_warn(
    tmp_path: Path, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    assert "open:        no other transaction" in shop.call("status")[0]
    monkeypatch.setattr(environment, "LONG_TRANSACTION_SECONDS", 0)
    with open_session(database_url, name="night\x1b[31m") as session:
        pid = session.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        found = {f["what"] for f in shop.ask("doctor", code=3)["findings"]}
        assert "transaction-old" in found
        out, err = shop.call("status")
        assert "open:        1 other transaction, the oldest for " in out
        assert f"warning: process {pid}: " in err
        assert "\x1b" not in out + err
        transactions = shop.ask("status")["transactions"]
        (one,) = transactions["open"]
        assert set(one) == set(OpenTransaction.__slots__)
        assert len(transactions["warnings"]) == 1


def test_nothing_of_a_long_transaction_is_skipped(db: LoggedDatabase) -> None:
    """Its entry is delivered when it ends, after many that began and ended meanwhile."""
    with db.sessions() as long:
        long.add(Account(id=1, owner="long", balance=1))
        long.flush()
        seen: list[int] = []
        for number in range(2, 6):
            with db.sessions.begin() as session:
                session.add(Account(id=number, owner="short", balance=1))
            with db.sessions() as session:
                session.add(Account(id=number + 100, owner="abandoned", balance=1))
                session.flush()
            seen += consume(db.log, db.engine)
        assert len(seen) == 4
        db.assert_replays()
        long.commit()
    seen += consume(db.log, db.engine)
    assert seen == [entry.position for entry in db.read()]
    assert [entry.aggregate for entry in db.read()][-1] == "account/1"
    db.assert_replays()


def test_gaps_of_sequences_do_not_matter(db: LoggedDatabase) -> None:
    """Abandoned transactions draw ids of rows and positions of entries that nobody gets."""
    session = db.sessions()
    for _ in range(3):
        session.add(Account(owner="abandoned", balance=1))
        session.flush()
        session.rollback()
    session.close()
    for _ in range(2):
        with db.sessions.begin() as session:
            session.add(Account(owner="kept", balance=1))
        with db.engine.connect() as connection:
            drawn = "SELECT nextval('oplog.oplog_position_seq') FROM generate_series(1, 7)"
            connection.exec_driver_sql(drawn)
    with db.sessions.begin() as session:
        session.execute(sa.text("UPDATE account SET note = 'x'"))
    entries = db.read()
    positions = [entry.position for entry in entries]
    assert positions == sorted(positions)
    assert positions[-1] - positions[0] > len(positions)
    assert [(e.aggregate, e.version) for e in entries] == [
        *(("account/4", 1), ("account/5", 1)),
        *(("account/4", 2), ("account/5", 2)),
    ]
    assert consume(db.log, db.engine, max_entries=1) == positions
    with db.engine.connect() as connection:
        assert db.log.replay(connection).entries == len(positions)
        middle = positions[0] + 3
        assert db.log.replay(connection, through=middle).entries == 1
    db.assert_replays()
