"""Statements whose effect cannot be told are refused unsent; everything else is captured."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from oplog.errors import (
    CommitWouldRollBackError,
    NotCapturableError,
)
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order

pytestmark = pytest.mark.postgres

TABLE: sa.Table = Base.metadata.tables["account"]
ALIAS: Any = TABLE.alias("a")
ROW = {"owner": "x", "balance": 1}


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, seed="", aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        session.add_all([Account(owner="ada", balance=Decimal(n)) for n in (1, 2)])
    return db


def cte_select(session: Session) -> None:
    session.execute(sa.select(TABLE.delete().returning(TABLE.c.id).cte("gone")))


def cte_on_insert(session: Session) -> None:
    gone = TABLE.delete().where(TABLE.c.id == 1).cte("gone")
    session.execute(sa.insert(Order).values(id=9, customer="x").add_cte(gone))


def cte_in_union(session: Session) -> None:
    gone = TABLE.delete().returning(TABLE.c.id).cte("gone")
    session.execute(sa.union_all(sa.select(gone), sa.select(sa.literal(1))))


def cte_in_subquery(session: Session) -> None:
    gone = TABLE.update().values(owner="x").returning(TABLE.c.id).cte("gone")
    session.execute(sa.select(sa.select(sa.func.count()).select_from(gone).scalar_subquery()))


def end_by_hand(session: Session, text: str) -> None:
    session.add(Account(**ROW))
    session.flush()
    session.execute(sa.text(text))


def joined_alias(session: Session) -> None:
    """Reads like a key, but the key is another row's."""
    other = TABLE.alias("other")
    session.execute(
        TABLE.update().where(other.c.id == 1, TABLE.c.id == other.c.id + 1).values(owner="x")
    )


REFUSED: dict[str, Callable[[Session], Any]] = {
    "update by condition": lambda s: s.execute(
        sa.update(Account).where(Account.owner == "ada").values(owner="x")
    ),
    "update all": lambda s: s.execute(sa.update(Account).values(owner="x")),
    "update, fetching": lambda s: s.execute(
        sa.update(Account).where(Account.balance > 0).values(owner="x"),
        execution_options={"synchronize_session": "fetch"},
    ),
    "update by key list": lambda s: s.execute(
        sa.update(Account).where(Account.id.in_([1, 2])).values(owner="x")
    ),
    "update by either key": lambda s: s.execute(
        sa.update(Account).where(sa.or_(Account.id == 1, Account.id == 2)).values(owner="x")
    ),
    "update of all but a key": lambda s: s.execute(
        sa.update(Account).where(~(Account.id == 1)).values(owner="x")
    ),
    "update by another's key": joined_alias,
    "update of an alias": lambda s: s.execute(sa.update(ALIAS).values(owner="x")),
    "update of an aliased class": lambda s: s.execute(
        sa.update(aliased(Account)).values(owner="x")
    ),
    "delete by condition": lambda s: s.execute(sa.delete(Account).where(Account.balance > 0)),
    "delete all": lambda s: s.execute(sa.delete(TABLE)),
    "delete by query": lambda s: s.query(Account).filter(Account.balance > 0).delete(),
    "several rows in VALUES": lambda s: s.execute(
        TABLE.insert().values([{"id": 8, **ROW}, {"id": 9, **ROW}])
    ),
    "insert from select": lambda s: s.execute(
        TABLE.insert().from_select(
            ["id", "owner", "balance"], sa.select(TABLE.c.id + 10, TABLE.c.owner, TABLE.c.balance)
        )
    ),
    "on conflict do nothing": lambda s: s.execute(
        upsert(Account).values(id=1, **ROW).on_conflict_do_nothing()
    ),
    "on conflict do update": lambda s: s.execute(
        upsert(Account)
        .values(id=1, **ROW)
        .on_conflict_do_update(index_elements=["id"], set_={"owner": "y"})
    ),
    "CTE in a select": cte_select,
    "CTE on an insert": cte_on_insert,
    "CTE in a union": cte_in_union,
    "CTE in a subquery": cte_in_subquery,
    "many rows without their keys": lambda s: s.execute(TABLE.insert(), [ROW, ROW]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(sa.inspect(Account), [ROW, ROW]),
    "bulk_save_objects": lambda s: s.bulk_save_objects([Account(**ROW), Account(**ROW)]),
    "another schema": lambda s: s.connection(
        execution_options={"schema_translate_map": {None: "elsewhere"}}
    ).execute(TABLE.insert().values(id=9, **ROW)),
    "commit as text": lambda s: end_by_hand(s, "COMMIT"),
    "end as text": lambda s: end_by_hand(s, " end;"),
    "commit behind a comment": lambda s: end_by_hand(s, "/* bye */ COMMIT"),
    "rollback as text": lambda s: end_by_hand(s, "ROLLBACK"),
    "prepared by hand": lambda s: end_by_hand(s, "PREPARE TRANSACTION 'x'"),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("work", REFUSED.values(), ids=REFUSED.keys())
def test_refused_unsent(db: LoggedDatabase, work: Callable[[Session], Any]) -> None:
    with pytest.raises(NotCapturableError) as caught, db.sessions.begin() as session:
        work(session)
    assert caught.value.hint
    assert db.tell() == ["CREATE account 1", "CREATE account 2"]
    with db.engine.connect() as connection:
        owners = connection.exec_driver_sql("SELECT owner FROM account ORDER BY id").scalars()
        assert owners.all() == ["ada", "ada"]
    db.assert_replays()
    db.assert_pool_is_clean()


REFUSED_ALWAYS = {
    "another schema",
    "commit as text",
    "end as text",
    "commit behind a comment",
    "rollback as text",
    "prepared by hand",
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", sorted(set(REFUSED) - REFUSED_ALWAYS))
def test_captured_where_guards_stand(engine: Engine, name: str) -> None:
    """What the application cannot tell, the database can."""
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add_all([Account(owner="ada", balance=Decimal(n)) for n in (1, 2)])
    with db.sessions.begin() as session:
        REFUSED[name](session)
    assert len(db.tell()) > 2 or name == "on conflict do nothing"
    db.assert_replays()
    db.assert_pool_is_clean()


def insert_one(session: Session) -> None:
    session.execute(TABLE.insert().values(id=9, **ROW))


CAPTURED: dict[str, Callable[[Session], Any]] = {
    "insert with key": insert_one,
    "insert without key": lambda s: s.execute(TABLE.insert().values(owner="x", balance=1)),
    "insert of parameters": lambda s: s.execute(TABLE.insert(), {"id": 9, **ROW}),
    "inserts with keys": lambda s: s.execute(
        TABLE.insert(), [{"id": n, **ROW} for n in range(10, 40)]
    ),
    "inserts through the class": lambda s: s.execute(
        sa.insert(Account), [{"id": n, "note": None, **ROW} for n in range(10, 40)]
    ),
    "inserts with keys, returning": lambda s: s.scalars(
        sa.insert(Account).returning(Account), [{"id": n, **ROW} for n in range(10, 40)]
    ).all(),
    "insert with a named parameter": lambda s: s.execute(
        TABLE.insert().values(id=9, owner=sa.bindparam("who"), balance=1), {"who": "x"}
    ),
    "insert with a literal": lambda s: s.execute(
        TABLE.insert().values(
            id=9, owner=sa.bindparam("who", "lit", literal_execute=True), balance=1
        )
    ),
    "update by key": lambda s: s.execute(sa.update(Account).where(Account.id == 1).values(ROW)),
    "update by key, reversed": lambda s: s.execute(
        TABLE.update().where(sa.literal(1) == TABLE.c.id).values(ROW)
    ),
    "update by key and more": lambda s: s.execute(
        TABLE.update().where((TABLE.c.id == 1) & (TABLE.c.owner == "ada")).values(owner="x")
    ),
    "update that matches nothing": lambda s: s.execute(
        TABLE.update().where(TABLE.c.id == 1, TABLE.c.owner == "bob").values(owner="x")
    ),
    "updates of parameters": lambda s: s.execute(
        TABLE.update().where(TABLE.c.id == sa.bindparam("key")).values(owner=sa.bindparam("who")),
        [{"key": 1, "who": "x"}, {"key": 2, "who": "y"}],
        execution_options={"synchronize_session": None},
    ),
    "updates through the class": lambda s: s.execute(
        sa.update(Account), [{"id": 1, "owner": "x"}, {"id": 2, "owner": "y"}]
    ),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(
        sa.inspect(Account), [{"id": 1, "owner": "x"}, {"id": 2, "owner": "y"}]
    ),
    "ordered values": lambda s: s.execute(
        TABLE.update()
        .where(TABLE.c.id == 1)
        .ordered_values((TABLE.c.owner, "x"), (TABLE.c.balance, TABLE.c.balance + 1))
    ),
    "update of an alias by key": lambda s: s.execute(
        sa.update(ALIAS).where(ALIAS.c.id == 1).values(owner="x")
    ),
    "update from another table": lambda s: s.execute(
        TABLE.update()
        .where(TABLE.c.id == 1, TABLE.c.id == sa.select(sa.literal(1)).scalar_subquery())
        .values(owner="x")
    ),
    "update returning": lambda s: s.execute(
        TABLE.update().where(TABLE.c.id == 1).values(balance=7).returning(TABLE.c.balance)
    ).all(),
    "update of the key": lambda s: s.execute(TABLE.update().where(TABLE.c.id == 1).values(id=5)),
    "delete by key": lambda s: s.execute(sa.delete(Account).where(Account.id == 1)),
    "delete by query": lambda s: s.query(Account).filter_by(id=1).delete(),
    "deletes of parameters": lambda s: s.connection().execute(
        TABLE.delete().where(TABLE.c.id == sa.bindparam("key")), [{"key": 1}, {"key": 2}]
    ),
    "delete returning": lambda s: s.execute(
        TABLE.delete().where(TABLE.c.id == 1).returning(TABLE.c.owner)
    ).all(),
    "bulk_save_objects with keys": lambda s: s.bulk_save_objects(
        [Account(id=n, **ROW) for n in (8, 9)]
    ),
    "on the connection": lambda s: s.connection().execute(TABLE.insert(), {"id": 9, **ROW}),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("work", CAPTURED.values(), ids=CAPTURED.keys())
def test_captured_exactly(db: LoggedDatabase, work: Callable[[Session], Any]) -> None:
    with db.sessions.begin() as session:
        work(session)
    db.assert_replays()


@pytest.fixture
def own_batches(engine: Engine) -> None:
    """The application executes lists of parameters itself: which of them matched is not known."""

    @event.listens_for(engine, "do_executemany", retval=True)
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        cursor.executemany(statement, parameters)
        return True


@pytest.mark.usefixtures("own_batches")
def test_some_of_many_rows_matched(db: LoggedDatabase) -> None:
    """Which of them is unknown, and so the transaction cannot be committed any more."""
    statement = TABLE.delete().where(TABLE.c.id == sa.bindparam("key"))
    session = db.sessions()
    with pytest.raises(NotCapturableError, match="which ones is unknown"):
        session.connection().execute(statement, [{"key": 1}, {"key": 99}])
    with pytest.raises(NotCapturableError):
        session.commit()
    session.close()
    assert db.count("account") == 2
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.usefixtures("own_batches")
@pytest.mark.parametrize("kept", [True, False])
def test_a_capture_failure_lives_as_long_as_its_savepoint(db: LoggedDatabase, kept: bool) -> None:
    statement = TABLE.delete().where(TABLE.c.id == sa.bindparam("key"))
    session = db.sessions()
    savepoint = session.begin_nested()
    with pytest.raises(NotCapturableError):
        session.connection().execute(statement, [{"key": 1}, {"key": 99}])
    if kept:
        savepoint.commit()
        with pytest.raises(NotCapturableError):
            session.commit()
    else:
        savepoint.rollback()
        session.commit()
    session.close()
    assert db.count("account") == 2
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.parametrize("dirty", ["nothing", "row", "expression"])
def test_a_swallowed_error_makes_commit_refuse(db: LoggedDatabase, dirty: str) -> None:
    session = db.sessions()
    if dirty == "row":
        session.get_one(Account, 1).owner = "lost"
    elif dirty == "expression":
        session.get_one(Account, 1).balance = Account.balance + 1
    session.flush()
    with pytest.raises(IntegrityError):
        session.connection().exec_driver_sql(
            "INSERT INTO account (id, owner, balance) VALUES (1, 'x', 1)"
        )
    with pytest.raises(CommitWouldRollBackError) as caught:
        session.commit()
    assert "begin_nested" in caught.value.hint
    session.rollback()
    session.close()
    assert len(db.read()) == 2
    db.assert_replays()
    db.assert_pool_is_clean()


def test_the_connection_is_usable_after_each_refusal(db: LoggedDatabase) -> None:
    for _ in range(12):
        session = db.sessions()
        session.get_one(Account, 1).owner = "lost"
        session.flush()
        with pytest.raises(IntegrityError):
            session.connection().exec_driver_sql(
                "INSERT INTO account (id, owner, balance) VALUES (1, 'x', 1)"
            )
        with pytest.raises(CommitWouldRollBackError):
            session.commit()
        session.close()
    with db.sessions.begin() as session:
        session.add(Line(id=1, number=1, sku="x", order=Order(id=1, customer="c")))
    db.assert_replays()
    db.assert_pool_is_clean()
