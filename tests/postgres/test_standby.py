"""A hot standby: everything that reads the log works there, everything that writes is refused.

One pair of servers for the module; each test has a database of its own on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Oplog, Receipt
from oplog.errors import ConfigurationError
from oplog.postgres import standby
from oplog.store import EntryFilter, records
from tests.concurrency.workload import Base, Customer, Invoice, Member, add_customer, make_log
from tests.logged import run, track
from tests.postgres.shop import open_shop
from tests.standby import Pair, open_pair
from tests.support import administer, assert_replays, install_log

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    with open_pair() as pair:
        yield pair


class Followed:
    """One database on both servers, with the workload's tables and a log."""

    def __init__(self, pair: Pair) -> None:
        name = f"followed_{uuid4().hex[:12]}"
        administer(make_url(pair.primary.url), f"CREATE DATABASE {name}")
        self._pair = pair
        self.urls: list[URL] = [
            make_url(server.url).set(database=name) for server in (pair.primary, pair.standby)
        ]
        self.primary, self.standby = (sa.create_engine(u, poolclass=NullPool) for u in self.urls)
        with self.primary.begin() as connection:
            install_log(connection)
        Base.metadata.create_all(self.primary)
        track(self.primary, *Base.metadata.tables.values())
        self.log = make_log()
        self.sessions = sessionmaker(self.primary)
        self.log.attach(self.sessions)

    def catch_up(self) -> None:
        self._pair.catch_up()

    def tamper(self, statement: str) -> None:
        administer(self.urls[0], f"BEGIN; SET LOCAL oplog.bypass = 'test'; {statement}; COMMIT")


@pytest.fixture
def db(servers: Pair) -> Iterator[Followed]:
    followed = Followed(servers)
    yield followed
    assert_replays(followed.log, followed.primary)


def fill(db: Followed) -> None:
    for number in range(1, 6):
        add_customer(db.sessions, number)
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="ada")
        session.get_one(Customer, 1).name = "renamed"
        session.add(Invoice(customer_id=1, amount=7))
    db.catch_up()


# -- reading --------------------------------------------------------------------------------


def test_what_reads_gives_the_same_on_both(db: Followed) -> None:
    fill(db)
    # A fresh log object: nothing is known from the primary.
    log = Oplog(db.log.catalog, keyring=db.log.keyring)
    answers = []
    for engine in (db.primary, db.standby):
        with engine.connect() as connection:
            last = max(entry.position for entry in log.read(connection))
            answers.append(
                (
                    list(log.read(connection)),
                    list(log.read(connection, aggregate="customer/1")),
                    list(log.read(connection, metadata={"actor": "ada"}, after=2)),
                    log.history(connection, Customer, 1),
                    log.as_of(connection, Customer, key=1, at=last - 2),
                    [f for f in log.diagnose(connection) if f.what != "standby"],
                    list(log.read(connection, newest_first=True)),
                    list(log.read(connection, newest_first=True, limit=3)),
                    list(log.read(connection, metadata={"actor": "ada"}, limit=1)),
                    log.history(connection, Customer, 1, newest_first=True, limit=1),
                    log.search(connection, type=Customer, column="name", before="customer 1"),
                )
            )
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == 7
    assert [change.kind.name for change in answers[0][3]] == ["CREATE", "UPDATE"]
    assert answers[1][4] == {"id": 1, "name": "customer 1"}
    assert answers[1][6] == answers[1][0][::-1]
    assert answers[1][7] == answers[1][6][:3]
    assert [change.fields for change in answers[1][9]] == [{"name": "renamed"}]
    assert [found.fields for found in answers[1][10]] == [{"name": "renamed"}]


def test_undo_is_planned_on_a_standby_and_done_on_the_primary(db: Followed) -> None:
    add_customer(db.sessions, 1)
    with db.sessions.begin() as session:
        session.get_one(Customer, 1).name = "renamed"
    (*_, last) = db.log.receipts(session)
    db.catch_up()
    plan = db.log.plan_undo(db.standby, records=last)
    assert [write.describe() for write in plan.writes] == [
        "update public.customer (id=1): name 'renamed' -> 'customer 1'"
    ]
    assert db.log.undo(db.sessions, plan)
    with db.primary.connect() as connection:
        assert connection.execute(sa.select(Customer.name)).scalar_one() == "customer 1"


def test_the_past_is_the_same_on_both(db: Followed) -> None:
    fill(db)
    with db.sessions.begin() as session:
        session.add(Member(team="a", points=7))
    with db.sessions.begin() as session:
        session.get_one(Customer, 2).name = "last"
    # Its rows are folded from the log, because they were converted since.
    run(db.primary, "ALTER TABLE member ALTER points TYPE bigint USING points * 10")
    with db.primary.begin() as connection:
        db.log.store_types(connection)
    db.catch_up()
    log = Oplog(db.log.catalog, keyring=db.log.keyring)
    select = sa.select(Customer.name, Invoice.amount).join(Invoice)
    answers = []
    for engine in (db.primary, db.standby):
        with engine.connect() as connection:
            (change,) = log.history(connection, Member, 1)[:1]
            connection.rollback()
            at = change.position
            found: list[Any] = [
                list(log.as_of(connection, model, at=at))
                for model in (Customer, Invoice, Member, select)
            ]
            found += [list(log.as_of(connection, Member, at=at, shape="then"))]
            found += [list(log.diff(connection, Customer, before=at))]
            answers.append(found)
    assert answers[0] == answers[1]
    assert answers[1][1] == [{"id": 1, "customer_id": 1, "amount": 7}]
    assert answers[1][3] == [{"name": "renamed", "amount": 7}]
    assert answers[1][4] == [{"id": 1, "team": "a", "points": 7}]
    assert answers[1][5][0].changes == {"name": ("customer 2", "last")}


def test_the_command_line_reads_on_a_standby(servers: Pair, tmp_path: Path) -> None:
    db = Followed(servers)
    shop = open_shop(tmp_path, db.urls[0])
    shop.fill()
    shop.execute(*(f"SELECT oplog.oplog_track_table('{t}', NULL)" for t in ("account", "line")))
    db.catch_up()
    shown: dict[str, Any] = {}
    for url in db.urls:
        shop = type(shop)(tmp_path, url)
        # A server without fsync is a problem, the same one on both.
        findings = shop.ask("doctor", code=3)["findings"]
        shown[str(url)] = [
            shop.ask("tail"),
            shop.ask("history", "account", "1"),
            [finding for finding in findings if finding["what"] != "standby"],
        ]
        assert shop.ask("status")["server"]["standby"] is (url == db.urls[1])
        assert shop.ask("verify")["ok"] is True
    assert shown[str(db.urls[0])] == shown[str(db.urls[1])]
    assert len(shown[str(db.urls[0])][0]) > 0


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_all_pages_show_one_moment(
    db: Followed, monkeypatch: pytest.MonkeyPatch, isolation: Any
) -> None:
    """What commits between two pages is in none of them: the later page may rest on it."""
    monkeypatch.setattr(records, "PAGE_ENTRIES", 3)
    monkeypatch.setattr(standby, "_FETCHED", 2)
    add_customer(db.sessions, 1)
    cause = sessionmaker(db.primary, twophase=True)
    db.log.attach(cause)
    with cause() as first, db.sessions() as second:
        first.add(Customer(id=50, name="late"))
        # Its position is drawn here, and it is seen only after COMMIT PREPARED.
        first.prepare()
        # A transaction that began before the read, and will rest on the one above.
        second.execute(sa.text("SELECT pg_current_xact_id()"))
        for number in range(2, 6):
            add_customer(db.sessions, number)
        db.catch_up()
        engine = db.standby.execution_options(isolation_level=isolation)
        with engine.connect() as connection:
            reading = iter(db.log.read(connection))
            seen = [next(reading) for _ in range(3)]
            first.commit()
            second.add(Invoice(id=1, customer_id=50, amount=1))
            second.commit()
            db.catch_up()
            seen += list(reading)
            again = list(db.log.read(connection))
    assert [entry.aggregate for entry in seen] == [f"customer/{n}" for n in range(1, 6)]
    assert (len(again) == 5) is (isolation == "REPEATABLE READ")


def test_a_history_of_several_aggregates_shows_one_moment(
    db: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    with db.primary.connect() as connection:
        db.log.adopt(connection, [Customer], again=True)
    db.catch_up()
    declared: list[str] = []

    def listen(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        declared.extend([statement] if statement.startswith("DECLARE") else [])

    sa.event.listen(db.standby, "before_cursor_execute", listen)
    with db.primary.connect() as there, db.standby.connect() as here:
        expected = db.log.history(there, Customer, 1)
        assert db.log.history(here, Customer, 1) == expected
    assert len(declared) == 1


def test_pages_are_bounded_by_bytes(db: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    monkeypatch.setattr(records, "PAGE_BYTES", 1)
    with db.standby.connect() as connection:
        pages = db.log.store.iterate(
            connection, EntryFilter(), snapshot=db.log.store.read_snapshot(connection)
        )
        positions = [[record.position for record in page] for page in pages]
    assert positions == [[number] for number in range(1, 7)]


def test_reading_on_when_the_transaction_is_over_is_refused(
    db: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE_ENTRIES", 1)
    monkeypatch.setattr(standby, "_FETCHED", 1)
    fill(db)
    with db.standby.connect() as connection:
        reading = iter(db.log.read(connection))
        next(reading)
        connection.rollback()
        with pytest.raises(ConfigurationError, match="the transaction ended"):
            list(reading)


def test_reading_in_autocommit_is_refused(db: Followed) -> None:
    fill(db)
    engine = db.standby.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            list(db.log.read(connection))
        # What takes one statement is as good there.
        assert db.log.store.read_status(connection)["entries"] == 7


def test_async_sessions_read_on_a_standby(db: Followed) -> None:
    fill(db)

    async def read() -> int:
        engine = create_async_engine(db.urls[1], poolclass=NullPool)
        async with engine.connect() as connection:
            return len(await connection.run_sync(lambda c: list(db.log.read(c))))

    assert asyncio.run(read()) == 7


# -- writing --------------------------------------------------------------------------------


def write_row(log: Oplog, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Customer(name="c"))


def write_rows(log: Oplog, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.execute(sa.update(Member).values(points=1))


def take_ticket(log: Oplog, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        log.take_ticket(session, "customer/1")


def with_connection(use: Callable[[Oplog, Connection], object]) -> Callable[..., None]:
    def run(log: Oplog, engine: Engine) -> None:
        with engine.connect() as connection:
            use(log, connection)

    return run


def resolve(log: Oplog, engine: Engine) -> None:
    with engine.connect() as connection:
        entry = next(iter(log.read(connection)))
    log.resolve(Receipt(entry.entry_id, entry.aggregate, 1, entry.entry_hash), engine)


def subscribe(log: Oplog, engine: Engine) -> None:
    log.subscribe(engine, name="c").read_batch()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_row, id="flush"),
        pytest.param(write_rows, id="bulk"),
        pytest.param(take_ticket, id="ticket"),
        pytest.param(resolve, id="resolve"),
        pytest.param(subscribe, id="subscribe"),
        pytest.param(lambda log, engine: log.maintain(engine), id="maintain"),
        pytest.param(with_connection(lambda log, c: log.adopt(c)), id="adopt"),
        pytest.param(with_connection(lambda log, c: log.replay(c)), id="replay"),
    ],
)
def test_what_writes_is_refused_first(db: Followed, write: Callable[[Oplog, Engine], None]) -> None:
    fill(db)
    sent: list[str] = []

    def listen(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement.split(maxsplit=1)[0])

    sa.event.listen(db.standby, "after_cursor_execute", listen)
    log = Oplog(db.log.catalog, keyring=db.log.keyring)
    with pytest.raises(ConfigurationError, match="standby") as caught:
        write(log, db.standby)
    assert "primary" in caught.value.hint
    assert set(sent) <= {"SELECT", "SET", "DECLARE", "FETCH", "CLOSE"}


def test_sessions_that_only_read_need_no_primary(db: Followed) -> None:
    fill(db)
    sessions = sessionmaker(db.standby)
    db.log.attach(sessions)
    with sessions.begin() as session:
        db.log.annotate(session, actor="reader")
        assert session.get_one(Customer, 1).name == "renamed"
    assert db.log.receipts(session) == []


def test_a_session_may_write_here_and_read_there(db: Followed) -> None:
    """SQLAlchemy's routing: the same session class on both engines."""

    class Routed(Session):
        def get_bind(self, *_: Any, clause: Any = None, **_rest: Any) -> Engine:
            reading = clause is not None and getattr(clause, "is_select", False)
            return db.standby if reading and not self._flushing else db.primary

    fill(db)
    factory = sessionmaker(class_=Routed)
    db.log.attach(factory)
    with factory.begin() as session:
        names = session.scalars(sa.select(Customer.name)).all()
        session.add(Customer(id=9, name=f"one of {len(names)}"))
    assert [receipt.aggregate for receipt in db.log.receipts(session)] == ["customer/9"]
