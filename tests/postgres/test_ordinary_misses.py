"""Keys of which some match no row: what is thrown and counted is as without the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from oplog import Oplog, TypeCatalog
from oplog.errors import NotCapturableError
from tests.logged import open_logged
from tests.support import assert_replays, install_log

pytestmark = [
    pytest.mark.postgres,
    # Of rows that are gone already.
    pytest.mark.filterwarnings("ignore:DELETE statement on table"),
]


class Base(DeclarativeBase):
    """Rows that others delete and change meanwhile."""


class Item(Base):
    """Without a version."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    n: Mapped[int] = mapped_column(default=0)


class Doc(Base):
    """With a version."""

    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    version = mapped_column(sa.Integer, nullable=False)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy has it


class Stamp(Base):
    """A key with several equal forms."""

    __tablename__ = "stamp"
    id: Mapped[Decimal] = mapped_column(sa.Numeric, primary_key=True, autoincrement=False)
    text: Mapped[str]


class Animal(Base):
    """The root of joined inheritance."""

    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Dog(Animal):
    """A branch of it."""

    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
    bark: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Basket(Base):
    """The parent of lines."""

    __tablename__ = "basket"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(cascade="all, delete-orphan")


class Line(Base):
    """A composite key, and an aggregate that a change may leave."""

    __tablename__ = "line"
    basket_id: Mapped[int] = mapped_column(sa.ForeignKey("basket.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]


AGGREGATES = {"line": "owner/{owner}"}
ITEM: Any = Item.__table__
LINE: Any = Line.__table__
STAMP: Any = Stamp.__table__
DOC: Any = Doc.__table__
DOG: Any = Dog.__table__
bind = sa.bindparam


def run(session: Session, statement: Any, *parameters: dict[str, Any]) -> int:
    return int(session.connection().execute(statement, list(parameters)).rowcount)


def sweep(session: Session, model: type[Any], other: Any) -> None:
    """Deletes all objects, after somebody else did something."""
    rows = session.scalars(sa.select(model)).all()
    session.connection().execute(other)
    for row in rows:
        session.delete(row)
    session.flush()


def rename(session: Session, model: type[Any], other: Any) -> None:
    """Changes all objects, after somebody else did something."""
    rows = session.scalars(sa.select(model)).all()
    session.connection().execute(other)
    for row in rows:
        row.text = "mine"
    session.flush()


BY_KEY = ITEM.c.id == bind("k")
WORK: dict[str, Callable[[Session], Any]] = {
    "update, one missing": lambda s: run(
        s, sa.update(ITEM).where(BY_KEY).values(n=bind("v")), {"k": 1, "v": 5}, {"k": 99, "v": 6}
    ),
    "delete, one missing": lambda s: run(s, sa.delete(ITEM).where(BY_KEY), {"k": 98}, {"k": 2}),
    "delete, the same twice": lambda s: run(s, sa.delete(ITEM).where(BY_KEY), {"k": 3}, {"k": 3}),
    "update, the same twice and one missing": lambda s: run(
        s,
        sa.update(ITEM).where(BY_KEY).values(n=bind("v")),
        *({"k": k, "v": v} for k, v in ((1, 5), (99, 6), (1, 7))),
    ),
    "all missing": lambda s: run(s, sa.delete(ITEM).where(BY_KEY), {"k": 98}, {"k": 97}),
    "optimistic": lambda s: run(
        s,
        sa.update(ITEM).where(BY_KEY, ITEM.c.n == bind("was")).values(n=bind("now")),
        *({"k": k, "was": was, "now": 9} for k, was in ((1, 0), (2, 3), (3, 0))),
    ),
    "move keys": lambda s: run(
        s,
        sa.update(ITEM).where(BY_KEY).values(id=bind("to")),
        *({"k": k, "to": to} for k, to in ((1, 11), (88, 12), (2, 13))),
    ),
    "composite key, other aggregate": lambda s: run(
        s,
        sa.update(LINE)
        .where(LINE.c.basket_id == bind("b"), LINE.c.number == bind("k"))
        .values(owner=bind("o")),
        *({"b": 1, "k": k, "o": o} for k, o in ((1, "z"), (9, "z"), (2, "y"))),
    ),
    "delete composite keys": lambda s: run(
        s,
        sa.delete(LINE).where(LINE.c.basket_id == bind("b"), LINE.c.number == bind("k")),
        *({"b": 1, "k": k} for k in (1, 9, 2)),
    ),
    "keys in another form": lambda s: run(
        s,
        sa.update(STAMP).where(STAMP.c.id == bind("k")).values(text=bind("t")),
        *({"k": Decimal(k), "t": k} for k in ("1.00", "9.0", "2")),
    ),
    "ORM by key": lambda s: s.execute(sa.update(Item), [{"id": 1, "n": 5}, {"id": 2, "n": 6}]),
    "ORM by key, one missing": lambda s: s.execute(
        sa.update(Item), [{"id": 1, "n": 5}, {"id": 99, "n": 6}]
    ),
    "ORM by key with a condition": lambda s: s.execute(
        sa.update(Item).where(Item.id > 1).execution_options(synchronize_session=None),
        [{"id": 1, "n": 5}, {"id": 2, "n": 6}, {"id": 3, "n": 7}],
    ),
    "mappings, one missing": lambda s: s.bulk_update_mappings(
        Item, [{"id": 1, "n": 5}, {"id": 99, "n": 6}]
    ),
    "delete objects, one is gone": lambda s: sweep(s, Item, sa.delete(ITEM).where(ITEM.c.id == 2)),
    "delete versions, one is gone": lambda s: sweep(s, Doc, sa.delete(DOC).where(DOC.c.id == 2)),
    "delete versions, one was changed": lambda s: sweep(
        s, Doc, sa.update(DOC).where(DOC.c.id == 2).values(version=9)
    ),
    "change versions, one was changed": lambda s: rename(
        s, Doc, sa.update(DOC).where(DOC.c.id == 2).values(version=9)
    ),
    "change objects, one is gone": lambda s: rename(
        s, Stamp, sa.delete(STAMP).where(STAMP.c.id == 2)
    ),
    "delete a branch, one is gone": lambda s: sweep(s, Dog, sa.delete(DOG).where(DOG.c.id == 2)),
    "a name twice": lambda s: run(
        s, sa.update(ITEM).where(BY_KEY).values(name="x"), {"k": 1}, {"k": 99}, {"k": 2}
    ),
    "nothing there": lambda s: s.get_one(Item, 77),
}
REFUSED = {"move keys"}
"""Without a guard."""
THROWN = {
    "a name twice": IntegrityError,
    "nothing there": NoResultFound,
    "ORM by key, one missing": StaleDataError,
    "mappings, one missing": StaleDataError,
    "delete versions, one is gone": StaleDataError,
    "delete versions, one was changed": StaleDataError,
    "change versions, one was changed": StaleDataError,
    "change objects, one is gone": StaleDataError,
}


def fill(session: Session) -> None:
    session.add_all([Item(id=n, name=str(n)) for n in (1, 2, 3)])
    session.add_all([Doc(id=n, text="a") for n in (1, 2, 3)])
    session.add_all([Stamp(id=Decimal(f"{n}.0"), text="a") for n in (1, 2)])
    session.add_all([Dog(id=n, bark="w") for n in (1, 2)])
    session.add(Basket(id=1, lines=[Line(number=n, owner="x") for n in (1, 2)]))


@dataclass
class Outcome:
    """What a piece of work came to."""

    rowcount: Any
    error: type[BaseException] | None
    tables: list[Any]


def perform(sessions: sessionmaker[Session], work: Callable[[Session], Any]) -> Outcome:
    rowcount, error = None, None
    try:
        with sessions.begin() as session:
            done = work(session)
            rowcount = done if isinstance(done, int) else None
    except Exception as raised:  # noqa: BLE001 - compared with what plain SQLAlchemy raises
        error = type(raised)
    with sessions() as session:
        tables = [
            session.execute(sa.select(t).order_by(*t.primary_key)).fetchall()
            for t in Base.metadata.sorted_tables
        ]
    return Outcome(rowcount, error, tables)


@pytest.mark.parametrize(
    ("name", "guarded"),
    [
        (name, guarded)
        for name in WORK
        for guarded in (True, False)
        if guarded or name not in REFUSED
    ],
)
def test_as_without_the_log(engine: Engine, name: str, guarded: bool) -> None:
    db = open_logged(engine, Base, guarded=guarded, seed="", aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        fill(session)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA bare")
        for table in Base.metadata.sorted_tables:
            connection.exec_driver_sql(
                f"CREATE TABLE bare.{table.name} (LIKE {table.name} INCLUDING ALL)"
            )
            connection.exec_driver_sql(f"INSERT INTO bare.{table.name} SELECT * FROM {table.name}")
    options = {"options": "-c search_path=bare"}
    plain = sa.create_engine(engine.url, connect_args=options, poolclass=sa.NullPool)
    expected = perform(sessionmaker(plain), WORK[name])
    assert expected.error is THROWN.get(name)
    assert perform(db.sessions, WORK[name]) == expected
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
async def test_async(engine: Engine, database_url: URL, guarded: bool) -> None:
    db = open_logged(engine, Base, guarded=guarded, seed="", aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        fill(session)
    other = create_async_engine(database_url)
    sessions = async_sessionmaker(other)
    db.log.attach(sessions)
    async with sessions.begin() as session:
        connection = await session.connection()
        done = await connection.execute(sa.delete(ITEM).where(BY_KEY), [{"k": 98}, {"k": 2}])
        assert done.rowcount == 1
    with pytest.raises(StaleDataError):
        async with sessions.begin() as session:
            await session.run_sync(WORK["change versions, one was changed"])
    await other.dispose()
    assert db.tell()[-1] == "DELETE item 2"
    db.assert_replays()


def test_a_second_log_counts_as_well(engine: Engine) -> None:
    """One of them executes the statement, and both know what it matched."""
    db = open_logged(engine, Base, guarded=True, seed="", aggregates=AGGREGATES)
    with engine.begin() as connection:
        install_log(connection, schema="audit")
    catalog = TypeCatalog.from_models(Base, aggregates=AGGREGATES)
    audit = Oplog(catalog, plaintext=True, schema="audit")
    audit.attach(db.sessions)
    with db.sessions.begin() as session:
        fill(session)
        session.flush()
        run(session, sa.delete(ITEM).where(BY_KEY), {"k": 98}, {"k": 2})
    db.assert_replays()
    assert_replays(audit, engine)


@pytest.mark.parametrize("guard", [True, False])
def test_a_row_that_comes_meanwhile(engine: Engine, guard: bool) -> None:
    """Which form its key has was looked up when it was not there yet."""
    db = open_logged(engine, Base, guarded=guard, seed="", aggregates=AGGREGATES)
    others = sessionmaker(sa.create_engine(engine.url, poolclass=sa.NullPool))
    db.log.attach(others)
    with db.sessions() as session:
        session.execute(sa.text("SELECT 1"))

        @event.listens_for(engine, "before_cursor_execute")
        def come(*given: Any) -> None:
            # After the log's own listener, which has just looked.
            if "UPDATE stamp" in given[2]:
                with others.begin() as other:
                    other.add(Stamp(id=Decimal("5.0"), text="a"))

        update = sa.update(Stamp).where(Stamp.id == Decimal(5)).values(text="x")
        if guard:
            assert session.execute(update).rowcount == 1  # type: ignore[attr-defined]
            session.commit()
        else:
            with pytest.raises(NotCapturableError) as refused:
                session.execute(update)
            assert refused.value.retryable
    db.assert_replays()
