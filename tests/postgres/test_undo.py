"""Undo: the exact earlier state, or a conflict that names who is in the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import OpType
from oplog.errors import ConfigurationError, StalePlanError, UndoConflictError, UndoError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order

pytestmark = pytest.mark.postgres


@pytest.fixture(params=[True, False], ids=["guarded", "unguarded"])
def bank(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=request.param, seed="", aggregates=AGGREGATES)


@pytest.fixture
def guarded(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True, seed="", aggregates=AGGREGATES)


def state(db: LoggedDatabase) -> dict[str, list[Mapping[str, Any]]]:
    """Every row of every table."""
    with db.engine.connect() as connection:
        return {
            name: [
                dict(row)
                for row in connection.execute(
                    sa.select(table).order_by(*table.primary_key)
                ).mappings()
            ]
            for name, table in Base.metadata.tables.items()
        }


def write(db: LoggedDatabase, work: Any, **metadata: str) -> int:
    """Run `work` in a transaction; the position of its record."""
    with db.sessions.begin() as session:
        db.log.annotate(session, **metadata)
        work(session)
    return db.read()[-1].position


def add_account(id: int, **fields: Any) -> Any:
    return lambda s: s.add(Account(id=id, **{"owner": f"owner {id}", "balance": 10, **fields}))


def set_account(id: int, **fields: Any) -> Any:
    def work(session: Any) -> None:
        for name, value in fields.items():
            setattr(session.get_one(Account, id), name, value)

    return work


def undo(db: LoggedDatabase, *records: int, **options: Any) -> int:
    """Plan and undo; the position of the undo's record."""
    plan = db.log.plan_undo(db.engine, records=records, **options)
    assert db.log.undo(db.sessions, plan, reason="test")
    db.assert_replays()
    return db.read()[-1].position


def test_update_create_and_delete_are_undone_and_undone_again(bank: LoggedDatabase) -> None:
    states, done = [state(bank)], []
    for work in (
        add_account(1, note=None),
        set_account(1, owner="B", balance=5),
        lambda s: s.delete(s.get_one(Account, 1)),
    ):
        done.append(write(bank, work, actor="ada"))
        states.append(state(bank))
    for number in (2, 1, 0):
        undone = undo(bank, done[number])
        assert state(bank) == states[number]
        again = undo(bank, undone)
        assert state(bank) == states[number + 1]
        undo(bank, again)
        assert state(bank) == states[number]


def test_undo_names_what_it_undoes(guarded: LoggedDatabase) -> None:
    made = write(guarded, add_account(1))
    at = undo(guarded, made)
    with guarded.engine.connect() as connection:
        (entry,) = guarded.log.read(connection, metadata={"undoes": str(made)})
    assert entry.position == at
    assert entry.metadata["undoes"] == [str(made)]
    assert entry.metadata["reason"] == ["test"]
    assert entry.operations[0].kind is OpType.DELETE
    plan = guarded.log.plan_undo(guarded.engine, records=made)
    assert (len(plan.writes), plan.already, plan.conflicts) == (0, 1, ())
    assert guarded.log.undo(guarded.sessions, plan) == []


def test_columns_that_others_changed_are_conflicts(bank: LoggedDatabase) -> None:
    write(bank, add_account(1, balance=1))
    ours = write(bank, set_account(1, owner="X", balance=2), actor="ada")
    theirs = write(bank, set_account(1, balance=3), actor="bob")
    before = state(bank)
    plan = bank.log.plan_undo(bank.engine, records=ours)
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.column, conflict.choice) == ("changed", "balance", "fail")
    (change,) = conflict.changes
    assert (change.position, change.metadata) == (theirs, {"actor": ["bob"]})
    assert (str(change.before), str(change.after)) == ("2.00", "3.00")
    assert (str(conflict.now), str(conflict.wanted)) == ("3.00", "1.00")
    assert "actor=bob" in plan.preview()
    document = json.loads(json.dumps(plan.to_json()))
    assert document["conflicts"][0]["name"] == "public.account (id=1): balance"
    assert document["conflicts"][0]["changes"][0]["before"] == "2.00"
    with pytest.raises(UndoConflictError) as caught:
        bank.log.undo(bank.sessions, plan)
    assert caught.value.conflicts == plan.conflicts
    assert state(bank) == before
    bank.log.undo(bank.sessions, plan.choose("skip"))
    (row,) = state(bank)["account"]
    assert (row["owner"], str(row["balance"])) == ("owner 1", "3.00")
    plan = bank.log.plan_undo(bank.engine, records=ours, on_conflict="overwrite")
    bank.log.undo(bank.sessions, plan)
    (row,) = state(bank)["account"]
    assert (row["owner"], str(row["balance"])) == ("owner 1", "1.00")
    bank.assert_replays()


def test_plan_is_stale_after_any_change_of_its_rows(bank: LoggedDatabase) -> None:
    write(bank, add_account(1, balance=1))
    ours = write(bank, set_account(1, balance=2))
    plan = bank.log.plan_undo(bank.engine, records=ours)
    write(bank, set_account(1, balance=9))
    write(bank, set_account(1, balance=2))
    before = state(bank)
    with pytest.raises(StalePlanError) as caught:
        bank.log.undo(bank.sessions, plan)
    assert caught.value.retryable
    assert state(bank) == before
    entries = len(bank.read())
    with pytest.raises(StalePlanError):
        bank.log.undo(bank.sessions, plan)
    assert len(bank.read()) == entries


def test_rows_that_refer_to_one_another(bank: LoggedDatabase) -> None:
    def order(session: Any) -> None:
        session.add(
            Order(
                id=1,
                customer="C",
                lines=[Line(id=n, number=n, sku=f"s{n}") for n in range(1, 4)],
            )
        )

    made = write(bank, order)
    full = state(bank)
    gone = write(bank, lambda s: s.delete(s.get_one(Order, 1)))
    empty = state(bank)
    back = undo(bank, gone)
    assert state(bank) == full
    undo(bank, back)
    assert state(bank) == empty
    undo(bank, bank.read()[-1].position)
    undo(bank, made, on_conflict="overwrite")
    assert state(bank) == empty


def test_row_that_others_refer_to_by_now(bank: LoggedDatabase) -> None:
    made = write(bank, lambda s: s.add(Order(id=1, customer="C")))
    write(bank, lambda s: s.add(Line(id=7, order_id=1, number=1, sku="s")))
    plan = bank.log.plan_undo(bank.engine, records=made)
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.rows) == ("dependent", ("public.order_line (id=7)",))
    with pytest.raises(ConfigurationError, match="cannot be overwritten"):
        plan.choose("overwrite", [conflict])
    with pytest.raises(UndoConflictError, match="referred to by"):
        bank.log.undo(bank.sessions, plan.choose("overwrite"))
    assert bank.log.undo(bank.sessions, plan.choose("skip")) == []


def test_row_whose_parent_went_since(bank: LoggedDatabase) -> None:
    write(bank, lambda s: s.add(Order(id=1, customer="C", lines=[Line(id=7, number=1, sku="s")])))
    gone = write(bank, lambda s: s.delete(s.get_one(Line, 7)))
    write(bank, lambda s: s.delete(s.get_one(Order, 1)))
    (conflict,) = bank.log.plan_undo(bank.engine, records=gone).conflicts
    assert (conflict.kind, conflict.rows) == ("missing", ('public."order" (id=1)',))


def test_row_that_was_changed_behind_the_log(bank: LoggedDatabase) -> None:
    write(bank, add_account(1, balance=1))
    ours = write(bank, set_account(1, balance=2))
    bank.execute(
        "SET LOCAL session_replication_role = replica",
        "ALTER TABLE account DISABLE TRIGGER ALL",
        "UPDATE account SET note = 'behind'",
        "ALTER TABLE account ENABLE TRIGGER ALL",
    )
    plan = bank.log.plan_undo(bank.engine, records=ours, on_conflict="overwrite")
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.choice, conflict.column) == ("bypassed", "fail", "note")
    with pytest.raises(UndoConflictError, match="behind the log's back"):
        bank.log.undo(bank.sessions, plan)


def test_by_actor_with_changes_of_others_between(bank: LoggedDatabase) -> None:
    for number in (1, 2):
        write(bank, add_account(number, balance=0))
    before = state(bank)
    for number in range(1, 4):
        write(bank, set_account(1, balance=number, owner=f"o{number}"), actor="ada")
        write(bank, set_account(2, balance=number), actor="bob")
    after = state(bank)
    plan = bank.log.plan_undo(bank.engine, metadata={"actor": "ada"})
    assert len(plan.records) == 3
    assert not plan.conflicts
    bank.log.undo(bank.sessions, plan)
    assert state(bank)["account"] == [before["account"][0], after["account"][1]]
    bank.assert_replays()


def test_what_cannot_be_chosen(guarded: LoggedDatabase) -> None:
    with pytest.raises(ConfigurationError, match="what is to be undone"):
        guarded.log.plan_undo(guarded.engine)
    with pytest.raises(ConfigurationError, match="names no record"):
        guarded.log.plan_undo(guarded.engine, records="yesterday")
    with pytest.raises(UndoError, match="no record 999999"):
        guarded.log.plan_undo(guarded.engine, records=[999999])
    with pytest.raises(ConfigurationError, match="no choice"):
        guarded.log.plan_undo(guarded.engine, records=1, on_conflict="perhaps")  # type: ignore[arg-type]


def test_by_aggregates_and_time(guarded: LoggedDatabase) -> None:
    for number in (1, 2, 3):
        write(guarded, add_account(number, balance=0))
    begun = guarded.read()[-1].recorded_at
    before = state(guarded)["account"]

    def set_all(session: Any) -> None:
        for number in (1, 2, 3):
            session.get_one(Account, number).balance = 7

    together = write(guarded, set_all)
    last = write(guarded, set_account(2, balance=8))
    with pytest.raises(ConfigurationError, match="no time zone"):
        guarded.log.plan_undo(guarded.engine, after=begun.replace(tzinfo=None))
    plan = guarded.log.plan_undo(
        guarded.engine, aggregate=["account/1", "account/2"], after=begun, through=last
    )
    assert [note.position for note in plan.records] == [together, last]
    guarded.log.undo(guarded.sessions, plan)
    balances = [int(row["balance"]) for row in state(guarded)["account"]]
    assert balances == [0, 0, 7]
    rest = guarded.log.plan_undo(guarded.engine, records=together)
    assert (len(rest.writes), rest.already, rest.conflicts) == (1, 2, ())
    guarded.log.undo(guarded.sessions, rest)
    assert state(guarded)["account"] == before
    guarded.assert_replays()
