"""What one transaction does to rows, and what its entries say."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from oplog import OpType
from tests.logged import LoggedDatabase, brief, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order

pytestmark = pytest.mark.postgres


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, aggregates=AGGREGATES)


def make_account(number: int = 1, **fields: Any) -> Account:
    return Account(**{"id": number, "owner": "ada", "balance": Decimal(5), **fields})


def test_an_added_row_is_logged_with_every_column(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account())
    operation = db.read_last()
    assert operation.kind is OpType.CREATE
    assert operation.key == {"id": 1}
    assert set(operation.fields) == {"id", "owner", "balance", "note", "opened"}
    assert operation.fields["balance"] == Decimal("5.00")
    assert str(operation.fields["balance"]) == "5.00"
    db.assert_replays()


def test_a_changed_row_is_logged_with_its_changed_columns_only(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account())
    with db.sessions.begin() as session:
        session.get_one(Account, 1).owner = "bob"
    operation = db.read_last()
    assert (operation.kind, operation.key) == (OpType.UPDATE, {"id": 1})
    assert operation.fields == {"owner": "bob"}
    db.assert_replays()


def test_a_deleted_row_is_logged_by_its_key(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account())
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
    operation = db.read_last()
    assert (operation.kind, operation.key, operation.fields) == (OpType.DELETE, {"id": 1}, {})
    db.assert_replays()


def test_null_empty_and_default_stay_three_things(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all(
            [make_account(1, note=sa.null()), make_account(2, note=""), make_account(3)]
        )
    notes = [e.operations[0].fields["note"] for e in db.read()]
    assert notes == [None, "", "fresh"]
    with db.sessions.begin() as session:
        session.get_one(Account, 3).note = None
    assert db.read_last().fields == {"note": None}
    with db.sessions.begin() as session:
        session.get_one(Account, 3).note = ""
    assert db.read_last().fields == {"note": ""}
    db.assert_replays()


def test_a_transaction_writes_one_entry_for_each_aggregate(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        first = Order(id=1, customer="ada", lines=[Line(number=n, sku="x") for n in (1, 2)])
        second = Order(id=2, customer="bob", lines=[Line(number=1, sku="y")])
        session.add_all([second, first])
        session.flush()
        first.lines[0].sku = "z"
    entries = db.read()
    assert [(e.aggregate, e.version) for e in entries] == [("order/1", 1), ("order/2", 1)]
    assert [len(e.operations) for e in entries] == [3, 2]
    assert len({(e.position, e.entry_id, e.entry_hash) for e in entries}) == 1
    db.assert_replays()


def test_receipts_are_sorted_and_name_the_stored_entries(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([make_account(n) for n in (10, 9, 2, 1)])
    receipts = db.log.receipts(session)
    stored = {e.aggregate: e for e in db.read()}
    assert [r.aggregate for r in receipts] == sorted(stored)
    for receipt in receipts:
        entry = stored[receipt.aggregate]
        assert (receipt.entry_id, receipt.version) == (entry.entry_id, entry.version)
        assert receipt.record_id == receipt.entry_id
        assert receipt.entry_hash == entry.entry_hash
        assert receipt.versions == {e.aggregate: e.version for e in stored.values()}
    db.assert_replays()


def test_receipts_are_those_of_the_last_commit(db: LoggedDatabase) -> None:
    session = db.sessions()
    session.add(make_account(1))
    session.commit()
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/1"]
    session.add(make_account(2))
    session.commit()
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/2"]
    session.execute(sa.select(Account))
    session.commit()
    assert db.log.receipts(session) == []
    session.close()
    db.assert_replays()


def test_metadata_is_found_from_every_entry_of_the_transaction(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="u_42")
        session.add(make_account(1))
        session.flush()
        db.log.annotate(session, reason=["import", "night"], actor="u_43")
        session.add(make_account(2))
    with db.sessions.begin() as session:
        session.add(make_account(3))
    assert [e.metadata for e in db.read()] == [
        {"actor": ["u_43"], "reason": ["import", "night"]},
        {"actor": ["u_43"], "reason": ["import", "night"]},
        {},
    ]
    with db.engine.connect() as connection:
        found = list(db.log.read(connection, metadata={"reason": ["night", "import"]}))
    assert [e.aggregate for e in found] == ["account/1", "account/2"]
    db.assert_replays()


def test_annotations_alone_write_nothing(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="u_42")
        session.execute(sa.select(Account))
    assert db.read() == []


def test_a_row_that_came_and_went_is_not_logged(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        account = make_account()
        session.add(account)
        session.flush()
        account.owner = "bob"
        session.flush()
        session.delete(account)
    assert db.read() == []
    assert db.log.receipts(session) == []
    db.assert_replays()


def test_insert_and_update_become_one_create(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        account = make_account(note="a")
        session.add(account)
        session.flush()
        account.owner, account.note = "bob", None
    operation = db.read_last()
    assert operation.kind is OpType.CREATE
    assert (operation.fields["owner"], operation.fields["note"]) == ("bob", None)
    db.assert_replays()


def test_delete_and_insert_of_the_same_key_replaces_the_row(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account(note="old"))
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
        session.flush()
        session.add(make_account(owner="new"))
    assert [brief(o) for o in db.read()[-1].operations] == ["DELETE account 1", "CREATE account 1"]
    assert db.read()[-1].operations[1].fields["note"] == "fresh"
    db.assert_replays()


def test_replaced_and_deleted_again_is_a_delete(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account())
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
        session.flush()
        again = make_account(owner="new")
        session.add(again)
        session.flush()
        session.delete(again)
    assert db.tell() == ["CREATE account 1", "DELETE account 1"]
    db.assert_replays()


def test_row_switch_in_one_flush(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account(note="old"))
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
        session.add(make_account(owner="new", note=None))
    assert db.read()[-1].operations[-1].fields["owner"] == "new"
    db.assert_replays()


def test_a_key_change_is_a_delete_and_a_whole_create(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account(note="kept"))
    with db.sessions.begin() as session:
        session.get_one(Account, 1).id = 7
    entries = db.read()[1:]
    assert [(e.aggregate, brief(e.operations[0])) for e in entries] == [
        ("account/1", "DELETE account 1"),
        ("account/7", "CREATE account 7"),
    ]
    assert entries[1].operations[0].fields["note"] == "kept"
    db.assert_replays()


def test_keys_rotate_through_a_free_one(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([make_account(n, owner=f"was {n}") for n in (1, 2)])
    with db.sessions.begin() as session:
        one, two = session.get_one(Account, 1), session.get_one(Account, 2)
        for account, number in ((one, 3), (two, 1), (one, 2)):
            account.id = number
            session.flush()
        two.owner = "moved"
    db.assert_replays()
    with db.sessions() as session:
        owners = {a.id: a.owner for a in session.scalars(sa.select(Account))}
    assert owners == {1: "moved", 2: "was 1"}


def test_a_row_moves_to_the_key_of_a_deleted_one_and_is_changed(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([make_account(n, owner=f"was {n}") for n in (1, 2)])
    with db.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
        session.flush()
        session.get_one(Account, 2).id = 1
        session.flush()
        session.get_one(Account, 1).balance = Decimal(9)
    db.assert_replays()


def test_a_new_row_changes_its_key_and_another_takes_the_old_one(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        first = make_account(1, owner="first")
        session.add(first)
        session.flush()
        first.id = 2
        session.flush()
        session.add(make_account(1, owner="second"))
    assert sorted(db.tell()) == ["CREATE account 1", "CREATE account 2"]
    db.assert_replays()


def test_a_line_that_changes_its_order_is_logged_in_both(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Order(id=1, customer="a"), Order(id=2, customer="b")])
        session.add(Line(id=5, order_id=1, number=1, sku="x"))
    with db.sessions.begin() as session:
        session.get_one(Line, 5).order_id = 2
    entries = db.read()[2:]
    assert [(e.aggregate, brief(e.operations[0])) for e in entries] == [
        ("order/1", "DELETE order_line 5"),
        ("order/2", "CREATE order_line 5"),
    ]
    assert entries[1].operations[0].fields["sku"] == "x"
    db.assert_replays()


def test_changes_and_deletes_of_a_line_land_in_its_order(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Order(id=1, customer="a", lines=[Line(id=5, number=1, sku="x")]))
    with db.sessions.begin() as session:
        session.get_one(Line, 5).sku = "y"
    with db.sessions.begin() as session:
        order = session.get_one(Order, 1)
        order.lines.clear()
    with db.sessions.begin() as session:
        session.delete(session.get_one(Order, 1))
    assert {e.aggregate for e in db.read()} == {"order/1"}
    assert [e.version for e in db.read()] == [1, 2, 3, 4]
    db.assert_replays()


def test_a_constant_aggregate_groups_the_table(engine: Engine) -> None:
    db = open_logged(engine, Base, aggregates={**AGGREGATES, "account": "bank"})
    with db.sessions.begin() as session:
        session.add_all([make_account(1), make_account(2)])
    with db.sessions.begin() as session:
        session.get_one(Account, 2).owner = "bob"
    assert [(e.aggregate, e.version, len(e.operations)) for e in db.read()] == [
        ("bank", 1, 2),
        ("bank", 2, 1),
    ]
    db.assert_replays()


def test_many_rows_in_one_flush_keep_their_own_keys_and_defaults(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all(
            Account(owner=f"owner {n}", balance=Decimal(n), note=None if n % 3 else str(n))
            for n in range(1500)
        )
    assert len(db.read()) == 1500
    db.assert_replays()
    with db.sessions.begin() as session:
        for account in session.scalars(sa.select(Account)):
            account.balance += 1
    db.assert_replays()
    with db.sessions.begin() as session:
        for account in session.scalars(sa.select(Account).where(Account.id % 2 == 0)):
            session.delete(account)
    db.assert_replays()


@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
def test_unique_values_are_swapped_in_one_flush(engine: Engine, guarded: bool) -> None:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=guarded)
    unique = "ALTER TABLE account ADD UNIQUE (owner) DEFERRABLE INITIALLY DEFERRED"
    db.execute(unique)
    with db.sessions.begin() as session:
        session.add_all([make_account(1, owner="ada"), make_account(2, owner="bob")])
    with db.sessions.begin() as session:
        first, second = session.get_one(Account, 1), session.get_one(Account, 2)
        first.owner, second.owner = second.owner, first.owner
        session.flush()
        first.note = second.note = "swapped"
    with pytest.raises(IntegrityError), db.sessions.begin() as session:
        session.get_one(Account, 1).owner = "ada"
    assert db.tell() == [f"{k} account {n}" for k in ("CREATE", "UPDATE") for n in (1, 2)]
    assert [e.operations[0].fields["owner"] for e in db.read()] == ["ada", "bob", "bob", "ada"]
    db.assert_replays()
    db.assert_pool_is_clean()
    with engine.connect() as connection:
        db.log.replay(connection, into="again")
        sql = "SELECT id, owner FROM again.account ORDER BY id"
        assert list(connection.exec_driver_sql(sql)) == [(1, "bob"), (2, "ada")]


def test_nothing_is_logged_of_a_rolled_back_transaction(db: LoggedDatabase) -> None:
    session: Session = db.sessions()
    session.add(make_account())
    session.flush()
    session.rollback()
    session.add(make_account(2))
    session.commit()
    session.close()
    assert db.tell() == ["CREATE account 2"]
    db.assert_replays()


def test_merge_logs_what_changed(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_account(note="a"))
    with db.sessions.begin() as session:
        session.merge(Account(id=1, owner="merged"))
        session.merge(make_account(2))
    assert [brief(e.operations[0]) for e in db.read()[1:]] == [
        "UPDATE account 1",
        "CREATE account 2",
    ]
    db.assert_replays()
