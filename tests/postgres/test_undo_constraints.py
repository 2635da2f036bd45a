"""Undo where constraints leave only some orders: unique values, references in circles, cascades."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import UndoConflictError
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres

META = sa.MetaData()
SEAT = sa.Table(
    "seat",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, sa.CheckConstraint("number > 0"), nullable=False, unique=True),
    sa.Column("badge", sa.Text, unique=True),
    sa.Column("code", sa.String(6), nullable=False),
    sa.UniqueConstraint("code", name="seat_code", deferrable=True),
)
MEMBER = sa.Table(
    "member",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("mail", sa.Text, nullable=False),
    sa.Column("desk", sa.Integer, nullable=False),
    sa.Column("left", sa.Date),
)
MEASURE = sa.Table(
    "measure",
    META,
    sa.Column("id", sa.Double, primary_key=True, autoincrement=False),
    sa.Column("v", sa.Integer),
)
sa.Index("member_mail", sa.func.lower(MEMBER.c.mail), unique=True)
sa.Index("member_desk", MEMBER.c.desk, unique=True, postgresql_where=MEMBER.c.left.is_(None))
TREE = sa.Table(
    "tree",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey("tree.id", ondelete="CASCADE")),
)
TEAM = sa.Table(
    "team",
    META,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("mail", sa.Text, unique=True, nullable=False),
    sa.Column("head", sa.ForeignKey("person.id", name="team_head", use_alter=True)),
)
PERSON = sa.Table(
    "person",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "team",
        sa.ForeignKey("team.name", onupdate="CASCADE", ondelete="CASCADE"),
        nullable=False,
    ),
)
PAIR_A = sa.Table(
    "pair_a",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "b",
        sa.ForeignKey(
            "pair_b.id", name="to_b", use_alter=True, deferrable=True, initially="DEFERRED"
        ),
        nullable=False,
    ),
)
PAIR_B = sa.Table(
    "pair_b",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.ForeignKey("pair_a.id"), nullable=False),
)
ODD = sa.Table(
    "odd",
    META,
    sa.Column("id", sa.Integer, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("secret", sa.Text),
    sa.Column("length", sa.Integer, sa.Computed("char_length(name)")),
)


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(
        engine, META, guarded=True, seed="", exclude={"odd.secret": "not for the log"}
    )


def state(db: LoggedDatabase) -> dict[str, list[Any]]:
    with db.engine.connect() as connection:
        return {
            name: [repr(r) for r in connection.execute(sa.select(t).order_by(*t.primary_key))]
            for name, t in META.tables.items()
        }


def write(db: LoggedDatabase, *statements: str) -> int:
    with db.sessions.begin() as session:
        for statement in statements:
            session.execute(sa.text(statement))
    return db.read()[-1].position


def undo(db: LoggedDatabase, *records: int, **options: Any) -> int:
    plan = db.log.plan_undo(db.engine, records=records, **options)
    assert db.log.undo(db.sessions, plan)
    db.assert_replays()
    return db.read()[-1].position


Write = Callable[..., int]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            ("INSERT INTO seat VALUES (1, 1, 'a', 'x'), (2, 2, 'b', 'y'), (3, 3, 'c', 'z')",),
            (
                "SET CONSTRAINTS seat_code DEFERRED",
                "UPDATE seat SET number = 1000 + number, badge = NULL",
                "UPDATE seat SET number = id % 3 + 1, badge = substr('abc', id % 3 + 1, 1)",
                "UPDATE seat SET code = substr('xyz', id % 3 + 1, 1)",
            ),
            id="unique values go round",
        ),
        pytest.param(
            ("INSERT INTO seat VALUES (1, 1, 'a', 'x'), (2, 2, 'b', 'y')",),
            ("DELETE FROM seat WHERE id = 1", "UPDATE seat SET number = 1, badge = 'a'"),
            id="a unique value of a row that went",
        ),
        pytest.param(
            ("INSERT INTO member VALUES (1, 'A', 1, NULL), (2, 'b', 2, NULL), (3, 'c', 3, NULL)",),
            (
                "DELETE FROM member WHERE id = 1",
                "UPDATE member SET mail = 'x', desk = 9 WHERE id = 3",
                "UPDATE member SET mail = 'a', desk = 1 WHERE id = 2",
                "UPDATE member SET mail = 'B', \"left\" = '2024-01-01', desk = 1 WHERE id = 3",
            ),
            id="unique expressions and unique among some rows",
        ),
        pytest.param(
            ("INSERT INTO measure VALUES ('NaN', 1), ('-0', 1), ('Infinity', 1)",),
            ("UPDATE measure SET v = 2", "DELETE FROM measure WHERE id = 'Infinity'"),
            id="keys that are no numbers",
        ),
        pytest.param(
            ("INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 4), (5, 3)",),
            ("DELETE FROM tree WHERE id = 1",),
            id="cascade down a tree",
        ),
        pytest.param(
            ("INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2)",),
            ("UPDATE tree SET parent = 3 WHERE id = 1", "DELETE FROM tree"),
            id="rows in a circle",
        ),
        pytest.param(
            (
                "INSERT INTO team VALUES ('red', 'r@x', NULL)",
                "INSERT INTO person VALUES (1, 'red'), (2, 'red')",
                "UPDATE team SET head = 1",
            ),
            ("UPDATE team SET name = 'blue'",),
            id="a key that others follow",
        ),
        pytest.param(
            (
                "INSERT INTO team VALUES ('red', 'r@x', NULL)",
                "INSERT INTO person VALUES (1, 'red')",
                "UPDATE team SET head = 1",
            ),
            ("UPDATE team SET head = NULL", "DELETE FROM team"),
            id="a circle that may be NULL",
        ),
        pytest.param(
            ("INSERT INTO pair_a VALUES (1, 1)", "INSERT INTO pair_b VALUES (1, 1)"),
            ("DELETE FROM pair_b", "DELETE FROM pair_a"),
            id="a circle that may be deferred",
        ),
    ],
)
def test_constraints_hold_at_every_step(
    db: LoggedDatabase, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    empty = state(db)
    made = write(db, *first)
    before = state(db)
    changed = write(db, *second)
    after = state(db)
    back = undo(db, changed)
    assert state(db) == before
    undone = undo(db, back)
    assert state(db) == after
    undo(db, undone)
    assert state(db) == before
    undo(db, made)
    assert state(db) == empty


def test_unique_value_that_another_row_took_since(db: LoggedDatabase) -> None:
    write(db, "INSERT INTO seat VALUES (1, 1, 'a', 'x')")
    freed = write(db, "UPDATE seat SET badge = 'b'")
    write(db, "INSERT INTO seat VALUES (2, 2, 'a', 'y')")
    plan = db.log.plan_undo(db.engine, records=freed)
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.rows) == ("taken", ("public.seat (id=2)",))
    with pytest.raises(UndoConflictError, match=r"seat \(id=2\)"):
        db.log.undo(db.sessions, plan)


def test_identity_generated_and_excluded_columns(db: LoggedDatabase) -> None:
    made = write(db, "INSERT INTO odd (name, secret) VALUES ('a', 's')")
    write(db, "UPDATE odd SET name = 'abc'")
    before = state(db)
    gone = write(db, "DELETE FROM odd")
    (conflict,) = db.log.plan_undo(db.engine, records=gone).conflicts
    assert (conflict.kind, conflict.rows) == ("excluded", ("secret",))
    plan = db.log.plan_undo(db.engine, records=gone, values={"odd.secret": "s"})
    assert not plan.conflicts
    db.log.undo(db.sessions, plan)
    assert state(db) == before
    db.assert_replays()
    plan = db.log.plan_undo(db.engine, records=made, on_conflict="overwrite")
    assert "odd.secret" in plan.preview()
    db.log.undo(db.sessions, plan)
    assert state(db)["odd"] == []


def test_dependents_in_tables_that_are_not_logged(db: LoggedDatabase) -> None:
    db.execute(
        "CREATE TABLE visit (day date, place int, seat int REFERENCES seat ON DELETE CASCADE, "
        "PRIMARY KEY (day, place))"
    )
    made = write(db, "INSERT INTO seat VALUES (1, 1, 'a', 'x')")
    db.execute("INSERT INTO visit VALUES ('2024-01-01', 7, 1)")
    (conflict,) = db.log.plan_undo(db.engine, records=made).conflicts
    assert (conflict.kind, conflict.rows) == (
        "dependent",
        ("public.visit (day=2024-01-01, place=7)",),
    )


def test_unique_value_that_two_rows_would_have(db: LoggedDatabase) -> None:
    """Each had it at another time; who changed one of them in between is not undone."""
    write(db, "INSERT INTO seat VALUES (1, 1, 'a', 'x'), (2, 2, 'b', 'y')")
    first = write(db, "UPDATE seat SET badge = 'z' WHERE id = 1")
    write(db, "UPDATE seat SET badge = 'a' WHERE id = 2")
    second = write(db, "UPDATE seat SET badge = 'c' WHERE id = 2")
    plan = db.log.plan_undo(db.engine, records=[first, second], on_conflict="overwrite")
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.key, conflict.rows) == (
        "taken",
        {"id": 2},
        ("public.seat (id=1)",),
    )
    before = state(db)
    with pytest.raises(UndoConflictError):
        db.log.undo(db.sessions, plan)
    assert state(db) == before
    db.log.undo(db.sessions, plan.choose("skip"))
    db.assert_replays()
