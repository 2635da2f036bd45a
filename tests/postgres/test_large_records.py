"""Transactions of a thousand aggregates, and of more rows than one part of a record holds."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import OpType
from oplog.entry import PART_BYTES
from oplog.errors import ChainBrokenError
from tests.logged import LoggedDatabase, brief, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Line, Order

pytestmark = pytest.mark.postgres

MANY = 1000
SKU_BYTES = 2000


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, seed="", aggregates=AGGREGATES)


def make_accounts(*numbers: int) -> list[Account]:
    return [Account(id=n, owner=f"owner {n}", balance=Decimal(n)) for n in numbers]


def count_tickets(db: LoggedDatabase) -> int:
    return db.count("oplog.oplog_ticket")


def list_parts(db: LoggedDatabase) -> list[int]:
    """How many parts each record has, by position."""
    with db.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT parts FROM oplog.oplog_record ORDER BY position")
        return list(rows.scalars())


def list_versions(db: LoggedDatabase) -> dict[str, list[int]]:
    versions: dict[str, list[int]] = {}
    for entry in db.read():
        versions.setdefault(entry.aggregate, []).append(entry.version)
    return versions


# -- many aggregates ----------------------------------------------------------------------------


@pytest.mark.parametrize("flushes", [False, True])
def test_a_thousand_aggregates_are_created_by_one_record_without_tickets(
    db: LoggedDatabase, flushes: bool
) -> None:
    with db.sessions.begin() as session:
        session.add_all(make_accounts(*range(MANY)))
        if flushes:
            session.flush()
            for number in (1, 2):
                session.get_one(Account, number).owner = "flushed"
    receipts = db.log.receipts(session)
    entries = db.read()
    assert len({(e.position, e.entry_id, e.entry_hash) for e in entries}) == 1
    names = sorted(f"account/{n}" for n in range(MANY))
    assert [e.aggregate for e in entries] == [r.aggregate for r in receipts] == names
    assert {e.version for e in entries} == {r.version for r in receipts} == {1}
    assert all(r.versions == dict.fromkeys(names, 1) for r in receipts)
    assert count_tickets(db) == 0
    db.assert_replays()


@pytest.mark.parametrize("flushes", [False, True])
def test_a_thousand_aggregates_are_changed_by_one_record(db: LoggedDatabase, flushes: bool) -> None:
    for _ in range(2):
        with db.sessions.begin() as session:
            accounts = session.scalars(sa.select(Account)).all() or make_accounts(*range(MANY))
            session.add_all(accounts)
            for account in accounts:
                account.balance += 1
            if flushes:
                session.flush()
    assert count_tickets(db) == MANY
    assert list_versions(db) == {f"account/{n}": [1, 2] for n in range(MANY)}
    assert len({entry.position for entry in db.read()}) == 2
    with db.sessions.begin() as session:
        for account in session.scalars(sa.select(Account)):
            session.delete(account)
    assert {tuple(found) for found in list_versions(db).values()} == {(1, 2, 3)}
    assert count_tickets(db) == MANY
    db.assert_replays()


@pytest.mark.parametrize("count", [4, 20, 100])
def test_new_known_and_former_aggregates_in_one_record(db: LoggedDatabase, count: int) -> None:
    """A row that was deleted and is inserted again continues its aggregate, whatever is around."""
    known, former, new = range(count), range(count, 2 * count), range(2 * count, 3 * count)
    with db.sessions.begin() as session:
        session.add_all(make_accounts(*known, *former))
    with db.sessions.begin() as session:
        for number in former:
            session.delete(session.get_one(Account, number))
    with db.sessions.begin() as session:
        accounts = {n: session.get_one(Account, n) for n in known}
        for account in accounts.values():
            account.owner = "changed"
        session.add_all(make_accounts(*former, *new))
    expected = {f"account/{n}": [1, 2] for n in known}
    expected |= {f"account/{n}": [1, 2, 3] for n in former}
    expected |= {f"account/{n}": [1] for n in new}
    assert list_versions(db) == expected
    receipts = db.log.receipts(session)
    assert {r.aggregate: r.version for r in receipts} == {
        name: versions[-1] for name, versions in expected.items()
    }
    db.assert_replays()
    with db.sessions.begin() as session:
        for account in session.scalars(sa.select(Account)):
            account.owner = "again"
    assert list_versions(db) == {name: [*v, len(v) + 1] for name, v in expected.items()}
    db.assert_replays()


# -- several parts ------------------------------------------------------------------------------


def make_order(number: int, *, lines: int, chance: random.Random) -> Order:
    """Its lines do not compress."""
    rows = [Line(number=n, sku=chance.randbytes(SKU_BYTES // 2).hex()) for n in range(1, lines + 1)]
    return Order(id=number, customer=f"customer {number}", lines=rows)


def fill_parts(session: Session) -> None:
    """Orders 1 and 3 fill less than a part, order 2 more than two."""
    chance = random.Random(7)
    lines = PART_BYTES // SKU_BYTES
    session.add(make_order(1, lines=lines // 4, chance=chance))
    session.add(make_order(2, lines=5 * lines // 2, chance=chance))
    session.add(make_order(3, lines=lines // 4, chance=chance))


@pytest.fixture
def parts(db: LoggedDatabase) -> LoggedDatabase:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="ann")
        fill_parts(session)
    assert list_parts(db)[-1] >= 4
    return db


def test_a_record_in_several_parts_is_told_and_replays(parts: LoggedDatabase) -> None:
    entries = parts.read()
    assert [(e.aggregate, e.version) for e in entries] == [(f"order/{n}", 1) for n in (1, 2, 3)]
    assert [brief(e.operations[0]) for e in entries] == [f"CREATE order {n}" for n in (1, 2, 3)]
    assert sum(len(e.operations) for e in entries) == parts.count('"order"') + parts.count(
        "order_line"
    )
    parts.assert_replays()
    with parts.engine.begin() as connection:
        report = parts.log.replay(connection)
        assert (report.entries, report.position) == (3, entries[0].position)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_aggregate_is_told_as_by_reading_all(parts: LoggedDatabase, number: int) -> None:
    whole = {entry.aggregate: entry for entry in parts.read()}
    with parts.engine.connect() as connection:
        (entry,) = parts.log.read(connection, aggregate=f"order/{number}")
        (by_metadata,) = parts.log.read(
            connection, aggregate=f"order/{number}", metadata={"actor": "ann"}
        )
    assert entry == by_metadata == whole[f"order/{number}"]


def test_the_history_of_each_row_is_found(parts: LoggedDatabase) -> None:
    with parts.sessions.begin() as session:
        first, *_, last = session.scalars(sa.select(Line).order_by(Line.id)).all()
        for line in (first, last):
            line.sku = "changed"
        found = {line.id: line.order_id for line in (first, last)}
    assert list(found.values()) == [1, 3]
    with parts.engine.connect() as connection:
        for number, order in found.items():
            created, changed = parts.log.history(connection, Line, number)
            assert (created.kind, changed.kind) == (OpType.CREATE, OpType.UPDATE)
            assert created.fields["order_id"] == order
            assert len(created.fields["sku"]) == SKU_BYTES
            assert changed.fields == {"sku": "changed"}
            before = parts.log.as_of(connection, Line, key=number, at=created.position)
            after = parts.log.as_of(connection, Line, key=number, at=changed.position)
            assert before == dict(created.fields)
            assert after == {**created.fields, "sku": "changed"}


def test_effects_are_in_order_across_parts(parts: LoggedDatabase) -> None:
    """A row is deleted in one aggregate and created in another, whose part comes before."""

    def swap(session: Session) -> None:
        lines = session.scalars(sa.select(Line).order_by(Line.id)).all()
        orders = {line.order_id for line in lines}
        assert orders == {1, 2, 3}
        for line in lines:
            line.order_id = {1: 2, 2: 1, 3: 2}[line.order_id]
        session.flush()
        for line in lines[::-1]:
            line.number = -line.number

    with parts.sessions.begin() as session:
        swap(session)
    assert list_parts(parts)[-1] > 1
    kinds = [[operation.kind for operation in entry.operations] for entry in parts.read()[-3:]]
    assert kinds[0].count(OpType.CREATE) > kinds[1].count(OpType.CREATE) > 0
    assert kinds[1].count(OpType.DELETE) == kinds[0].count(OpType.CREATE)
    assert set(kinds[2]) == {OpType.DELETE}
    parts.assert_replays()


def test_a_consumer_gets_a_record_in_several_parts_whole(parts: LoggedDatabase) -> None:
    batches: list[list[Any]] = []
    for batch in parts.log.subscribe(parts.engine, name="c", max_entries=1):
        batches.append(list(batch))
        batch.commit()
    assert batches == [parts.read()]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE oplog.oplog_part SET data = data || '!'::bytea WHERE number = 3",
        "UPDATE oplog.oplog_part SET first = first + 1 WHERE number = 3",
        "UPDATE oplog.oplog_part SET number = 30 WHERE number = 1",
        "DELETE FROM oplog.oplog_part WHERE number = 3",
        "INSERT INTO oplog.oplog_part SELECT position, 30, 0, '' FROM oplog.oplog_part LIMIT 1",
        "UPDATE oplog.oplog_record SET parts = parts + 1 WHERE parts > 1",
        "UPDATE oplog.oplog_record SET parts = 1 WHERE parts > 1",
    ],
)
def test_a_damaged_part_is_noticed_whatever_is_read(parts: LoggedDatabase, damage: str) -> None:
    parts.execute(
        "ALTER TABLE oplog.oplog_part DISABLE TRIGGER ALL",
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        damage,
    )
    with parts.engine.connect() as connection:
        for number in (1, 3):
            with pytest.raises(ChainBrokenError, match="does not match its hash"):
                list(parts.log.read(connection, aggregate=f"order/{number}"))
        with pytest.raises(ChainBrokenError, match="does not match its hash"):
            parts.log.verify(connection)
