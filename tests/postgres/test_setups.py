"""Every set-up of sessions and engines, with every way of writing: what is stored is logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from oplog.errors import ConfigurationError
from tests.logged import LoggedDatabase, open_logged
from tests.setups import CONNECTIONS, SESSIONS, Target

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    n: Mapped[int] = mapped_column(server_default=sa.text("7"))


ITEM = Base.metadata.tables["item"]
SEED = "INSERT INTO item (id, name, n) VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)"
Write = Callable[[Any], object]


def execute(statement: Any, *parameters: Any) -> Write:
    return lambda target: target.execute(statement, *parameters)


def update_all(session: Session) -> None:
    for item in session.scalars(sa.select(Item).order_by(Item.id)):
        item.n += 10


def merge(session: Session) -> None:
    session.merge(Item(id=1, name="merged", n=5))
    session.merge(Item(id=50, name="new", n=5))


def change_key(session: Session) -> None:
    session.get_one(Item, 1).id = 60


def in_savepoints(session: Session) -> None:
    savepoint = session.begin_nested()
    session.add(Item(id=70, name="gone"))
    session.flush()
    savepoint.rollback()
    with session.begin_nested():
        session.add(Item(id=71, name="stays"))
    session.execute(sa.update(Item).values(name="x").where(Item.id == 71))


def flush_often(session: Session) -> None:
    item = Item(id=80, name="first")
    session.add(item)
    session.flush()
    item.name = "second"
    session.flush()
    session.delete(session.get_one(Item, 2))
    session.flush()
    item.name = "third"


def lock_and_write(session: Session) -> None:
    session.scalars(sa.select(Item).where(Item.id == 3).with_for_update()).one().name = "locked"


MANY = [{"id": n, "name": f"many {n}"} for n in range(20, 26)]
CORE: dict[str, Write] = {
    "insert": execute(sa.insert(ITEM).values(id=10, name="x")),
    "insert many": execute(sa.insert(ITEM), MANY),
    "insert several rows": execute(sa.insert(ITEM).values(MANY)),
    "insert, returning": lambda target: target.execute(
        sa.insert(ITEM).values(id=11).returning(ITEM.c.n)
    ).all(),
    "insert from select": execute(
        sa.insert(ITEM).from_select(["id", "name"], sa.select(ITEM.c.id + 100, ITEM.c.name))
    ),
    "insert or update": execute(
        insert(ITEM)
        .values([{"id": 1, "name": "up"}, {"id": 12, "name": "in"}])
        .on_conflict_do_update(index_elements=["id"], set_={"name": "up"})
    ),
    "update by key": execute(sa.update(ITEM).where(ITEM.c.id == 1).values(name="y")),
    "update by condition": execute(sa.update(ITEM).where(ITEM.c.n > 1).values(n=ITEM.c.n * 2)),
    "update many": execute(
        sa.update(ITEM).where(ITEM.c.id == sa.bindparam("k")).values(name=sa.bindparam("v")),
        [{"k": 1, "v": "p"}, {"k": 99, "v": "nobody"}, {"k": 3, "v": "q"}],
    ),
    "update of a key": execute(sa.update(ITEM).where(ITEM.c.id == 2).values(id=ITEM.c.id + 500)),
    "delete by key": execute(sa.delete(ITEM).where(ITEM.c.id == 1)),
    "delete by condition": execute(sa.delete(ITEM).where(ITEM.c.n < 3)),
    "delete many": execute(
        sa.delete(ITEM).where(ITEM.c.id == sa.bindparam("k")), [{"k": 2}, {"k": 99}]
    ),
    "text insert": execute(sa.text("INSERT INTO item VALUES (13, 'text', 1)")),
    "text update": execute(sa.text("UPDATE item SET name = upper(name)")),
    "text delete": execute(sa.text("DELETE FROM item WHERE id = :id"), {"id": 3}),
    "text many": execute(
        sa.text("UPDATE item SET n = :n WHERE id = :id"), [{"id": 1, "n": 9}, {"id": 2, "n": 8}]
    ),
    "text in a CTE": execute(
        sa.text("WITH d AS (DELETE FROM item RETURNING *) SELECT count(*) FROM d")
    ),
}
ORM: dict[str, Write] = {
    "add": lambda session: session.add(Item(id=30, name="o")),
    "add several": lambda session: session.add_all([Item(id=n, name="o") for n in (31, 32, 33)]),
    "attributes": update_all,
    "delete object": lambda session: session.delete(session.get_one(Item, 2)),
    "merge": merge,
    "change a key": change_key,
    "savepoints": in_savepoints,
    "flush often": flush_often,
    "lock": lock_and_write,
    "bulk objects": lambda session: session.bulk_save_objects([Item(id=41, name="b")]),
    "bulk insert of mappings": lambda session: session.bulk_insert_mappings(Item, MANY),
    "ORM insert many": execute(sa.insert(Item), MANY),
    "ORM update many": execute(sa.update(Item), [{"id": 1, "name": "1"}, {"id": 3, "name": "3"}]),
    "ORM update by condition": execute(sa.update(Item).where(Item.n >= 2).values(name="cond")),
    "ORM delete by condition": execute(sa.delete(Item).where(Item.n >= 2)),
}
TOLD = {
    *("insert", "insert many", "update by key", "update many"),
    *("delete by key", "delete many", "add", "add several", "attributes", "delete object", "merge"),
    *("savepoints", "flush often", "lock", "bulk objects", "ORM insert many", "ORM update many"),
}
"""Ways that need no guard."""
SEPARATE = {"AUTOCOMMIT", "AUTOCOMMIT as an option", "AUTOCOMMIT connection"}
"""Set-ups without transactions, hence without savepoints."""


def read_rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(ITEM).order_by(ITEM.c.id)))


def check(db: LoggedDatabase, setup: str, way: str) -> None:
    run, write = (SESSIONS | CONNECTIONS)[setup], (CORE | ORM)[way]
    if setup in SEPARATE and way == "savepoints":
        pytest.skip("there are no savepoints without a transaction")
    db.log.detach(db.sessions)
    before, position = read_rows(db.engine), db.read()[-1].position

    def work(target: Target) -> None:
        write(target)

    run(db.log, db.engine, work)
    assert read_rows(db.engine) != before
    assert db.read()[-1].position > position
    db.assert_replays()
    assert db.count("oplog.oplog_image") == 0
    with db.engine.connect() as connection:
        prepared = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_xacts").scalar()
    assert prepared == 0


PAIRS = [(setup, way) for setup in SESSIONS for way in CORE | ORM] + [
    (setup, way) for setup in CONNECTIONS for way in CORE
]
TOLD_PAIRS = [(setup, way) for setup, way in PAIRS if way in TOLD]


@pytest.mark.sampled(60)
@pytest.mark.parametrize(("setup", "way"), PAIRS)
def test_guarded(engine: Engine, setup: str, way: str) -> None:
    check(open_logged(engine, Base, guarded=True, seed=SEED), setup, way)


@pytest.mark.sampled(40)
@pytest.mark.parametrize(("setup", "way"), TOLD_PAIRS)
def test_without_a_guard(engine: Engine, setup: str, way: str) -> None:
    # The first transaction of such a log is one of statements as text, which needs a guard.
    db = open_logged(engine, Base)
    with db.sessions.begin() as session:
        session.add_all([Item(id=n, name=name, n=n) for n, name in enumerate("abc", 1)])
    check(db, setup, way)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_phases_of_a_connection(engine: Engine, *, prepared: bool, end: str) -> None:
    db = open_logged(engine, Base, guarded=True, seed=SEED)
    db.log.attach(engine)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(sa.insert(ITEM).values(id=90))
        connection.execute(sa.text("UPDATE item SET name = 'x' WHERE id = 1"))
        if prepared:
            transaction.prepare()
        getattr(transaction, end)()
    told = ["CREATE item 90", "UPDATE item 1"] if end == "commit" else []
    assert sorted(db.tell()[3:]) == told
    with engine.begin() as connection:
        connection.execute(sa.insert(ITEM).values(id=91))
    assert sorted(db.tell()[3:]) == sorted([*told, "CREATE item 91"])
    db.assert_replays()


def test_an_async_scope_is_attached_once_and_detached(engine: Engine) -> None:
    db = open_logged(engine, Base)
    factory = async_sessionmaker()
    scope: async_scoped_session[AsyncSession] = async_scoped_session(factory, scopefunc=lambda: 1)
    for target in (scope, factory):
        db.log.attach(target)
    db.log.detach(scope)
    with pytest.raises(ConfigurationError, match="not attached"):
        db.log.detach(factory)
