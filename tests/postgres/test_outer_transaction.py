"""Sessions inside a transaction that is not theirs, as tests use that roll everything back.

Each commit of a session appends a record to the outer transaction, which may be rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.testing import assert_logged
from tests.logged import LoggedDatabase, open_logged, track

pytestmark = pytest.mark.postgres

Mode: TypeAlias = Literal["create_savepoint", "conditional_savepoint", "rollback_only"]
MODES: list[Mode] = ["create_savepoint", "conditional_savepoint", "rollback_only"]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def guarded(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True)


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=request.param)


@contextmanager
def outside(db: LoggedDatabase, *, end: str = "rollback", nested: bool = False) -> Iterator[Any]:
    """A connection in a transaction that the test ends itself."""
    with db.engine.connect() as connection:
        outer = connection.begin()
        if nested:
            connection.begin_nested()
        yield connection
        getattr(outer, end)()


def join(db: LoggedDatabase, connection: Connection, mode: Mode = "create_savepoint") -> Session:
    return db.sessions(bind=connection, join_transaction_mode=mode)


def exclaim() -> sa.Update:
    return sa.update(Item).where(Item.name != "").values(name=Item.name + "!")


def tell(db: LoggedDatabase, connection: Connection) -> list[str]:
    return [
        f"{operation.kind.name} {entry.aggregate} {entry.version}"
        for entry in db.log.read(connection)
        for operation in entry.operations
    ]


def name(receipts: list[Any]) -> list[tuple[str, int]]:
    return [(receipt.aggregate, receipt.version) for receipt in receipts]


@pytest.mark.parametrize("mode", MODES)
def test_each_commit_is_logged_and_all_vanishes(db: LoggedDatabase, mode: Mode) -> None:
    with outside(db, nested=mode == "conditional_savepoint") as connection:
        with join(db, connection, mode) as session:
            db.log.annotate(session, actor="ada")
            session.add(Item(id=1, name="a"))
            session.commit()
            assert name(db.log.receipts(session)) == [("item/1", 1)]
            session.get_one(Item, 1).name = "b"
            session.commit()
            assert name(db.log.receipts(session)) == [("item/1", 2)]
            session.execute(sa.insert(Item), [{"id": n, "name": "c"} for n in (2, 3)])
            session.delete(session.get_one(Item, 1))
            session.commit()
            assert name(db.log.receipts(session)) == [("item/1", 3), ("item/2", 1), ("item/3", 1)]
            session.commit()
            assert db.log.receipts(session) == []
        assert len(tell(db, connection)) == 5
        assert_logged(db.log, connection, Item, key=1, kind="create", metadata={"actor": "ada"})
        assert_logged(db.log, connection)
        assert len(db.log.history(connection, Item, 1)) == 3
    assert (db.tell(), db.count("item")) == ([], 0)
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="real"))
    assert db.tell() == ["CREATE item 1"]
    db.assert_replays()


@pytest.mark.parametrize("mode", MODES)
def test_what_guards_collect_in_each_commit(guarded: LoggedDatabase, mode: Mode) -> None:
    with outside(guarded, end="commit") as connection:
        with join(guarded, connection, mode) as session:
            session.add_all(Item(id=n, name="a") for n in (1, 2))
            session.commit()
            for _ in range(3):
                session.execute(exclaim())
                session.commit()
                assert len(guarded.log.receipts(session)) == 2
            session.execute(sa.text("INSERT INTO item VALUES (3, 'text')"))
            session.commit()
            session.delete(session.get_one(Item, 3))
            session.commit()
            assert name(guarded.log.receipts(session)) == [("item/3", 2)]
        assert_logged(guarded.log, connection)
    assert len(guarded.tell()) == 10
    guarded.assert_replays()


def test_a_session_rolls_back_within_the_outer_transaction(db: LoggedDatabase) -> None:
    with outside(db, end="commit") as connection, join(db, connection) as session:
        session.add(Item(id=1, name="a"))
        session.commit()
        session.add(Item(id=2, name="gone"))
        session.flush()
        session.rollback()
        nested = session.begin_nested()
        session.execute(sa.text("INSERT INTO item VALUES (4, 'gone')"))
        with pytest.raises(IntegrityError):
            session.execute(sa.text("INSERT INTO item VALUES (1, 'twice')"))
        nested.rollback()
        session.add(Item(id=3, name="b"))
        session.commit()
    assert db.tell() == ["CREATE item 1", "CREATE item 3"]
    db.assert_replays()


def test_a_record_in_a_savepoint_that_the_test_rolls_back(db: LoggedDatabase) -> None:
    with outside(db, end="commit") as connection:
        savepoint = connection.begin_nested()
        with join(db, connection) as session:
            session.add(Item(id=1, name="gone"))
            session.commit()
        savepoint.rollback()
        with join(db, connection) as session:
            session.add(Item(id=1, name="there"))
            session.commit()
        assert tell(db, connection) == ["CREATE item/1 1"]
    db.assert_replays()


# -- several sessions -----------------------------------------------------------------------------


def test_one_session_after_the_other(guarded: LoggedDatabase) -> None:
    with guarded.sessions.begin() as session:
        session.add_all(Item(id=n, name="a") for n in (1, 2))
    with outside(guarded, end="commit") as connection:
        for n in range(2):
            with join(guarded, connection) as session:
                session.execute(exclaim())
                session.commit()
                assert len(guarded.log.receipts(session)) == 2 + n
            with join(guarded, connection) as session:
                session.add(Item(id=5 + n, name="o"))
                session.commit()
    assert len(guarded.tell()) == 9
    guarded.assert_replays()


def test_two_sessions_at_once(db: LoggedDatabase) -> None:
    """The one goes on after the other's commit, which appended what both had written."""
    with outside(db, end="commit") as connection:
        one, two = join(db, connection, "rollback_only"), join(db, connection, "rollback_only")
        one.add(Item(id=1, name="one"))
        one.flush()
        two.add(Item(id=2, name="two"))
        two.flush()
        one.commit()
        two.add(Item(id=3, name="two"))
        two.get_one(Item, 1).name = "by two"
        two.commit()
        assert ("item/3", 1) in name(db.log.receipts(two))
        one.add(Item(id=4, name="one"))
        one.commit()
        assert name(db.log.receipts(one)) == [("item/4", 1)]
        two.add(Item(id=5, name="two"))
        two.commit()
        one.close()
        two.close()
    assert sorted(db.tell()) == [*(f"CREATE item {n}" for n in range(1, 6)), "UPDATE item 1"]
    db.assert_replays()


def test_an_attached_engine_goes_on_after_its_session(db: LoggedDatabase) -> None:
    db.log.attach(db.engine)
    with outside(db, end="commit") as connection:
        connection.execute(sa.insert(Item).values(id=1, name="before"))
        with join(db, connection) as session:
            session.add(Item(id=2, name="in"))
            session.commit()
        connection.execute(sa.insert(Item).values(id=3, name="after"))
    assert sorted(db.tell()) == [f"CREATE item {n}" for n in (1, 2, 3)]
    db.assert_replays()


def test_the_connection_itself_after_a_session(guarded: LoggedDatabase) -> None:
    """What guards keep of the engine's own connection is logged, also after a collection."""
    with outside(guarded, end="commit") as connection:
        with join(guarded, connection) as session:
            session.execute(sa.text("INSERT INTO item VALUES (1, 'x')"))
            session.commit()
        connection.execute(sa.text("UPDATE item SET name = 'y'"))
    assert guarded.tell() == ["CREATE item 1", "UPDATE item 1"]
    guarded.assert_replays()


def test_a_transaction_that_began_before_the_log_was_attached(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    track(engine, Item.__table__)  # type: ignore[arg-type]
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
    with engine.connect() as connection:
        outer = connection.begin()
        # The guard tells once that it keeps images, and nobody listens yet.
        connection.execute(sa.text("INSERT INTO item VALUES (9, 'before')"))
        sessions = sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
        log.attach(sessions)
        with sessions() as session:
            session.execute(sa.text("INSERT INTO item VALUES (1, 'x')"))
            session.commit()
            assert name(log.receipts(session)) == [("item/1", 1), ("item/9", 1)]
            session.execute(exclaim())
            session.commit()
            assert name(log.receipts(session)) == [("item/1", 2), ("item/9", 2)]
        outer.commit()
        assert log.verify(connection).ok


# -- what is not logged ---------------------------------------------------------------------------


def test_the_assertion_sees_what_was_written_past_the_log(db: LoggedDatabase) -> None:
    with outside(db) as connection:
        with join(db, connection) as session:
            session.add(Item(id=1, name="a"))
            session.commit()
        assert_logged(db.log, connection)
        with Session(bind=connection, join_transaction_mode="create_savepoint") as past:
            past.add(Item(id=2, name="past"))
            past.commit()
        with pytest.raises(AssertionError, match="id=2"):
            assert_logged(db.log, connection)
        with pytest.raises(AssertionError, match="not logged"):
            assert_logged(db.log, connection, Item, key=2)


def test_what_another_session_wrote_is_logged_at_the_outer_commit(
    guarded: LoggedDatabase,
) -> None:
    """The connection is one of the attached engine's, whatever joined it meanwhile."""
    with outside(guarded, end="commit") as connection:
        with join(guarded, connection) as session:
            session.add(Item(id=1, name="a"))
            session.commit()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as past:
            past.execute(sa.text("INSERT INTO item VALUES (2, 'past')"))
            past.commit()
    assert guarded.tell() == ["CREATE item 1", "CREATE item 2"]
    guarded.assert_replays()


def test_a_session_that_commits_for_real(db: LoggedDatabase) -> None:
    with db.engine.connect() as connection:
        connection.begin()
        with join(db, connection, "control_fully") as session:  # type: ignore[arg-type]
            for n in (1, 2):
                session.add(Item(id=n, name="a"))
                session.commit()
                assert name(db.log.receipts(session)) == [(f"item/{n}", 1)]
    assert db.tell() == ["CREATE item 1", "CREATE item 2"]
    db.assert_replays()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_recipe_that_renews_a_savepoint(db: LoggedDatabase, end: str) -> None:
    """As SQLAlchemy's manual had it before there were modes."""
    with outside(db, end=end) as connection:
        session = db.sessions(bind=connection)
        nested = connection.begin_nested()

        def renew(session: Session, transaction: Any) -> None:
            nonlocal nested
            if not nested.is_active:
                nested = connection.begin_nested()

        event.listen(session, "after_transaction_end", renew)
        for n in (1, 2, 3):
            session.add(Item(id=n, name="a"))
            session.commit()
            session.add(Item(id=9, name="gone"))
            session.flush()
            session.rollback()
        assert_logged(db.log, connection)
        session.close()
        nested.commit()
    assert len(db.tell()) == (3 if end == "commit" else 0)
    db.assert_replays()


def test_a_session_that_is_closed_without_a_commit(db: LoggedDatabase) -> None:
    """What it flushed stays in the outer transaction, and is logged when that commits."""
    with outside(db, end="commit") as connection:
        with join(db, connection, "rollback_only") as session:
            session.add(Item(id=1, name="flushed"))
            session.flush()
        with join(db, connection) as session:
            session.add(Item(id=2, name="gone"))
            session.flush()
        connection.execute(sa.text("SELECT 1"))
    assert db.count("item") == 1
    assert db.tell() == ["CREATE item 1"]
    db.assert_replays()


# -- asyncio --------------------------------------------------------------------------------------


async def test_asynchronously(db: LoggedDatabase, database_url: URL) -> None:
    engine = create_async_engine(database_url)
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(
        engine, join_transaction_mode="create_savepoint", expire_on_commit=False
    )
    db.log.attach(sessions)
    async with engine.connect() as connection:
        outer = await connection.begin()
        for n in (1, 2):
            async with sessions(bind=connection) as session:
                session.add(Item(id=n, name="a"))
                await session.commit()
                (await session.get_one(Item, n)).name = "b"
                await session.commit()
                assert name(db.log.receipts(session.sync_session)) == [(f"item/{n}", 2)]
        told: Callable[[Connection], list[str]] = lambda inner: tell(db, inner)  # noqa: E731
        assert len(await connection.run_sync(told)) == 4
        await outer.rollback()
    await engine.dispose()
    assert db.tell() == []
