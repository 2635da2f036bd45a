"""Whatever a session does to its rows, what commits is what the log says.

Set OPLOG_TEST_SEED to explore; without it every run does the same. A failure prints the steps
to it, ready to be pasted into a test, and the seed.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from itertools import count
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    SessionTransaction,
    mapped_column,
    relationship,
    sessionmaker,
)

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import NotCapturableError
from tests.support import administer

pytestmark = [pytest.mark.postgres, pytest.mark.property]

SEED = os.environ.get("OPLOG_TEST_SEED")
DEEPEST = 3


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owner"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]
    balance: Mapped[Decimal | None] = mapped_column(sa.Numeric(24, 4))
    score: Mapped[float | None]
    extra: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    made: Mapped[dt.datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )
    # Without cascades: deleting an owner sets its pets' owner_id to NULL.
    pets: Mapped[list[Pet]] = relationship(back_populates="owner")


class Pet(Base):
    __tablename__ = "pet"

    code: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey("owner.id"))
    tag: Mapped[str | None]
    born: Mapped[dt.date | None]
    owner: Mapped[Owner | None] = relationship(back_populates="pets")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
SHORT = st.sampled_from(["", " ", "NULL", "\\N", "é", "e\u0301", "a\tb\n", '"', "{}"]) | TEXTS
NUMBERS = st.decimals("-9e15", "9e15", places=4, allow_nan=False) | st.just(Decimal("NaN"))
FLOATS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324, float("nan")])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | SHORT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3),
    max_leaves=5,
)
OWNER_VALUES = {
    "note": st.none() | SHORT,
    "balance": st.none() | NUMBERS,
    "score": st.none() | FLOATS,
    "extra": DOCUMENTS,
}
PET_VALUES = {
    "tag": st.none() | SHORT,
    "born": st.none() | st.dates(),
}
CHANGEABLE = {"name": SHORT, **OWNER_VALUES, **PET_VALUES}
CHANGES = st.one_of(*(st.tuples(st.just(name), values) for name, values in CHANGEABLE.items()))
PICKS = st.integers(0, 50)
_NUMBERS = count(1)


class AbandonedError(Exception):
    """Ends a savepoint."""


class SessionMachine(RuleBasedStateMachine):
    """One session and all it may do; at every commit the log is replayed and compared."""

    make_database: ClassVar[Callable[[], Iterator[Engine]]]

    @initialize()
    def start(self) -> None:
        self.database = type(self).make_database()
        self.engine = next(self.database)
        self.log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
        self.sessions = sessionmaker(self.engine)
        self.log.attach(self.sessions)
        self.session: Session = self.sessions()
        self.savepoints: list[SessionTransaction] = []
        for n in range(3):
            self.session.add(Owner(name=f"{n}", pets=[Pet(code="", number=next(_NUMBERS))]))
        self.commit()

    def teardown(self) -> None:
        try:
            self.commit()
        finally:
            self.session.close()
            self.database.close()  # type: ignore[attr-defined]

    def pick(self, model: type[Any], number: int) -> Any:
        """One of the rows; looking for it flushes what is pending."""
        found = self.session.scalars(sa.select(model).order_by(*sa.inspect(model).primary_key))
        rows = found.all()
        return rows[number % len(rows)] if rows else None

    # -- rows -----------------------------------------------------------------------------

    @rule(values=st.fixed_dictionaries({"name": SHORT}, optional=OWNER_VALUES))
    def add_owner(self, values: dict[str, Any]) -> None:
        self.session.add(Owner(**values))

    @rule(
        code=SHORT, values=st.fixed_dictionaries({}, optional=PET_VALUES), number=st.none() | PICKS
    )
    def add_pet(self, code: str, values: dict[str, Any], number: int | None) -> None:
        owner = None if number is None else self.pick(Owner, number)
        self.session.add(Pet(code=code, number=next(_NUMBERS), owner=owner, **values))

    @rule(number=PICKS, change=CHANGES, flush=st.booleans())
    def change(self, number: int, change: tuple[str, Any], flush: bool) -> None:
        name, value = change
        row = self.pick(Pet if name in PET_VALUES else Owner, number)
        if row is not None:
            setattr(row, name, value)
        if flush:
            self.session.flush()

    @rule(number=PICKS)
    def change_by_expression(self, number: int) -> None:
        owner = self.pick(Owner, number)
        if owner is not None:
            owner.balance = Owner.balance * 2 + 1
            owner.note = sa.func.upper(Owner.name)

    @rule(number=PICKS, other=PICKS)
    def give_away(self, number: int, other: int) -> None:
        pet = self.pick(Pet, number)
        if pet is not None:
            pet.owner = self.pick(Owner, other)

    @rule(number=PICKS, code=SHORT)
    def rename_key(self, number: int, code: str) -> None:
        pet = self.pick(Pet, number)
        if pet is not None:
            pet.code = code

    @rule(number=PICKS, model=st.sampled_from([Owner, Pet]), back=st.booleans())
    def delete(self, number: int, model: type[Any], back: bool) -> None:
        row = self.pick(model, number)
        if row is None:
            return
        values = {c.key: getattr(row, c.key) for c in sa.inspect(model).column_attrs}
        self.session.delete(row)
        self.session.flush()
        if back:  # the same key again: its net effect is an update, or nothing
            self.session.add(model(**values))

    @rule(statement=st.sampled_from([sa.update(Pet).values(tag="many"), sa.delete(Pet)]))
    def write_many(self, statement: Any) -> None:
        """Captured exactly, or refused before it is sent: then nothing changed."""
        with suppress(NotCapturableError):
            self.session.execute(statement.where(Pet.number % 3 == 0))

    # -- savepoints -----------------------------------------------------------------------

    @precondition(lambda self: len(self.savepoints) < DEEPEST)
    @rule()
    def begin_savepoint(self) -> None:
        self.savepoints.append(self.session.begin_nested())

    @precondition(lambda self: self.savepoints)
    @rule()
    def release_savepoint(self) -> None:
        self.savepoints.pop().commit()

    @precondition(lambda self: self.savepoints)
    @rule(depth=st.integers(1, DEEPEST))
    def roll_back_savepoints(self, depth: int) -> None:
        """Rolling an outer one back takes the inner ones with it."""
        depth = min(depth, len(self.savepoints))
        self.savepoints[-depth].rollback()
        del self.savepoints[-depth:]

    @rule(name=SHORT)
    def fail_in_a_savepoint(self, name: str) -> None:
        """A statement fails after others succeeded; all of them are gone, what was stays."""
        with suppress(IntegrityError), self.session.begin_nested():
            self.session.add(Owner(name=name))
            self.session.flush()
            self.session.execute(sa.insert(Pet), {"code": "x", "number": 0, "owner_id": -1})

    @rule(number=PICKS)
    def abandon_a_savepoint(self, number: int) -> None:
        with suppress(AbandonedError), self.session.begin_nested():
            owner = self.pick(Owner, number)
            if owner is not None:
                owner.note = "never"
                self.session.flush()
            raise AbandonedError

    # -- transactions ---------------------------------------------------------------------

    @rule(end=st.sampled_from(["commit", "commit", "commit", "roll back", "close"]))
    def end(self, end: str) -> None:
        if end == "commit":
            self.commit()
            return
        self.savepoints.clear()
        if end == "roll back":
            self.session.rollback()
        else:  # another session: nothing carries over but the database
            self.session.close()
            self.session = self.sessions()

    def commit(self) -> None:
        while self.savepoints:
            self.savepoints.pop().commit()
        self.session.commit()
        self.check()

    def check(self) -> None:
        with self.engine.connect() as connection:
            report = self.log.verify(connection)
        assert report.ok, report.differences


@pytest.fixture
def make_database(server_url: URL, database_url: URL) -> Callable[[], Iterator[Engine]]:
    """Fresh databases with the log's and the models' tables."""
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)
    engine.dispose()

    def make() -> Iterator[Engine]:
        name = f"{database_url.database}_{next(_NUMBERS)}"
        administer(server_url, f"CREATE DATABASE {name} TEMPLATE {database_url.database}")
        engine = create_engine(database_url.set(database=name))
        try:
            yield engine
        finally:
            engine.dispose()
            administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")

    return make


def test_live_tables_are_what_the_log_says(make_database: Callable[[], Iterator[Engine]]) -> None:
    class Machine(SessionMachine):
        pass

    Machine.make_database = staticmethod(make_database)
    if SEED is not None:
        seed(int(SEED))(Machine)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=SEED is None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
