"""A schema's name is data: every operation works on a log, and on tables, whatever they are called.

Walks all of them, through the library and through the command line. A name that reaches SQL
unquoted, or a driver's placeholders undoubled, fails in one of the operations only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Archive, Keyring, LoggedEntry, Oplog, TypeCatalog, open_archive
from oplog.errors import TicketConflictError, UnloggedWriteError
from oplog.postgres.quoting import (
    qualify,
    quote,
)
from oplog.schema.tables import (
    create_statements,
    drop_statements,
    track_statements,
)
from oplog.store import EntryFilter
from tests.postgres import shop as shop_module
from tests.postgres.shop import Shop
from tests.support import administer, assert_replays

pytestmark = pytest.mark.postgres

NAMES = [
    "op%log",
    "%s%(name)s%%",
    'Say "it\'s"',
    "back\\slash \\x27",
    " Blanks around ",
    "co:lon :x {y} $1",
]


@dataclass(frozen=True)
class Odd:
    """A database whose log and whose table have an odd name."""

    engine: Engine
    log: Oplog
    sessions: sessionmaker[Session]
    item: sa.Table

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def insert(self, *numbers: int) -> None:
        with self.sessions.begin() as session:
            self.log.annotate(session, actor="ada")
            for number in numbers:
                session.execute(sa.insert(self.item).values(odd(self.item, number)))

    def last_position(self) -> int:
        with self.engine.connect() as connection:
            return max(entry.position for entry in self.log.read(connection))


def odd(item: sa.Table, number: int) -> dict[str, object]:
    """A row, by its odd columns."""
    key, value = item.columns
    return {key.name: number, value.name: f"v{number}"}


def name_aggregate(item: sa.Table, number: int) -> str:
    """The default name of a row's aggregate."""
    return f"{item.fullname}/{number}"


def make_odd(engine: Engine, name: str, *, keyring: Keyring, adopted: bool = False) -> Odd:
    metadata = sa.MetaData()
    # The names of aggregates are made of columns' names in braces, which have a syntax.
    plain = re.sub("[{}:]", "", name)
    item = sa.Table(
        f"item {name}",
        metadata,
        sa.Column(f"id {plain}", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column(f"value {plain}", sa.Text),
        schema=f"app {name}",
    )
    log = Oplog(TypeCatalog.from_models(metadata), keyring=keyring, schema=name)
    sessions = sessionmaker(engine)
    made = Odd(engine, log, sessions, item)
    made.execute(f"CREATE SCHEMA {quote(f'app {name}')}", *create_statements(schema=name))
    with engine.begin() as connection:
        metadata.create_all(connection)
        if adopted:
            connection.execute(sa.insert(item).values(odd(item, 100)))
    made.execute(*track_statements(qualify([item.name], item.schema), schema=name))
    log.attach(sessions)
    return made


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def new_engine(server_url: URL) -> Iterator[Callable[[], Engine]]:
    """Engines of empty databases."""
    engines: list[Engine] = []

    def make() -> Engine:
        database = f"oplog_odd_{len(engines)}_{id(engines)}"
        administer(server_url, f"CREATE DATABASE {database}")
        engines.append(sa.create_engine(server_url.set(database=database)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()
        administer(server_url, f"DROP DATABASE {engine.url.database} WITH (FORCE)")


Made = Callable[..., Odd]


@pytest.fixture
def make(name: str, new_engine: Callable[[], Engine]) -> Made:
    keyring = Keyring.generate()

    def made(*, adopted: bool = False) -> Odd:
        return make_odd(new_engine(), name, keyring=keyring, adopted=adopted)

    return made


def test_writing(make: Made, name: str) -> None:
    db = make()
    item, aggregate = db.item, name_aggregate(db.item, 1)
    key, value = item.columns
    db.insert(1)
    with db.sessions.begin() as session:
        session.execute(sa.update(item).where(key == 1).values({value.name: sa.func.upper("a")}))
        with session.begin_nested():
            session.execute(sa.update(item).values({value.name: "all"}))
    with db.sessions.begin() as session:
        db.log.lock(session, aggregate)
        assert db.log.take_ticket(session, aggregate).version == 2
        session.connection().exec_driver_sql(
            f"DELETE FROM {qualify([item.name], item.schema)[0]}",
            execution_options={"no_parameters": True},
        )

    def work(session: Session) -> None:
        session.execute(sa.insert(item).values(odd(item, 1)))

    receipts = db.log.run(db.sessions, work, idempotency_key="k")
    assert isinstance(receipts, list)
    again = db.log.run(db.sessions, work, idempotency_key="k")
    assert again == receipts
    assert [receipt.version for receipt in receipts] == [4]
    assert db.log.resolve(receipts, db.engine).value == "committed"
    assert db.log.resolve("k", db.engine).value == "committed"
    session = db.sessions()
    assert db.log.take_ticket(session, aggregate).version == 4
    with db.sessions.begin() as other:
        other.execute(sa.delete(item))
    session.execute(sa.insert(item).values(odd(item, 1)))
    with pytest.raises(TicketConflictError):
        session.commit()
    session.close()
    with db.engine.connect() as connection:
        connection.execute(sa.insert(item).values(odd(item, 5)))
        with pytest.raises(UnloggedWriteError):
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    assert_replays(db.log, db.engine)


@pytest.mark.sampled(3)
def test_reading(make: Made, name: str) -> None:
    db = make(adopted=True)
    item = db.item
    key, value = item.columns
    with db.engine.connect() as connection:
        assert db.log.adopt(connection).rows == 1
    db.insert(1, 2)
    position = db.last_position()
    with db.sessions.begin() as session:
        session.execute(sa.update(item).where(key < 9).values({value.name: "new"}))
    got = [entry for batch in consume(db) for entry in batch]
    with db.engine.connect() as connection:
        entries = list(db.log.read(connection))
        assert [e.position for e in got] == [e.position for e in entries]
        (first, second) = db.log.read(connection, aggregate=name_aggregate(item, 1))
        assert [e.version for e in (first, second)] == [1, 2]
        assert len(list(db.log.read(connection, metadata={"actor": "ada"}))) == 2
        assert len(list(db.log.read(connection, through=first.recorded_at))) == 3
        changes = db.log.history(connection, item, 1)
        assert [dict(change.fields).get(value.name) for change in changes] == ["v1", "new"]
        row = db.log.as_of(connection, item, key=1, at=position)
        assert row == {key.name: 1, value.name: "v1"}
    with db.engine.connect() as connection:
        verdict = db.log.verify(connection)
        assert (verdict.ok, verdict.rows) == (True, 3)
    with db.engine.connect() as connection:
        assert db.log.replay(connection, into=f"replayed {name}").rows == 3
        assert db.log.replay(connection, into=f"replayed {name}", through=position).rows == 3
    with db.engine.connect() as connection:
        problems = {f.what for f in db.log.diagnose(connection) if f.severity == "problem"}
        assert problems <= {"setting"}, "fsync is off while tests run"
    with db.engine.connect() as connection:
        assert db.log.adopt(connection, again=True).rows == 3


def consume(db: Odd) -> Iterator[list[LoggedEntry]]:
    for batch in db.log.subscribe(db.engine, name="reader % \" ' \\", max_entries=1):
        yield list(batch)
        with db.engine.begin() as connection:
            batch.commit(connection)


@pytest.mark.sampled(2)
def test_publishing_and_keeping(make: Made) -> None:
    db = make()
    archive = open_archive("memory://")
    db.insert(1, 2)
    assert db.log.sync(db.engine, archive).entries == 2
    assert db.log.snapshot(db.engine, archive).rows == 2
    db.insert(3)
    with db.sessions.begin() as session:
        session.execute(sa.delete(db.item).where(db.item.columns[0] == 1))
        db.log.annotate(session, actor="bo")
    assert db.log.measure_lag(db.engine, archive).entries == 2
    db.log.snapshot(db.engine, archive)
    (receipt,) = db.log.receipts(session)
    db.log.wait_until_archived(receipt, archive, engine=db.engine)
    assert db.log.check(archive, db.engine).ok
    assert db.log.resync(db.engine, archive).ok
    db.log.pin(archive, "kept")
    db.log.collect(db.engine, archive)
    db.log.unpin(archive, "kept")
    assert db.log.prune(db.engine, archive, keep=timedelta(0)).entries > 0
    with db.engine.connect() as connection:
        assert len(list(db.log.read(connection, archive=archive))) == 4
        assert db.log.verify(connection, archive=archive).ok


@pytest.mark.sampled(2)
def test_restoring_and_following(make: Made) -> None:
    db, restored, follower, recovered = make(), make(), make(), make()
    archive = open_archive("memory://")
    db.insert(1, 2)
    db.log.snapshot(db.engine, archive)
    db.insert(3)
    db.log.sync(db.engine, archive)
    with restored.engine.connect() as connection:
        restored.log.restore(archive, connection)
    assert recovered.log.recover(archive, recovered.engine) is not None
    assert recovered.log.recover(archive, recovered.engine) is None
    follow(follower, archive)
    db.insert(4)
    db.log.sync(db.engine, archive)
    assert follow(follower, archive) == 1
    for copy in (restored, follower, recovered):
        assert_replays(copy.log, copy.engine)
    restored.insert(4)
    assert_replays(restored.log, restored.engine)


def follow(db: Odd, archive: Archive) -> int:
    with db.engine.connect() as connection:
        return db.log.follow(archive, connection).entries


@pytest.mark.sampled(2)
def test_a_fork(make: Made) -> None:
    db, behind = make(), make()
    archive = open_archive("memory://")
    db.insert(1)
    db.log.sync(db.engine, archive)
    with behind.engine.connect() as connection:
        behind.log.restore(archive, connection)
    db.insert(2)
    db.log.sync(db.engine, archive)
    assert behind.log.inspect_fork(behind.engine, archive).lost_count == 1
    assert behind.log.sync(behind.engine, archive, fork="fork").entries == 0
    with behind.engine.connect() as connection:
        branch = behind.log.open_branch(archive)
        reader = behind.log.open_reader(connection, source=branch)
        assert [e.aggregate for e in reader.read(EntryFilter(), snapshot="")] == [
            name_aggregate(db.item, 2)
        ]
    assert behind.log.replay_lost(behind.engine, archive, dry_run=True).replayed == 1
    assert behind.log.replay_lost(behind.engine, archive).replayed == 1
    assert_replays(behind.log, behind.engine)


def test_dropping(make: Made, name: str) -> None:
    db = make()
    db.insert(1)
    db.execute(*drop_statements(schema=name))
    with db.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_namespace WHERE nspname = %s", (name,)
        )
        assert found.scalar() == 0


# -- the command line -----------------------------------------------------------------------------


@contextmanager
def _reading(shop: Shop) -> Iterator[Engine]:
    engine = sa.create_engine(shop.url)
    yield engine
    engine.dispose()


@pytest.fixture
def shop(tmp_path: Path, name: str, bare_database_url: URL) -> Shop:
    shop = shop_module.open_shop(tmp_path, bare_database_url)
    text = shop_module.APPLICATION.replace(
        'Keyring.from_file("keyring.json")', f'Keyring.from_file("keyring.json"), schema={name!r}'
    )
    (tmp_path / "shop.py").write_text(text)
    with _reading(shop) as engine, engine.begin() as connection:
        for statement in create_statements(schema=name):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    shop.fill()
    return replace(shop, archive=f"file://{tmp_path}/archive")


@pytest.mark.sampled(2)
def test_commands_that_look(shop: Shop, name: str) -> None:
    assert shop.ask("status")["schema"] == name
    assert [entry["position"] for entry in shop.ask("tail", "-n", "2")] == [2, 3]
    assert len(shop.ask("tail", "--aggregate", "account/1", "--metadata", "actor=bob")) == 1
    assert len(shop.ask("history", "account", "1")["changes"]) == 2
    assert shop.ask("verify")["ok"]
    assert shop.ask("replay")["rows"] == 2
    assert len(shop.ask("types", "list")["types"]) == 2
    assert "message" in shop.call("types", "proto", "account")[0]
    shop.call("types", "sync")
    shop.call("doctor", code=3)
    assert shop.ask("adopt", "--dry-run") is not None
    entry = shop.ask("tail")[0]
    asked = ("--entry", entry["entry_id"], "--aggregate", entry["aggregate"])
    assert shop.ask("resolve", *asked)["outcome"] == "committed"
    assert shop.ask("resolve", "no such key")["outcome"] == "aborted"


@pytest.mark.sampled(2)
def test_commands_on_an_archive(shop: Shop) -> None:
    assert shop.ask("sync")["entries"] == 5
    shop.ask("snapshot")
    shop.write()
    shop.ask("snapshot")
    for command in (["check"], ["resync"], ["collect"], ["pin", "p"], ["pins"], ["unpin", "p"]):
        shop.ask(*command)
    assert shop.ask("fork", "inspect")["lost_count"] == 0
    shop.ask("prune", "--keep", "0s")
    assert len(shop.ask("tail", "--archive", shop.archive, "-n", "0")) == 6
    assert shop.ask("verify", "--archive", shop.archive)["ok"]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("whom", ["application", "worker", "auditor"])
def test_printed_grants_run(shop: Shop, whom: str, server_url: URL) -> None:
    role = 'ro%le "x"'
    quoted = quote(role).replace("%", "%%")
    printed, _ = shop.call("grants", whom, role, "--tables")
    with _reading(shop) as engine, engine.connect() as connection, connection.begin() as doing:
        connection.exec_driver_sql(f"CREATE ROLE {quoted}")
        for statement in printed.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        doing.rollback()
