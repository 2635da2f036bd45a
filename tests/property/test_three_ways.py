"""The same changes through objects, Core and raw SQL: equal tables, equal replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from tests.logged import LoggedDatabase, open_logged, track
from tests.models.depot import AGGREGATES, OBJECTS, TABLES, Base, Bin, Part, Slot

pytestmark = pytest.mark.property

MODELS: dict[str, Any] = {"part": Part, "bin": Bin, "slot": Slot}


class Step(NamedTuple):
    """What to do to the rows of a table between two keys."""

    verb: str
    table: str
    key: int
    column: str
    value: Any


KEYS = st.integers(1, 5)
STEPS = st.one_of(
    st.builds(Step, st.just("add"), st.sampled_from(sorted(MODELS)), KEYS, st.just(""), KEYS),
    st.builds(Step, st.just("set"), st.just("part"), KEYS, st.just("stock"), st.integers(0, 9)),
    st.builds(Step, st.just("set"), st.just("part"), KEYS, st.just("note"),
              st.sampled_from([None, "", "late", "é"])),
    st.builds(Step, st.just("set"), st.just("slot"), KEYS, st.just("bin_id"), KEYS),
    st.builds(Step, st.just("set"), st.just("bin"), KEYS, st.just("label"), st.text("ab")),
    st.builds(Step, st.just("remove"), st.sampled_from(sorted(MODELS)), KEYS, st.just(""), KEYS),
    st.builds(Step, st.just("savepoint"), st.just(""), st.just(0), st.just(""), st.booleans()),
)  # fmt: skip
TRANSACTIONS = st.lists(st.lists(STEPS, min_size=1, max_size=8), min_size=1, max_size=4)


def make_row(step: Step) -> dict[str, Any]:
    if step.table == "part":
        return {"id": step.key, "sku": f"sku {step.key}", "note": None}
    if step.table == "bin":
        return {"id": step.key, "label": "b", "up": step.value if step.value < step.key else None}
    return {"id": step.key, "bin_id": step.value, "part_id": step.key, "amount": step.value}


def by_objects(session: Session, step: Step) -> None:
    model = MODELS[step.table]
    if step.verb == "add":
        session.add(model(**make_row(step)))
        session.flush()
        return
    found = session.get(model, step.key, populate_existing=True)
    if found is not None and step.verb == "remove":
        session.delete(found)
    elif found is not None:
        setattr(found, step.column, step.value)
    session.flush()


def by_core(session: Session, step: Step) -> None:
    table = TABLES[step.table]
    here = table.c.id.between(step.key, step.key)
    if step.verb == "add":
        session.execute(table.insert().values([make_row(step)]))
    elif step.verb == "remove":
        session.execute(table.delete().where(here))
    else:
        session.execute(table.update().where(here).values({step.column: step.value}))


def by_text(session: Session, step: Step) -> None:
    if step.verb == "add":
        row = make_row(step)
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        session.execute(sa.text(f"INSERT INTO {step.table} ({names}) VALUES ({values})"), row)
    elif step.verb == "remove":
        session.execute(sa.text(f"DELETE FROM {step.table} WHERE id = :id"), {"id": step.key})
    else:
        statement = f"UPDATE {step.table} SET {step.column} = :value WHERE id = :id"
        session.execute(sa.text(statement), {"id": step.key, "value": step.value})


WAYS: Sequence[Callable[[Session, Step], None]] = (by_objects, by_core, by_text)


def run(session: Session, steps: Sequence[Step], write: Callable[[Session, Step], None]) -> None:
    """Each step in a savepoint of its own: one the database refuses leaves no trace."""
    for step in steps:
        if step.verb == "savepoint":
            continue
        try:
            with session.begin_nested():
                write(session, step)
        except sa.exc.IntegrityError:
            session.expire_all()


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    db.execute(*OBJECTS)
    track(engine, *TABLES.values())
    return db


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(transactions=TRANSACTIONS)
def test_the_same_changes_replay_the_same(
    db: LoggedDatabase, transactions: list[list[Step]]
) -> None:
    told = []
    for write in WAYS:
        with db.sessions.begin() as session:
            for name in ("slot", "bin", "part", "movement"):
                session.execute(sa.text(f"DELETE FROM {name}"))
        for steps in transactions:
            with db.sessions.begin() as session:
                run(session, steps, write)
        with db.engine.begin() as connection:
            assert db.log.verify(connection).ok
            db.log.replay(connection, into="replayed")
            told.append(
                {
                    name: sorted(
                        connection.exec_driver_sql(
                            f"SELECT to_jsonb(t) {'- %s' if name == 'movement' else ''}::text "
                            f"FROM replayed.{name} t",
                            ("id",) if name == "movement" else (),
                        ).scalars(),
                        key=str,
                    )
                    for name in ("part", "bin", "slot", "movement")
                }
            )
    assert told[0] == told[1] == told[2]
