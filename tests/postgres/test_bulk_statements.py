"""Statements on many rows of guarded tables: logged exactly, and read back a page at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import OpType
from oplog.capture import bulk_images, readback
from oplog.entry import PART_BYTES
from oplog.errors import CaptureMismatchError
from oplog.schema.guard import announce
from oplog.store import guard_state
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres

ROWS = 3000
FILL = (
    "INSERT INTO account (id, owner, balance, note, opened) SELECT n, 'owner ' || n, n, "
    "CASE WHEN n % 3 > 0 THEN 'note ' || n END, '2024-05-01 12:00+02'::timestamptz + "
    f"n * interval '1 second' FROM generate_series(1, {ROWS}) n"
)


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, seed="", guarded=True, aggregates=AGGREGATES)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each page was asked for; an object for each row is refused."""
    asked: list[int] = []
    read = readback.read_columns

    def count(connection: Any, bound: Any, keys: Any, **more: Any) -> Any:
        asked.append(len(keys[0]))
        return read(connection, bound, keys, **more)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an object for each row")

    monkeypatch.setattr("oplog.capture.bulk_reading.read_columns", count)
    monkeypatch.setattr("oplog.capture.merge.read_rows", refuse)
    return asked


def run(db: LoggedDatabase, *statements: str) -> None:
    with db.sessions.begin() as session:
        for statement in statements:
            session.execute(sa.text(statement.replace(":", "\\:")))


def list_kinds(db: LoggedDatabase) -> set[tuple[OpType, tuple[str, ...]]]:
    """Kinds and columns of the last record's operations."""
    entries = db.read()
    last = [entry for entry in entries if entry.position == entries[-1].position]
    return {(o.kind, tuple(sorted(o.fields))) for entry in last for o in entry.operations}


def test_each_kind_of_statement(db: LoggedDatabase, pages: list[int]) -> None:
    run(db, FILL)
    assert {kind for kind, _ in list_kinds(db)} == {OpType.CREATE}
    run(db, "UPDATE account SET balance = balance + 1, note = 'late' WHERE id > 7")
    assert list_kinds(db) == {(OpType.UPDATE, ("balance", "note"))}
    upsert = " ON CONFLICT (id) DO UPDATE SET owner = 'again'"
    run(
        db,
        FILL.replace("generate_series(1", "generate_series(1500").replace("3000)", "4500)")
        + upsert,
    )
    assert {kind for kind, _ in list_kinds(db)} == {OpType.CREATE, OpType.UPDATE}
    run(db, "DELETE FROM account WHERE id > 1000")
    assert list_kinds(db) == {(OpType.DELETE, ())}
    # A deleted row that is inserted again continues its aggregate.
    run(db, FILL + " ON CONFLICT DO NOTHING")
    assert [e.version for e in db.read() if e.aggregate == "account/2000"] == [1, 2, 3, 4, 5]
    assert sum(pages) < 7 * ROWS
    db.assert_replays()


def test_rows_of_several_tables_and_announced_ones(db: LoggedDatabase, pages: list[int]) -> None:
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="one", balance=1))
        session.execute(
            sa.text("INSERT INTO \"order\" SELECT n, 'c' FROM generate_series(1, 1200) n")
        )
        lines = (
            "INSERT INTO order_line SELECT n, n % 1200 + 1, n, 's' FROM generate_series(1, 2400) n"
        )
        session.execute(sa.text(lines))
    assert [len(entry.operations) for entry in db.read()] == [1] + [3] * 1200
    run(db, "UPDATE order_line SET sku = 't'", "UPDATE \"order\" SET customer = 'd'")
    db.assert_replays()
    assert pages


@pytest.mark.parametrize(
    "statements",
    [
        [FILL, "UPDATE account SET owner = 'b'"],
        [FILL, "DELETE FROM account WHERE id < 2000"],
        [FILL, "UPDATE account SET id = id + 10000"],
        [FILL, "UPDATE account SET owner = 'b' WHERE id < 9", "UPDATE account SET note = 'c'"],
    ],
)
def test_rows_touched_twice_go_the_general_way(db: LoggedDatabase, statements: list[str]) -> None:
    run(db, *statements)
    db.assert_replays()
    run(db, "UPDATE account SET id = -id", "UPDATE account SET note = 'd'")
    db.assert_replays()


def test_a_savepoint_takes_its_rows_back(db: LoggedDatabase, pages: list[int]) -> None:
    with db.sessions.begin() as session:
        session.execute(
            sa.text("INSERT INTO \"order\" SELECT n, 'c' FROM generate_series(1, 1500) n")
        )
        savepoint = session.begin_nested()
        run_in(session, FILL)
        savepoint.rollback()
    assert {entry.aggregate.split("/")[0] for entry in db.read()} == {"order"}
    db.assert_replays()


def run_in(session: Session, statement: str) -> None:
    session.execute(sa.text(statement.replace(":", "\\:")))


def test_pages_hold_few_rows_and_few_bytes(
    db: LoggedDatabase, pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read at once does not grow with the transaction, whatever its rows are like."""
    monkeypatch.setattr(readback, "_PAGE_BYTES", PART_BYTES)
    chance = random.Random(3)
    sizes = dict.fromkeys(chance.sample(range(1, ROWS), 40), 40000)
    wide = " ".join(f"WHEN {n} THEN {size}" for n, size in sizes.items())
    run(db, FILL.replace("'owner ' || n", f"repeat('x', CASE n {wide} ELSE 20 END)"))
    with db.engine.connect() as connection:
        parts = connection.exec_driver_sql("SELECT parts FROM oplog.oplog_record").scalars().all()
    assert max(pages) < ROWS
    assert parts[-1] > 40 * 40_000 // PART_BYTES
    db.assert_replays()


def test_a_statement_for_each_row_leaves_one_image(
    db: LoggedDatabase, pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Any]] = []
    split = bulk_images.split_images

    def keep(images: Any, **more: Any) -> Any:
        found.append(list(images))
        return split(images, **more)

    monkeypatch.setattr("oplog.capture.gathering.split_images", keep)
    monkeypatch.setattr(guard_state, "MANY_IMAGES", 10)
    insert = sa.text("INSERT INTO account (id, owner, balance) VALUES (:id, 'a', 1)")
    change = sa.text("UPDATE account SET owner = 'b' WHERE id = :id")
    with db.sessions.begin() as session:
        session.execute(insert, [{"id": n} for n in range(1, 1201)])
    assert [(image.operation, image.rows) for image in found[-1]] == [("I", 1200)]
    with db.sessions.begin() as session:
        session.execute(change, [{"id": n} for n in range(1, 1201)])
    assert [(image.operation, image.rows) for image in found[-1]] == [("U", 1200)]
    assert pages
    db.assert_replays()


@pytest.mark.parametrize(
    ("before", "unseen", "statement"),
    [
        ("SELECT 1", "DELETE FROM account WHERE id = 1100", FILL),
        ("SELECT 1", "UPDATE account SET id = -1 WHERE id = 1100", FILL),
        (FILL, "DELETE FROM account WHERE id = 1100", "UPDATE account SET owner = 'b'"),
        (
            FILL,
            "INSERT INTO account (id, owner, balance) VALUES (1100, 'a', 1)",
            "DELETE FROM account",
        ),
    ],
)
def test_rows_that_are_not_as_the_images_say_are_refused(
    db: LoggedDatabase, before: str, unseen: str, statement: str
) -> None:
    """The same error as that of a few rows."""
    run(db, before)
    session = db.sessions()
    run_in(session, statement)
    # As if announced: the guard counts the row and keeps no image of it.
    oid = session.scalar(sa.text("SELECT CAST(CAST('account' AS regclass) AS bigint)"))
    run_in(session, f"{announce(oid, 'oplog')}{unseen}")
    with pytest.raises(CaptureMismatchError, match=r"key \(1100,\)"):
        session.commit()
    session.close()
    db.assert_replays()
