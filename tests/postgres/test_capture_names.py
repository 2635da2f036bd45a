"""Names are data: quoted, escaped, renamed, in other schemas, or left out."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tests.logged import LoggedDatabase, open_logged
from tests.models.names import (
    WEIRD_NAMES,
    Base,
    Elsewhere,
    MixedCase,
    Pair,
    Renamed,
    Secret,
    Weird,
    weird_table,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Other schema"')
    return open_logged(
        engine, Base, strict=True, exclude={"secret.password": "never leaves the database"}
    )


def test_every_weird_column_is_logged_under_its_own_name(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        row = Weird(id=1)
        for number, name in enumerate(WEIRD_NAMES):
            setattr(row, f"c{number}", f"value of {name}")
        session.add(row)
    fields = db.read_last().fields
    assert {n: fields[n] for n in WEIRD_NAMES} == {n: f"value of {n}" for n in WEIRD_NAMES}
    for number, name in enumerate(WEIRD_NAMES):
        with db.sessions.begin() as session:
            setattr(session.get_one(Weird, 1), f"c{number}", "changed")
        assert db.read_last().fields == {name: "changed"}
    db.assert_replays()


def test_weird_columns_through_core_and_expressions(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.execute(
            weird_table.insert(), [{"id": n, "c2": "a", "c3": "b", "c14": "c"} for n in (1, 2)]
        )
        session.execute(
            weird_table.update()
            .where(weird_table.c.id == 1)
            .values({weird_table.c.c2: sa.func.upper("x"), weird_table.c.c1: "y"})
        )
    fields = db.read()[0].operations[0].fields
    assert (fields["per%cent"], fields["a b"], fields["per%s"]) == ("X", "y", "b")
    db.assert_replays()


def test_columns_known_by_three_names(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Renamed(number=1, title="a", renamed_nr="b"))
    assert db.read_last().fields == {
        "row no": 1,
        "select": "a",
        "renamed_row no": "b",
        "per%cent": "new",
    }
    with db.sessions.begin() as session:
        session.get_one(Renamed, 1).title = None
    assert db.read_last().fields == {"select": None, "per%cent": "touched"}
    with db.sessions.begin() as session:
        session.execute(sa.update(Renamed).where(Renamed.number == 1).values(title="by update"))
        session.execute(sa.insert(Renamed).values(number=2, title="by insert"))
    assert [o.fields["select"] for e in db.read()[2:] for o in e.operations] == [
        "by update",
        "by insert",
    ]
    with db.sessions.begin() as session:
        session.execute(sa.update(Renamed), [{"number": 1, "title": "m"}, {"number": 2}])
        session.execute(sa.insert(Renamed), [{"number": 3, "renamed_nr": "m"}])
        session.get_one(Renamed, 2).number = 9
    with db.sessions.begin() as session:
        session.delete(session.get_one(Renamed, 1))
    db.assert_replays()


def test_tables_in_other_schemas_and_with_quoted_names(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Elsewhere(id=1), MixedCase(id=1), MixedCase(id=2, name="given")])
    with db.sessions.begin() as session:
        session.get_one(Elsewhere, 1).name = "x"
        session.get_one(MixedCase, 1).name = None
    assert [e.aggregate for e in db.read()][:2] == ['Mixed "Case" 100%/1', 'Mixed "Case" 100%/2']
    db.assert_replays()


def test_composite_keys(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all(
            [Pair(left=1, right="a/b"), Pair(left=2, right=""), Pair(left=3, right="c")]
        )
    with db.sessions.begin() as session:
        session.get_one(Pair, ("a/b", 1)).name = "x"
        session.get_one(Pair, ("", 2)).left = 5
        session.delete(session.get_one(Pair, ("c", 3)))
    assert {"right": "", "left": 2} in [e.operations[0].key for e in db.read()]
    db.assert_replays()


def test_excluded_columns_never_enter_a_payload(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Secret(id=1, name="ada", password="hunter2"))
    assert db.read_last().fields == {"id": 1, "name": "ada"}
    with db.sessions.begin() as session:
        session.get_one(Secret, 1).password = "hunter3"
    assert len(db.read()) == 1
    with db.sessions.begin() as session:
        secret = session.get_one(Secret, 1)
        secret.password, secret.name = "hunter4", "bob"
    assert db.read_last().fields == {"name": "bob"}
    db.assert_replays()


def test_an_excluded_column_stays_out_when_the_whole_row_is_read_back(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Secret(id=1, name="ada", password="hunter2"))
    with db.sessions.begin() as session:
        session.get_one(Secret, 1).id = 2
    assert db.read_last().fields == {"id": 2, "name": "ada"}
    db.assert_replays()
