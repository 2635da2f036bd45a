"""Tables that are rebuilt, swapped, untracked or made anew while a process runs.

The process learns of it by a refusal that says to run the transaction again, and needs no restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import oplog.migration  # noqa: F401 - the operations
from oplog import Oplog, TypeCatalog
from oplog.errors import OplogError, SchemaDriftError
from tests.logged import LoggedDatabase, open_logged, run

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    v: Mapped[str]
    more: Mapped[str | None]


TABLE = Base.metadata.tables["item"]
BYPASS = "SET LOCAL oplog.bypass = 'rebuilding item'"
COPY = (
    BYPASS,
    "CREATE TABLE item2 (LIKE item INCLUDING ALL)",
    "INSERT INTO item2 SELECT * FROM item",
)
SWAP = ("ALTER TABLE item RENAME TO item_old", "ALTER TABLE item2 RENAME TO item")
GONE = "DROP TABLE item_old"
MADE_ANEW = "CREATE TABLE item (id integer PRIMARY KEY, more varchar, v varchar NOT NULL)"

KEPT: dict[str, tuple[str, ...]] = {
    "rewritten": ("CLUSTER item USING item_pkey", "ALTER TABLE item ALTER v TYPE text"),
    "observed": (
        "CREATE TABLE seen (id integer)",
        (
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO seen VALUES (NEW.id); RETURN NULL; END'"
        ),
        "CREATE TRIGGER repack AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION see()",
    ),
}
"""The table stays what it was, with its rows."""
EMPTIED: dict[str, tuple[str, ...]] = {
    "dropped and made anew": (BYPASS, "DROP TABLE item", MADE_ANEW),
    "an empty one in its place": (BYPASS, SWAP[0], MADE_ANEW, GONE),
}
"""Its rows are gone, and the log has to learn of that."""

Write = Callable[[Session, int], object]
WRITES: dict[str, Write] = {
    "object": lambda s, n: s.add(Item(id=n, v="object")),
    "core": lambda s, n: s.execute(TABLE.insert().values(id=n, v="core")),
    "text": lambda s, n: s.execute(sa.text(f"INSERT INTO item (id, v) VALUES ({n}, 'text')")),
    "update": lambda s, n: s.execute(sa.text("UPDATE item SET v = v || '!'")),
}


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def guarded(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def db(engine: Engine, guarded: bool) -> LoggedDatabase:
    db = open_logged(engine, Base, guarded=guarded)
    with db.sessions.begin() as session:
        session.add_all([Item(id=n, v="before") for n in (1, 2)])
    return db


def operate(connection: Connection) -> Any:
    return Operations(MigrationContext.configure(connection))


def migrate(
    db: LoggedDatabase, *statements: str, track: bool = False, replace: bool = False
) -> None:
    """What another process does."""
    engine = sa.create_engine(db.engine.url)
    other = Oplog(TypeCatalog.from_models(Base), keyring=db.log.keyring)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        if track:
            operate(connection).track_tables("item")
        if replace:
            other.replace_type(connection, "item", reason="rebuilt")
    engine.dispose()


def assert_equal(db: LoggedDatabase) -> None:
    """The log tells the table's rows; those of a table that is gone went with it."""
    select = "SELECT id, v, more FROM {}.item ORDER BY id"
    with db.engine.connect() as connection, connection.begin() as transaction:
        assert db.log.verify(connection).differences == []
        db.log.replay(connection, into="again")
        again = connection.exec_driver_sql(select.format("again")).all()
        assert again == connection.exec_driver_sql(select.format("public")).all()
        transaction.rollback()


def list_writes(guarded: bool) -> list[Write]:
    return list(WRITES.values()) if guarded else [WRITES["object"], WRITES["core"]]


def write_all(db: LoggedDatabase, *, guarded: bool) -> None:
    """Every way, each again as long as the error says so; the first refusal costs one attempt."""
    for number, write in enumerate(list_writes(guarded), 100):
        db.log.run(db.sessions, lambda s, w=write, n=number: w(s, n))  # type: ignore[misc]


@pytest.mark.parametrize("name", KEPT)
def test_a_table_that_stays_is_logged_on(db: LoggedDatabase, guarded: bool, name: str) -> None:
    migrate(db, *KEPT[name])
    write_all(db, guarded=guarded)
    assert_equal(db)


@pytest.mark.parametrize("name", EMPTIED)
def test_a_table_that_is_made_anew_without_rows(
    db: LoggedDatabase, guarded: bool, name: str
) -> None:
    migrate(db, *EMPTIED[name], track=guarded)
    write_all(db, guarded=guarded)
    assert db.count("item") == len([w for w in list_writes(guarded) if w is not WRITES["update"]])
    assert_equal(db)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("first", [True, False], ids=["said at once", "said later"])
def test_a_copy_in_its_place(db: LoggedDatabase, guarded: bool, first: bool, write: str) -> None:
    """Whose rows are the log's is said by the migration. Until then nothing is written."""
    if not guarded and WRITES[write] not in list_writes(guarded):
        pytest.skip("nobody sees it without a guard")

    def work(session: Session) -> None:
        WRITES[write](session, 100)

    migrate(db, *COPY, *SWAP, GONE, track=guarded, replace=first)
    if not first:
        before = db.count("item WHERE v = 'before'")
        with pytest.raises(SchemaDriftError) as caught:
            db.log.run(db.sessions, work)
        assert not caught.value.retryable
        assert "op.replace_type('item', reason=...)" in caught.value.hint
        assert db.count("item") == before
        migrate(db, replace=True)
    db.log.run(db.sessions, work)
    write_all(db, guarded=guarded) if write == "update" else None
    assert_equal(db)


def test_the_first_refusal_says_to_try_again(db: LoggedDatabase, guarded: bool) -> None:
    migrate(db, *EMPTIED["an empty one in its place"], track=guarded)
    with pytest.raises(OplogError) as caught, db.sessions.begin() as session:
        session.add(Item(id=100, v="after"))
    assert caught.value.retryable
    assert "again" in caught.value.hint
    with db.sessions.begin() as session:
        session.add(Item(id=100, v="after"))
    assert_equal(db)


def test_a_table_that_is_untracked_and_tracked_again(engine: Engine) -> None:
    db = open_logged(engine, Base, guarded=True)
    with db.sessions.begin() as session:
        session.add(Item(id=1, v="before"))
    for number, change in enumerate(("untrack", "track", "untrack", "track"), 2):
        with engine.begin() as connection:
            if change == "untrack":
                operate(connection).untrack_tables("item", reason="for a while")
            else:
                operate(connection).track_tables("item")
        with_guard = change == "track"

        def work(session: Session, n: int = number * 10, text: bool = with_guard) -> None:
            session.add(Item(id=n, v="own"))
            if text:
                session.execute(sa.text(f"INSERT INTO item (id, v) VALUES ({n + 1}, 'text')"))

        db.log.run(db.sessions, work)
    assert db.count("item") == 7
    assert_equal(db)


def test_a_table_that_is_truncated_and_filled_from_a_copy(engine: Engine) -> None:
    """TRUNCATE of a guarded table passes with a reason, and its rows are adopted again."""
    db = open_logged(engine, Base)
    with db.sessions.begin() as session:
        session.add(Item(id=1, v="before"))
    run(engine, *COPY, *SWAP, "TRUNCATE item", "INSERT INTO item SELECT * FROM item_old", GONE)
    migrate(db, replace=True)
    db.log.run(db.sessions, lambda s: s.add(Item(id=2, v="after")))
    assert_equal(db)


def test_a_copy_in_its_place_while_the_old_table_is_kept(db: LoggedDatabase, guarded: bool) -> None:
    """The type goes with the old table, under its new name; the copy is another table to adopt."""
    migrate(db, *COPY, *SWAP, track=guarded)
    db.log.run(db.sessions, lambda s: s.add(Item(id=100, v="after")))
    with db.engine.connect() as connection:
        missing = db.log.verify(connection).differences
        assert [(one.kind, one.key) for one in missing] == [("extra", {"id": n}) for n in (1, 2)]
        assert db.log.adopt(connection).rows == 3
        assert db.log.verify(connection).ok


def test_asynchronous_sessions(db: LoggedDatabase, guarded: bool) -> None:
    async def main() -> None:
        engine = create_async_engine(db.engine.url)
        sessions = async_sessionmaker(engine)
        db.log.attach(sessions)

        async def work(session: AsyncSession, number: int) -> None:
            session.add(Item(id=number, v="own"))

        await db.log.run_async(sessions, lambda s: work(s, 3))
        await asyncio.to_thread(migrate, db, *EMPTIED["dropped and made anew"], track=guarded)
        await db.log.run_async(sessions, lambda s: work(s, 4))
        await engine.dispose()

    asyncio.run(main())
    assert db.count("item") == 1
    assert_equal(db)
