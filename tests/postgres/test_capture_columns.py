"""The logged value is the stored one, however the column came by it."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import OpType
from tests.logged import LoggedDatabase, open_logged
from tests.models.columns import (
    Always,
    Base,
    ByDefault,
    Colour,
    Computed,
    Counter,
    DecoratedKey,
    Defaults,
    LooseKey,
    TextKeyed,
    Typed,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base)


def test_identity_keys_come_from_the_database(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Always(name="a"), Always(name="b"), ByDefault(name="c")])
        session.add(ByDefault(id=5, name="given"))
    with db.sessions.begin() as session:
        session.get_one(Always, 101).name = None
        session.delete(session.get_one(ByDefault, 5))
    assert db.tell()[:2] == ["CREATE always 100", "CREATE always 101"]
    db.assert_replays()


def test_a_sequence_on_an_ordinary_column(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([ByDefault(name="a"), ByDefault(name="b"), ByDefault(ticket=3)])
    db.assert_replays()


def test_defaults_of_every_kind(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Defaults(), Defaults(plain=1), Defaults(python_sql="given")])
        session.add_all(Defaults(plain=n) for n in range(20))
    db.assert_replays()
    with db.sessions.begin() as session:
        for row in session.scalars(sa.select(Defaults)):
            row.plain = (row.plain or 0) + 1
    db.assert_replays()


def test_update_defaults_are_logged_with_the_update(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Defaults())
    with db.sessions.begin() as session:
        session.scalars(sa.select(Defaults)).one().plain = 1
    fields = db.read_last().fields
    assert fields["plain"] == 1
    assert len(fields["python_update"]) == 32
    assert isinstance(fields["sql_update"], datetime)
    db.assert_replays()


def test_computed_columns_are_left_to_the_database(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Computed(id=1, side=3))
    with db.sessions.begin() as session:
        session.get_one(Computed, 1).side = 4
    assert [e.operations[0].fields for e in db.read()] == [{"id": 1, "side": 3}, {"side": 4}]
    db.assert_replays()


def test_expressions_on_insert(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Counter(id=1, value=sa.select(sa.literal(40) + 2).scalar_subquery()))
        session.add(Counter(id=2, value=sa.null(), label=sa.func.upper("x")))
        session.add(Counter(id=3, value=7))
    values = [e.operations[0].fields for e in db.read()]
    assert [v["value"] for v in values] == [42, None, 7]
    assert [v["label"] for v in values] == [None, "X", None]
    db.assert_replays()


def test_expressions_on_a_core_insert(db: LoggedDatabase) -> None:
    table = Counter.__table__
    assert isinstance(table, sa.Table)
    with db.sessions.begin() as session:
        session.execute(
            table.insert().values(id=1, value=sa.literal(2) * 21, label="a", version_id=1)
        )
    assert db.read_last().fields["value"] == 42
    db.assert_replays()


def test_expressions_on_update(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Counter(id=1, value=1))
    with db.sessions.begin() as session:
        counter = session.get_one(Counter, 1)
        counter.value = Counter.value + 1
        session.flush()
        counter.value = Counter.value * 10
        counter.label = sa.func.repeat("ab", 2)
    assert db.read_last().fields == {"value": 20, "label": "abab", "version_id": 3}
    db.assert_replays()


def test_expression_then_value_then_expression(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        counter = Counter(id=1, value=sa.literal(1) + 1)
        session.add(counter)
        session.flush()
        counter.value = 5
        session.flush()
        counter.label = sa.func.upper("a")
    assert db.read_last().fields["value"] == 5
    db.assert_replays()


def test_the_version_counter_is_logged(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Counter(id=n, value=n) for n in (1, 2, 3)])
    with db.sessions.begin() as session:
        for counter in session.scalars(sa.select(Counter)):
            counter.value = 0
    assert {e.operations[0].fields["version_id"] for e in db.read()[3:]} == {2}
    with db.sessions.begin() as session:
        session.delete(session.get_one(Counter, 2))
    db.assert_replays()


def test_a_decorated_type_is_logged_as_stored(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Typed(id=n, upper=f"a{n}", numbered="x") for n in range(5)])
    with db.sessions.begin() as session:
        session.get_one(Typed, 1).upper = "changed"
        session.get_one(Typed, 2).numbered = "changed"
    assert db.read()[0].operations[0].fields["upper"] == "A0"
    db.assert_replays()


def test_a_value_that_passes_through_sql_is_logged_as_stored(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Typed(id=1, reversed="abc"))
    assert db.read_last().fields["reversed"] == "cba"
    with db.sessions.begin() as session:
        session.get_one(Typed, 1).reversed = "xyz"
    assert db.read_last().fields == {"reversed": "zyx"}
    db.assert_replays()


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("column", "given", "logged"),
    [
        ("colour", Colour.GREEN, "GREEN"),
        ("document", {"b": [1, None], "a": "ü"}, {"b": [1, None], "a": "ü"}),
        ("document", [], []),
        ("binary_document", {"b": [1, None], "a": "ü"}, {"a": "ü", "b": [1, None]}),
        ("binary_document", "text", "text"),
        ("numbers", [3, None, 1], [3, None, 1]),
        ("numbers", [], []),
        ("words", ["", "a,b", 'q"', None], ["", "a,b", 'q"', None]),
        ("words", ["longer than five"], ["longe"]),
        ("price", Decimal("1.005"), Decimal("1.01")),
        ("price", Decimal("-1.005"), Decimal("-1.01")),
        ("price", 3, Decimal("3.00")),
        ("exact", Decimal("1.10"), Decimal("1.10")),
        ("exact", Decimal("NaN"), None),
        ("code", "ab", "ab  "),
        ("code", "", "    "),
        ("ratio", 0.1, 0.10000000149011612),
        ("ratio", -0.0, -0.0),
        ("data", b"\x00\xff", b"\x00\xff"),
        ("moment", datetime(2024, 2, 29, 1, 2, 3, 456789), datetime(2024, 2, 29, 1, 2, 3, 457000)),
        ("span", timedelta(days=1, hours=24), timedelta(days=2)),
    ],
)
def test_values_are_logged_as_stored(
    db: LoggedDatabase, column: str, given: Any, logged: Any
) -> None:
    with db.sessions.begin() as session:
        session.add(Typed(id=1, **{column: given}))
        session.add(Typed(id=2))
    created = db.read()[0].operations[0].fields[column]
    with db.sessions.begin() as session:
        setattr(session.get_one(Typed, 2), column, given)
    updated = db.read_last().fields[column]
    assert repr(created) == repr(updated)
    if logged is not None:
        assert repr(created) == repr(logged)
    with db.sessions.begin() as session:
        setattr(session.get_one(Typed, 2), column, sa.null())
    assert db.read_last().fields == {column: None}
    db.assert_replays()


def test_json_null_is_not_sql_null(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Typed(id=1, document=None, binary_document=None))
        session.add(Typed(id=2, document=sa.JSON.NULL, binary_document=sa.JSON.NULL))
        session.add(Typed(id=3))
    with db.engine.connect() as connection:
        live = connection.exec_driver_sql(
            "SELECT document::text, binary_document::text FROM typed ORDER BY id"
        ).all()
    assert [tuple(row) for row in live] == [("null", "null"), ("null", "null"), (None, None)]
    db.assert_replays()


def test_keys_that_python_holds_in_another_form(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        given = TextKeyed(id="0E2A7C52-9C1F-4D0B-8C39-0A4F8F8B7A11", name="given")
        drawn = [TextKeyed(name=f"drawn {n}") for n in range(3)]
        session.add_all([given, *drawn, DecoratedKey(id="abc", name="x")])
        session.flush()
        keys = [drawn[0].id, drawn[1].id]
    with db.sessions.begin() as session:
        session.get_one(TextKeyed, keys[0]).name = "changed"
        session.delete(session.get_one(TextKeyed, keys[1]))
        session.get_one(DecoratedKey, "abc").name = "changed"
    assert db.tell()[-1] == "UPDATE decorated_key ABC" or "UPDATE decorated_key ABC" in db.tell()
    db.assert_replays()


def test_keys_that_are_equal_and_stored_apart(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([LooseKey(id=Decimal("1.00")), LooseKey(id=Decimal("2.0"))])
    with db.sessions.begin() as session:
        session.execute(sa.update(LooseKey).where(LooseKey.id == Decimal(1)).values(name="x"))
        session.execute(sa.delete(LooseKey).where(LooseKey.id == Decimal(2)))
    assert db.tell()[2:] == ["UPDATE loose_key 1.00", "DELETE loose_key 2.0"]
    db.assert_replays()


def test_settings_of_the_application_do_not_reach_the_log(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.execute(sa.text("SET LOCAL datestyle = 'German'"))
        session.execute(sa.text("SET LOCAL timezone = 'Asia/Kolkata'"))
        session.execute(sa.text("SET LOCAL bytea_output = 'escape'"))
        session.execute(sa.text("SET LOCAL extra_float_digits = -5"))
        session.add(Typed(id=1, moment=sa.func.now(), ratio=sa.literal(0.1), data=b"\x00\\a"))
        session.add(Defaults())
        session.flush()
        session.execute(
            sa.update(Typed).where(Typed.id == 1).values(data=sa.func.decode("00ff", "hex"))
        )
    assert db.read()[-1].operations[0].kind is OpType.CREATE
    db.assert_replays()
