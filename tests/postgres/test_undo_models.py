"""Undo of rows whose model makes, wraps or converts values: they come back as they were stored."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tests.logged import LoggedDatabase, open_logged
from tests.models.columns import (
    Always,
    Base,
    ByDefault,
    Colour,
    Computed,
    DecoratedKey,
    Defaults,
    LooseKey,
    TextKeyed,
    Typed,
)
from tests.postgres.tenants import TENANTS, Note, make_office

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[True, False], ids=["guarded", "unguarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=request.param, seed="")


def state(db: LoggedDatabase) -> dict[str, list[Any]]:
    with db.engine.connect() as connection:
        return {
            name: sorted(
                row[0]
                for row in connection.exec_driver_sql(f'SELECT t::text FROM "{name}" t').all()
            )
            for name in Base.metadata.tables
        }


def make() -> list[Any]:
    return [
        Always(name="a"),
        ByDefault(name="b"),
        Computed(id=1, side=3),
        Defaults(plain=1),
        DecoratedKey(id="key", name="d"),
        LooseKey(id=Decimal("1.50"), name="l"),
        TextKeyed(name="t"),
        Typed(
            id=1,
            upper="upper",
            numbered="n",
            reversed="abc",
            colour=Colour.RED,
            document={"b": 1.50, "a": [None, "\u20ac"]},
            binary_document={"z": 1, "a": 10**30},
            numbers=[1, 2],
            words=["x", "y"],
            price=Decimal("1.5"),
            exact=Decimal("1.500"),
            code="ab",
            ratio=0.1,
            data=b"\x00\xff",
            moment=datetime(2024, 1, 2, 3, 4, 5, 678901),
        ),
    ]


def change(session: Any) -> None:
    session.scalars(sa.select(Always)).one().name = None
    session.scalars(sa.select(ByDefault)).one().ticket = 99
    session.get_one(Computed, 1).side = 5
    session.scalars(sa.select(Defaults)).one().plain = 2
    session.get_one(DecoratedKey, "key").name = "D"
    session.get_one(LooseKey, Decimal("1.50")).name = "L"
    session.scalars(sa.select(TextKeyed)).one().name = None
    typed = session.get_one(Typed, 1)
    typed.upper, typed.reversed, typed.colour = "other", "xyz", Colour.GREEN
    typed.document, typed.binary_document = {}, None
    typed.numbers, typed.words, typed.price, typed.code = [], None, None, "c"
    typed.ratio, typed.data, typed.exact = 2.5, b"", Decimal("1.5")


def test_what_models_make_of_values(db: LoggedDatabase) -> None:
    empty = state(db)
    with db.sessions.begin() as session:
        session.add_all(make())
    made = db.log.receipts(session)[0]
    before = state(db)
    with db.sessions.begin() as session:
        change(session)
    changed = db.log.receipts(session)[0]
    after = state(db)
    with db.sessions.begin() as session:
        for model in (*Base.__subclasses__(),):
            for row in session.scalars(sa.select(model)):
                session.delete(row)
    gone = db.log.receipts(session)[0]
    for record, expected in ((gone, after), (changed, before), (made, empty)):
        plan = db.log.plan_undo(db.engine, records=record)
        assert not plan.conflicts, plan.preview()
        (*_, undone) = db.log.undo(db.sessions, plan)
        assert state(db) == expected
        db.assert_replays()
    plan = db.log.plan_undo(db.engine, records=undone)
    db.log.undo(db.sessions, plan)
    assert state(db) == before


def test_columns_that_sqlalchemy_would_touch_stay(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Defaults(plain=1))
    before = state(db)
    with db.sessions.begin() as session:
        touched = {"python_update": Defaults.python_update, "sql_update": Defaults.sql_update}
        table, key = Base.metadata.tables["defaults"], session.scalars(sa.select(Defaults.id)).one()
        session.execute(sa.update(table).where(table.c.id == key).values(plain=2, **touched))
    changed = db.log.receipts(session)[0]
    db.log.undo(db.sessions, db.log.plan_undo(db.engine, records=changed))
    assert state(db) == before
    db.assert_replays()


@pytest.mark.parametrize("guarded", [True, False])
def test_tables_of_tenants(engine: Engine, guarded: bool) -> None:
    office = make_office(engine, guarded=guarded)
    positions = {}
    for tenant in TENANTS:
        with office.translated(tenant) as session:
            session.add(Note(id=1, body="first", mood="good"))
        with office.translated(tenant) as session:
            session.get_one(Note, 1).body = tenant
            session.get_one(Note, 1).mood = "bad"
        positions[tenant] = office.read()[-1].position
    with office.under("t2") as session:
        plan = office.log.plan_undo(session, records=positions["t1"])
    office.log.undo(office.sessions, plan)
    assert (office.list_rows("t1"), office.list_rows("t2")) == ([(1, "first")], [(1, "t2")])
    with office.translated("t1") as session:
        session.delete(session.get_one(Note, 1))
    plan = office.log.plan_undo(engine, records=office.read()[-1].position)
    office.log.undo(office.sessions, plan)
    assert office.list_rows("t1") == [(1, "first")]
    office.assert_replays()
