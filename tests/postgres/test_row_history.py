"""One row's history: who changed it, when, and what it was before."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog.entry import OpType
from oplog.errors import ChainBrokenError, ConfigurationError
from tests.postgres.replay_models import (
    Account,
    Bench,
    Car,
    Line,
    Task,
    add_account,
    add_lines,
    add_owner,
    empty_line,
    make_bench,
    unlock,
    write_history,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def test_history_of_a_row(bench: Bench) -> None:
    bench.write(add_owner)
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor="ann", reason=["a", "b"])
        add_account(session, 1)
        add_account(session, 2)
    bench.write(lambda s: setattr(s.get_one(Account, 1), "balance", Decimal("2.50")))
    bench.write(lambda s: s.delete(s.get_one(Account, 1)))
    with bench.engine.connect() as connection:
        created, changed, gone = bench.log.history(connection, Account, 1)
        assert [c.kind for c in (created, changed, gone)] == [
            OpType.CREATE,
            OpType.UPDATE,
            OpType.DELETE,
        ]
        assert created.metadata == {"actor": ["ann"], "reason": ["a", "b"]}
        assert created.fields["balance"] == Decimal("10.00")
        assert changed.fields == {"balance": Decimal("2.50")}
        assert gone.fields == {}
        assert created.position < changed.position < gone.position
        assert created.recorded_at <= changed.recorded_at <= gone.recorded_at
        assert bench.log.history(connection, Account, 404) == []

        def balance(at: int | dt.datetime) -> Decimal | None:
            row = bench.log.as_of(connection, Account, key=1, at=at)
            return None if row is None else row["balance"]

        assert balance(created.position - 1) is None
        assert balance(created.position) == Decimal("10.00")
        assert balance(changed.recorded_at) == Decimal("2.50")
        assert balance(gone.position) is None


def test_history_reads_one_aggregate_where_the_key_names_it(bench: Bench) -> None:
    bench.write(add_lines)
    bench.write(empty_line)
    bench.write(lambda s: s.add(Task(id=1, project="p")))
    unlock(
        bench,
        "oplog_record",
        "UPDATE oplog.oplog_record SET data = '' WHERE NOT aggregates @> ARRAY['order/1']",
    )
    with bench.engine.connect() as connection:
        for key in ((1, "a/b"), {"number": "a/b", "order_id": 1}):
            changes = bench.log.history(connection, Line, key)
            assert [c.kind for c in changes] == [OpType.CREATE, OpType.UPDATE]
            assert changes[1].fields == {"weight": None, "paid": None, "blob": None}
        with pytest.raises(ChainBrokenError):
            bench.log.history(connection, Task, 1)


def test_history_follows_a_row_through_aggregates(bench: Bench) -> None:
    write_history(bench)
    with bench.engine.connect() as connection:
        changes = bench.log.history(connection, Task, 2)
        row = bench.log.as_of(connection, Task, key=2, at=bench.last_position())
        live = connection.exec_driver_sql("SELECT id, project, title FROM task WHERE id = 2").one()
    assert row == dict(live._mapping)
    assert [c.fields.get("project") for c in changes][-2:] == ["a first", "z last"]
    assert OpType.DELETE not in {c.kind for c in changes}


def test_as_of_takes_transactions_whole(bench: Bench) -> None:
    bench.write(lambda s: s.add(Task(id=2, project="old")))
    before = bench.last_position()

    def move(session: Session) -> None:
        session.get_one(Task, 2).project = "new"

    bench.write(move)
    with bench.engine.connect() as connection:
        ends = [
            bench.log.as_of(connection, Task, key=2, at=position)
            for position in range(before, bench.last_position() + 1)
        ]
    assert [row and row["project"] for row in ends] == ["old", "new"]


def test_history_of_joined_tables_is_one(bench: Bench) -> None:
    write_history(bench)
    with bench.engine.connect() as connection:
        created, changed, gone = bench.log.history(connection, Car, 7)
        assert created.kind is OpType.CREATE
        assert created.fields == {"id": 7, "kind": "car", "maker": "m", "doors": None}
        assert (changed.kind, changed.fields) == (OpType.UPDATE, {"doors": 5})
        assert gone.kind is OpType.DELETE
        row = bench.log.as_of(connection, Car, key=7, at=changed.position)
        assert row == {"id": 7, "kind": "car", "maker": "m", "doors": 5}


@pytest.mark.parametrize("key", [(1, "a", 2), 1, {"order_id": 1}, ("x", "a"), (None, "a")])
def test_history_refuses_a_key_that_does_not_fit(bench: Bench, key: object) -> None:
    bench.write(add_lines)
    with bench.engine.connect() as connection, pytest.raises(ConfigurationError, match="key"):
        bench.log.history(connection, Line, key)


def test_history_notices_a_missing_entry(bench: Bench) -> None:
    write_history(bench)
    unlock(
        bench,
        "oplog_record",
        "DELETE FROM oplog.oplog_record WHERE position = (SELECT position FROM oplog.oplog_entry "
        "WHERE aggregate_name = 'account/1' AND version = 2)",
    )
    with (
        bench.engine.connect() as connection,
        pytest.raises(ChainBrokenError, match="does not follow version 1"),
    ):
        bench.log.history(connection, Account, 1)
