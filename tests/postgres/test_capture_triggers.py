"""Triggers of the application: what they store is logged, or the write is refused."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import CaptureMismatchError, NotCapturableError
from tests.logged import LoggedDatabase, open_logged
from tests.models.triggers import Base, Item, make_trigger

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    """Binds at the first transaction: triggers made in a test before it are known."""
    return open_logged(engine, Base)


def test_a_trigger_changes_values(db: LoggedDatabase) -> None:
    db.execute(
        *make_trigger(
            "BEFORE INSERT OR UPDATE",
            "NEW.name := upper(NEW.name); NEW.stamp := tg_op; RETURN NEW;",
        )
    )
    with db.sessions.begin() as session:
        session.add_all(
            [Item(id=1, name="a"), Item(id=2, name="b", stamp="mine"), Item(id=3, name="c")]
        )
    assert db.read()[0].operations[0].fields == {
        "id": 1,
        "name": "A",
        "stamp": "INSERT",
        "gone": False,
    }
    with db.sessions.begin() as session:
        session.get_one(Item, 1).gone = True
    assert db.read_last().fields["stamp"] == "UPDATE"
    db.assert_replays()


def test_a_trigger_suppresses_rows(db: LoggedDatabase) -> None:
    db.execute(
        *make_trigger(
            "BEFORE INSERT OR UPDATE OR DELETE",
            "IF coalesce(NEW.name, OLD.name) = 'no' THEN RETURN NULL; END IF; "
            "IF tg_op = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;",
        )
    )
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="no"))
    with db.sessions.begin() as session:
        session.add(Item(id=2, name="yes"))
    with db.sessions.begin() as session:
        session.execute(sa.update(Item).where(Item.id == 2).values(name="no"))
        session.execute(sa.update(Item).where(Item.id == 1).values(name="any"))
        session.execute(sa.delete(Item).where(Item.id == 1))
    with db.sessions.begin() as session:
        session.execute(sa.delete(Item).where(Item.id == 2))
    assert [t for t in db.tell() if not t.startswith("UPDATE")] == [
        "CREATE item 2",
        "DELETE item 2",
    ]
    db.assert_replays()


def test_a_delete_that_a_trigger_turns_into_an_update(db: LoggedDatabase) -> None:
    db.execute(
        *make_trigger(
            "BEFORE DELETE",
            "UPDATE item SET gone = true WHERE id = OLD.id; RETURN NULL;",
        )
    )
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="a"))
    with db.sessions.begin() as session:
        session.execute(sa.delete(Item).where(Item.id == 1))
    assert db.read_last().fields["gone"] is True
    db.assert_replays()


def test_an_insert_that_a_trigger_turns_into_an_update(db: LoggedDatabase) -> None:
    db.execute(
        *make_trigger(
            "BEFORE INSERT",
            "UPDATE item SET name = NEW.name WHERE id = NEW.id; "
            "IF FOUND THEN RETURN NULL; END IF; RETURN NEW;",
        )
    )
    for name in ("first", "second"):
        with db.sessions.begin() as session:
            session.execute(sa.insert(Item).values(id=1, name=name))
    assert db.tell() == ["CREATE item 1", "UPDATE item 1"]
    db.assert_replays()


def test_a_deleted_row_that_a_trigger_puts_back(db: LoggedDatabase) -> None:
    db.execute(
        *make_trigger(
            "AFTER DELETE",
            "INSERT INTO item (id, name, gone) VALUES (OLD.id, 'ghost', true); RETURN NULL;",
        )
    )
    with db.sessions.begin() as session:
        session.add(Item(id=1, name="a"))
    with db.sessions.begin() as session:
        session.delete(session.get_one(Item, 1))
    assert db.tell()[1:] == ["DELETE item 1", "CREATE item 1"]
    db.assert_replays()


@pytest.mark.parametrize("when", ["INSERT", "UPDATE"])
def test_a_trigger_that_moves_the_key_is_refused(db: LoggedDatabase, when: str) -> None:
    db.execute(
        *make_trigger(
            f"BEFORE {when}",
            "IF NEW.name = 'move' THEN NEW.id := NEW.id + 1000; END IF; RETURN NEW;",
        )
    )
    with db.sessions.begin() as session:
        session.add_all([Item(id=1, name="a"), Item(id=2, name="b")])
    before = len(db.read())
    session = db.sessions()
    if when == "INSERT":
        session.add(Item(id=3, name="move"))
    else:
        session.get_one(Item, 1).name = "move"
    with pytest.raises(NotCapturableError, match="primary key"):
        session.flush()
    session.rollback()
    session.close()
    assert len(db.read()) == before
    db.assert_replays()
    db.assert_pool_is_clean()


def test_strict_catches_a_trigger_that_appeared_later(engine: Engine) -> None:
    db = open_logged(engine, Base, strict=True)
    for number in (1, 2):
        with db.sessions.begin() as session:
            session.add(Item(id=number, name="a"))
    db.execute(*make_trigger("BEFORE INSERT OR UPDATE", "NEW.name := 'lie'; RETURN NEW;"))
    session = db.sessions()
    session.get_one(Item, 2).name = "truth"
    with pytest.raises(CaptureMismatchError) as caught:
        session.commit()
    session.rollback()
    session.close()
    for part in ("item", "(2,)", "name", "'truth'", "'lie'"):
        assert part in str(caught.value)
    assert caught.value.hint
    assert len(db.read()) == 2
    db.assert_replays()
    db.assert_pool_is_clean()


def test_strict_catches_a_row_that_is_not_there(engine: Engine) -> None:
    db = open_logged(engine, Base, strict=True)
    for number in (1, 2):
        with db.sessions.begin() as session:
            session.add(Item(id=number, name="a"))
    db.execute(*make_trigger("BEFORE INSERT", "NEW.id := NEW.id + 1000; RETURN NEW;"))
    session = db.sessions()
    session.add(Item(id=3, name="a"))
    with pytest.raises(CaptureMismatchError, match="not there"):
        session.commit()
    session.rollback()
    session.close()
    db.assert_replays()


def test_refresh_learns_of_a_new_trigger(db: LoggedDatabase) -> None:
    for number in (1, 2):
        with db.sessions.begin() as session:
            session.add(Item(id=number, name="a"))
    db.execute(*make_trigger("BEFORE INSERT", "NEW.stamp := 'new'; RETURN NEW;"))
    db.log.refresh()
    with db.sessions.begin() as session:
        session.add(Item(id=3, name="a"))
    assert db.read_last().fields["stamp"] == "new"
    db.assert_replays()
