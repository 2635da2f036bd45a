"""At any position the tables are those that SELECT gave when it was the last one.

The histories are drawn: rows made, changed and deleted in bulk, cascades, keys that move, rows that
change their aggregate. What is remembered is what SELECT gave after each COMMIT; nothing of it asks
the product.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.logged import LoggedDatabase, open_logged

pytestmark = [pytest.mark.property, pytest.mark.postgres]


class Base(DeclarativeBase):
    pass


class Crate(Base):
    __tablename__ = "crate"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    place: Mapped[str]
    weight: Mapped[float | None]


class Item(Base):
    """Its aggregate is its crate's, and goes with it."""

    __tablename__ = "item"
    crate_id: Mapped[int] = mapped_column(
        sa.ForeignKey(Crate.id, ondelete="CASCADE", onupdate="CASCADE"), primary_key=True
    )
    code: Mapped[str] = mapped_column(primary_key=True)
    note: Mapped[str | None]


class Label(Base):
    """All rows are one aggregate."""

    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str | None]


MODELS: tuple[Any, ...] = (Crate, Item, Label)
JOINED = (
    sa.select(Crate.place, Item.code, Item.note, Label.text)
    .join(Item, isouter=True)
    .join(Label, Label.id == Crate.id, isouter=True)
    .order_by(Crate.id, Item.code)
)
GROUPED = sa.select(Crate.place, sa.func.count(), sa.func.max(Crate.id)).group_by(Crate.place)
SELECTS: tuple[Any, ...] = (JOINED, GROUPED.order_by(Crate.place))

NUMBER = st.integers(1, 5)
WORD = st.sampled_from(["a", "b", "%s", "\\N", "it's", ""])
MAYBE = st.none() | WORD
CHANGE = st.one_of(
    st.tuples(st.just("INSERT INTO crate VALUES (%s, %s, %s)"), NUMBER, WORD, st.just(1.5)),
    st.tuples(st.just("INSERT INTO item VALUES (%s, %s, %s)"), NUMBER, WORD, MAYBE),
    st.tuples(st.just("INSERT INTO label VALUES (%s, %s)"), NUMBER, MAYBE),
    st.tuples(st.just("UPDATE crate SET place = %s, weight = NULL WHERE id >= %s"), WORD, NUMBER),
    st.tuples(st.just("UPDATE crate SET id = id + 5 WHERE id = %s"), NUMBER),
    st.tuples(st.just("UPDATE crate SET id = id - 5 WHERE id = %s + 5"), NUMBER),
    st.tuples(st.just("UPDATE item SET note = %s WHERE code = %s"), MAYBE, WORD),
    st.tuples(st.just("UPDATE item SET code = %s WHERE crate_id = %s"), WORD, NUMBER),
    st.tuples(st.just("UPDATE label SET text = %s WHERE id <= %s"), MAYBE, NUMBER),
    st.tuples(st.just("DELETE FROM crate WHERE id = %s"), NUMBER),
    st.tuples(st.just("DELETE FROM item WHERE code = %s"), WORD),
    st.tuples(st.just("DELETE FROM label WHERE id > %s"), NUMBER),
)
PLACE = st.integers(0, 999)
"""Which position, counted over and over: what is drawn must not depend on what was drawn before."""
TRANSACTIONS = st.lists(st.lists(CHANGE, min_size=1, max_size=4), min_size=1, max_size=4)


@dataclass
class World:
    """A database, and what SELECT gave after each of its transactions, by position."""

    db: LoggedDatabase
    states: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def write(self, changes: list[tuple[Any, ...]]) -> None:
        """One transaction, remembered if it made a record."""
        with suppress(IntegrityError), self.db.sessions.begin() as session:
            connection = session.connection()
            for statement, *values in changes:
                connection.exec_driver_sql(statement, tuple(values))
        with self.db.engine.connect() as connection:
            last = connection.exec_driver_sql("SELECT max(position) FROM oplog.oplog_record")
            position = last.scalar_one()
            if position is not None:
                answers = [show(connection.execute(one).mappings()) for one in list_questions()]
                self.states.setdefault(position, tuple(answers))

    def ask(self, position: int) -> tuple[str, ...]:
        """The same answers, of the past."""
        with (
            self.db.engine.connect() as connection,
            self.db.log.moment(connection, at=position) as then,
        ):
            assert [show(then.rows(model)) for model in MODELS] == [
                show(then.rows(select)) for select in list_questions()[: len(MODELS)]
            ]
            return tuple(show(then.rows(select)) for select in list_questions())


def list_questions() -> list[Any]:
    whole = [sa.select(one).order_by(*sa.inspect(one).primary_key) for one in MODELS]
    return [*whole, *SELECTS]


def show(rows: Any) -> str:
    return repr([dict(row) for row in rows])


@pytest.fixture
def world(engine: Engine) -> World:
    aggregates = {"item": "crate/{crate_id}", "label": "labels"}
    return World(open_logged(engine, Base, aggregates=aggregates, guarded=True))


# All examples write to one database: a longer log is as good a history. So a failure cannot be
# made smaller, and how long an example takes says nothing.
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(transactions=TRANSACTIONS, places=st.tuples(PLACE, PLACE))
def test_the_past_is_what_it_was(
    world: World, transactions: list[list[tuple[Any, ...]]], places: tuple[int, int]
) -> None:
    for changes in transactions:
        world.write(changes)
    if not world.states:
        return
    positions = sorted(world.states)
    before, after = sorted(positions[place % len(positions)] for place in places)
    assert world.ask(before) == world.states[before]
    assert world.ask(after) == world.states[after]
    log = world.db.log
    with world.db.engine.connect() as connection:
        for model in MODELS:
            names = [column.name for column in sa.inspect(model).primary_key]
            rows = {
                tuple(row[n] for n in names): dict(row)
                for row in log.as_of(connection, model, at=before)
            }
            for one in log.diff(connection, model, before=before, after=after):
                key = tuple(one.key[name] for name in names)
                assert rows.pop(key, None) == one.before
                if one.after is not None:
                    rows[key] = dict(one.after)
            later = log.as_of(connection, model, at=after)
            assert sorted(map(repr, rows.values())) == sorted(repr(dict(row)) for row in later)
