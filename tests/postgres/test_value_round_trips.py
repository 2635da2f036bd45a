"""What a transaction sends for rows of ordinary types: no query that reads a row back."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Payment(Base):
    """A row of the types that most tables have."""

    __tablename__ = "payment"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(18, 4))
    made: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    details: Mapped[Any] = mapped_column(JSONB)


def make_payment(number: int) -> Payment:
    return Payment(
        amount=Decimal(number) / 7,
        made=datetime.now(UTC),
        details={"to": "café", "lines": [{"n": number, "net": 1.50}], "paid": None},
    )


@pytest.fixture(params=[True, False], ids=["guarded", "not guarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    """The second transaction has nothing to look up any more."""
    db = open_logged(engine, Base, guarded=request.param)
    for number in range(2):
        with db.sessions.begin() as session:
            session.add(make_payment(number))
    return db


@contextmanager
def list_statements(engine: Engine) -> Iterator[list[str]]:
    """The first words of the statements that are executed meanwhile through SQLAlchemy."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(re.sub(r"^/\*oplog:[0-9]+\*/ ", "", statement)[:14])

    sa.event.listen(engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


@contextmanager
def count_round_trips(engine: Engine, directory: Path) -> Iterator[list[int]]:
    """How often the pool's connection waits for the server meanwhile, as libpq counts it."""
    with engine.connect() as connection:
        pgconn: Any = getattr(connection.connection.driver_connection, "pgconn")  # noqa: B009
    path = directory / "messages"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    counted: list[int] = []
    pgconn.trace(descriptor)
    try:
        yield counted
    finally:
        pgconn.untrace()
        os.close(descriptor)
    counted.append(path.read_text("utf-8", "replace").count("\tReadyForQuery\t"))


def insert(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(make_payment(3))


def insert_many(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([make_payment(number) for number in range(20)])


def update(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        payment = session.get_one(Payment, 1)
        payment.amount = Decimal("3.00005")
        payment.made = datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))
        payment.details = {"b": 1e22, "a": [True]}


BEGIN = APPEND_AND_COMMIT = 1
CASES = {
    "insert": (insert, ["INSERT INTO pa"]),
    "twenty inserts": (insert_many, ["INSERT INTO pa"]),
    "update": (update, ["SELECT payment", "UPDATE payment"]),
}


@pytest.mark.parametrize(("write", "sent"), CASES.values(), ids=CASES)
def test_no_row_is_read_back(
    db: LoggedDatabase, write: Callable[[LoggedDatabase], None], sent: list[str]
) -> None:
    with list_statements(db.engine) as seen:
        write(db)
    assert seen == sent
    db.assert_replays()


@pytest.mark.skipif(sys.platform != "linux", reason="libpq traces to a descriptor on Linux only")
def test_what_is_waited_for(engine: Engine, tmp_path: Path) -> None:
    db = open_logged(engine, Base, guarded=True)
    for number in range(2):
        with db.sessions.begin() as session:
            session.add(make_payment(number))
    for write, sent in CASES.values():
        with count_round_trips(engine, tmp_path) as counted:
            write(db)
        assert counted == [BEGIN + len(sent) + APPEND_AND_COMMIT]
