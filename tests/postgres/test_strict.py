"""Strict mode: what is about to be logged is compared with what the database stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog.errors import CaptureMismatchError
from tests.logged import LoggedDatabase, open_logged
from tests.models.triggers import Base, Item, make_trigger

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[False, True], ids=["unguarded", "guarded"])
def db(request: pytest.FixtureRequest, engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, strict=True, guarded=request.param)
    for number in (1, 2):
        with db.sessions.begin() as session:
            session.add(Item(id=number, name="a"))
    return db


def lie(db: LoggedDatabase) -> None:
    """A trigger that appears while the application runs, and changes what it writes."""
    db.execute(*make_trigger("BEFORE INSERT OR UPDATE", "NEW.name := 'lie'; RETURN NEW;"))


def refuse(db: LoggedDatabase, write: Callable[[Session], object]) -> CaptureMismatchError:
    before = len(db.read())
    session = db.sessions()
    write(session)
    with pytest.raises(CaptureMismatchError) as caught:
        session.commit()
    session.rollback()
    session.close()
    assert len(db.read()) == before
    db.assert_replays()
    db.assert_pool_is_clean()
    return caught.value


WRITES: dict[str, tuple[Callable[[Session], object], str]] = {
    "object changed": (lambda s: setattr(s.get_one(Item, 2), "name", "truth"), "(2,)"),
    "object added": (lambda s: s.add(Item(id=3, name="truth")), "(3,)"),
    "objects added in bulk": (
        lambda s: s.execute(sa.insert(Item), [{"id": 4, "name": "truth"}]),
        "(4,)",
    ),
    "by key": (
        lambda s: s.execute(sa.update(Item).where(Item.id == 1).values(name="truth")),
        "(1,)",
    ),
}


@pytest.mark.parametrize(("write", "key"), WRITES.values(), ids=WRITES.keys())
def test_names_table_key_column_and_both_values(
    db: LoggedDatabase, write: Callable[[Session], object], key: str
) -> None:
    lie(db)
    error = refuse(db, write)
    for part in ('"public"."item"', f"key {key}", "column name", "'truth'", "'lie'"):
        assert part in error.args[0]
    assert error.hint
    assert error.exit_code == 3


def test_names_a_row_that_is_not_there(db: LoggedDatabase) -> None:
    db.execute(*make_trigger("BEFORE INSERT", "NEW.id := NEW.id + 1000; RETURN NEW;"))
    error = refuse(db, lambda s: s.execute(sa.insert(Item), [{"id": 3, "name": "b"}]))
    for part in ('"public"."item"', "key (3,)", "not there"):
        assert part in error.args[0]


def test_what_the_guards_saw_is_read_from_the_table(engine: Engine) -> None:
    """Nothing to compare: those values are the stored ones to begin with."""
    db = open_logged(engine, Base, strict=True, guarded=True)
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="a"))
    lie(db)
    # The process would notice the trigger at its COMMIT, and be refused once.
    db.log.refresh()
    with db.sessions.begin() as session:
        session.execute(sa.text("UPDATE item SET name = 'truth'"))
    assert dict(db.read_last().fields) == {"name": "lie"}
    db.assert_replays()


def test_an_honest_database_passes(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.get_one(Item, 1).name = "b"
        session.add(Item(id=5, name="c"))
    assert len(db.tell()) == 4
    db.assert_replays()
