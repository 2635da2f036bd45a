"""`assert_logged` and `assert_tracked`: what passes, and what a failure says."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from oplog import OpType, TypeCatalog
from oplog.errors import ConfigurationError, UnknownTypeError
from oplog.testing import assert_logged, assert_tracked
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Order
from tests.support import administer

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="ada", reason=["import", "night"])
        session.add(Account(id=1, owner="Ada", balance=Decimal(10), note=None))
        session.add(Account(id=2, owner="Bo", balance=Decimal(20)))
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="bo")
        known = session.get_one(Account, 1)
        known.balance, known.note = Decimal(11), None
        session.delete(session.get_one(Account, 2))
    return db


@pytest.fixture
def connection(db: LoggedDatabase) -> Iterator[Connection]:
    with db.engine.connect() as connection:
        yield connection


FOUND: list[dict[str, Any]] = [
    {},
    {"key": 1},
    {"key": (1,)},
    {"key": {"id": 1}},
    {"kind": "update"},
    {"kind": OpType.DELETE, "key": 2},
    {"fields": {"balance": Decimal(11)}},
    {"fields": {"note": None}, "kind": "update"},
    {"metadata": {"actor": "ada"}},
    {"metadata": {"reason": ["night", "import"]}},
    {
        "key": 1,
        "kind": "create",
        "fields": {"owner": "Ada", "balance": Decimal(10)},
        "metadata": {"actor": "ada", "reason": "night"},
    },
]


@pytest.mark.sampled(16)
@pytest.mark.parametrize("wanted", FOUND, ids=str)
@pytest.mark.parametrize("model", [Account, Account.__table__, "account"], ids=str)
def test_what_was_logged(
    db: LoggedDatabase, connection: Connection, model: Any, wanted: dict[str, Any]
) -> None:
    assert_logged(db.log, connection, model, **wanted)


MISSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"key": 3}, ["account id=3", "create account id=1 wrote", "delete account id=2"]),
    ({"key": 1, "kind": "delete"}, ["delete account id=1", "update account id=1", "says actor"]),
    (
        {"key": 1, "fields": {"balance": Decimal(12)}},
        ["with balance=Decimal('12')", "update account id=1 wrote balance=Decimal('11.00')"],
    ),
    ({"kind": "create", "fields": {"note": None}}, ["create account with note=None"]),
    (
        {"key": 1, "metadata": {"actor": "eve"}},
        ["a transaction that says actor='eve'", "says actor=['ada'], reason=['import', 'night']"],
    ),
    ({"key": 1, "kind": "create", "metadata": {"reason": ["night", "day"]}}, ["reason="]),
]


@pytest.mark.parametrize(("wanted", "told"), MISSED, ids=str)
def test_what_was_not(
    db: LoggedDatabase, connection: Connection, wanted: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(AssertionError, match="not logged: ") as caught:
        assert_logged(db.log, connection, Account, **wanted)
    for part in told:
        assert part in str(caught.value)


def test_the_row_that_was_asked_for_is_told_first(
    db: LoggedDatabase, connection: Connection
) -> None:
    with db.sessions.begin() as session:
        session.add_all(Account(id=n, owner="many", balance=n) for n in range(10, 50))
    with pytest.raises(AssertionError) as caught:
        assert_logged(db.log, connection, Account, key=1, kind="delete")
    assert "create account id=1 wrote" in str(caught.value)
    assert "update account id=1 wrote" in str(caught.value)
    assert "and 24 more" in str(caught.value)


def test_a_type_that_was_never_written(db: LoggedDatabase, connection: Connection) -> None:
    with pytest.raises(AssertionError, match="nothing of the kind; it holds 4 entries"):
        assert_logged(db.log, connection, Order)


def test_any_type(db: LoggedDatabase, connection: Connection) -> None:
    assert_logged(db.log, connection, metadata={"actor": "bo"}, kind="delete")
    assert_logged(db.log, connection, key={"id": 2})
    with pytest.raises(AssertionError, match="of any type"):
        assert_logged(db.log, connection, metadata={"actor": "eve"})


def test_what_cannot_be_asked(db: LoggedDatabase, connection: Connection) -> None:
    with pytest.raises(UnknownTypeError):
        assert_logged(db.log, connection, "nothing")
    with pytest.raises(ConfigurationError, match=r"not a primary key of \(id\)"):
        assert_logged(db.log, connection, Account, key=(1, 2))
    with pytest.raises(ConfigurationError, match="any table"):
        assert_logged(db.log, connection, key=1)


def test_everything_is_logged(db: LoggedDatabase, connection: Connection) -> None:
    assert_logged(db.log, connection)
    administer(
        db.engine.url,
        "UPDATE account SET balance = 99 WHERE id = 1",
        "INSERT INTO \"order\" (id, customer) VALUES (7, 'Eve')",
        "INSERT INTO account (id, owner, balance) "
        "SELECT n, 'x', 0 FROM generate_series(100, 130) n",
    )
    with pytest.raises(AssertionError) as caught:
        assert_logged(db.log, connection)
    text = str(caught.value)
    assert "tables and log differ: 33 differences" in text
    assert (
        "public.account id=1 column balance: live Decimal('99.00'), logged Decimal('11.00')" in text
    )
    assert "public.account id=100: the table has this row, the log has not: id=100, " in text
    assert "and 13 more" in text
    administer(db.engine.url, "DELETE FROM account")
    with pytest.raises(AssertionError, match="the log has this row, the table has not: id=1"):
        assert_logged(db.log, connection)


def test_a_log_that_does_not_replay(db: LoggedDatabase, connection: Connection) -> None:
    administer(
        db.engine.url,
        "ALTER TABLE account DROP CONSTRAINT account_pkey CASCADE, ADD PRIMARY KEY (id, owner)",
    )
    with pytest.raises(AssertionError, match=r"cannot be compared.*public.account.*primary key"):
        assert_logged(db.log, connection)


# -- assert_tracked -------------------------------------------------------------------------------


def test_every_table_is_tracked_or_left_out_with_a_reason() -> None:
    assert_tracked(TypeCatalog.from_models(Base), Base)
    catalog = TypeCatalog.from_models(Base, untracked={"order_line": "derived"})
    assert_tracked(catalog, Base.metadata)
    assert_tracked(catalog, [Base, Base.metadata])


def test_tables_that_nobody_tracks_are_named() -> None:
    part = sa.MetaData()
    Account.__table__.to_metadata(part)  # type: ignore[attr-defined]
    catalog = TypeCatalog.from_models(part, untracked={})
    with pytest.raises(AssertionError) as caught:
        assert_tracked(catalog, Base)
    for name in ("account", "order", "order_line"):
        # Another Table object of the same name is not the one that sessions write.
        assert f"  {name}: neither tracked nor in untracked" in str(caught.value)


def test_an_empty_reason_is_none() -> None:
    catalog = TypeCatalog.from_models(Base, untracked={"order_line": " "})
    with pytest.raises(AssertionError, match=r"order_line: in untracked=.* without a reason"):
        assert_tracked(catalog, Base)


def test_tables_mapped_from_other_metadata_count() -> None:
    class Own(DeclarativeBase):
        registry = registry()

    class Here(Own):
        __tablename__ = "here"
        id: Mapped[int] = mapped_column(primary_key=True)

    class There(Own):
        __table__ = sa.Table(
            "there", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), schema="far"
        )

    assert Here.__table__ is not There.__table__
    with pytest.raises(AssertionError, match=r"far\.there: neither"):
        assert_tracked(TypeCatalog.from_models(Own), Own)


def test_what_is_no_collection_of_tables() -> None:
    with pytest.raises(ConfigurationError, match="neither a declarative base nor a MetaData"):
        assert_tracked(TypeCatalog.from_models(Base), "account")  # type: ignore[arg-type]
