"""The table that is written, and what a transaction does to it.

Every contender runs the same workload through the same columns. A workload returns what it
changed, because a hand-written outbox has to describe that itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2s
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from oplog import Keyring, Oplog, TypeCatalog

BULK_ROWS = 100_000
"""Rows of the transactions that change many by one statement."""
MIXED_CHANGES = 6
"""Rows that a mixed transaction updates or deletes."""


class TransferColumns:
    """A row of ordinary width and types, with a key that the database makes."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    account: Mapped[int]
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(18, 4))
    made_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    memo: Mapped[str]
    details: Mapped[Any] = mapped_column(JSONB)
    status: Mapped[str | None]


class Base(DeclarativeBase):
    """The benchmark's table."""


class Transfer(TransferColumns, Base):
    """The row that all but PostgreSQL-Audit write, which wants a class of its own."""

    __tablename__ = "transfer"


Changes = list[tuple[str, Any]]
"""What a transaction did: `insert`, `update` or `delete`, and the object."""


@dataclass(frozen=True)
class Turn:
    """One transaction: its number, keys of rows that it may change, the class that is mapped."""

    number: int
    known: deque[int] = field(default_factory=deque)
    model: type[Any] = Transfer
    changed: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)

    def close(self) -> None:
        """After COMMIT, and not before: the changed rows are used up, new ones are known."""
        for _ in self.changed:
            self.known.popleft()
        self.known.extend(self.added)


@dataclass(frozen=True)
class Workload:
    """What a transaction does, and to how many rows; `transactions` are a fixed amount of it."""

    name: str
    title: str
    run: Callable[[Session, Turn], Changes]
    transactions: int
    rows: int


def insert_one(session: Session, turn: Turn) -> Changes:
    """One insert."""
    row = make_row(turn.model, turn.number)
    session.add(row)
    return [("insert", row)]


def change_mixed(session: Session, turn: Turn) -> Changes:
    """Ten inserts, five updates, one delete; without known rows, the inserts alone."""
    model = turn.model
    changes: Changes = []
    if len(turn.known) >= MIXED_CHANGES:
        turn.changed.extend(islice(turn.known, MIXED_CHANGES))
        wanted = model.id.in_(turn.changed)
        found = session.scalars(sa.select(model).where(wanted).order_by(model.id)).all()
        for row in found[:-1]:
            row.status = f"turn {turn.number}"
        session.delete(found[-1])
        changes = [*(("update", row) for row in found[:-1]), ("delete", found[-1])]
    added = [make_row(model, turn.number + n) for n in range(10)]
    session.add_all(added)
    session.flush()
    turn.added.extend(row.id for row in added)
    return [*changes, *(("insert", row) for row in added)]


def insert_many(session: Session, turn: Turn) -> Changes:
    """A thousand inserts."""
    rows = [make_row(turn.model, turn.number + n) for n in range(1000)]
    session.add_all(rows)
    return [("insert", row) for row in rows]


def insert_as_text(session: Session, turn: Turn) -> Changes:
    """One insert as SQL text, which only the database sees."""
    session.execute(
        _INSERT, {"account": turn.number % 1000, "memo": f"transfer number {turn.number}"}
    )
    return []


def update_all(session: Session, turn: Turn) -> Changes:
    """An UPDATE of all rows by one statement."""
    session.execute(_UPDATE, {"status": f"turn {turn.number}"})
    return []


def insert_from_select(session: Session, _: Turn) -> Changes:
    """An INSERT of many rows by one statement."""
    session.execute(_INSERT_SELECT, {"rows": BULK_ROWS})
    return []


def make_row(model: type[Any], number: int) -> Any:
    """An object with values that differ from row to row."""
    return model(**make_values(number))


def make_values(number: int) -> dict[str, Any]:
    """The columns of a new row; the reference is one that does not compress, as real ones are."""
    reference = blake2s(number.to_bytes(8)).hexdigest()[:16]
    return {
        "account": number % 1000,
        "amount": Decimal(number % 100_000) / 100 + Decimal("0.0025"),
        "made_at": datetime.now(UTC),
        "memo": f"transfer number {number}",
        "details": {"channel": "web", "reference": reference, "tags": ["new", number % 7]},
        "status": None,
    }


_INSERT = sa.text(
    "INSERT INTO transfer (account, amount, made_at, memo, details) VALUES "
    "(:account, 12.5025, now(), :memo, jsonb_build_object('channel', 'batch'))"
)
_UPDATE = sa.text("UPDATE transfer SET status = :status, amount = amount + 1")
_INSERT_SELECT = sa.text(
    "INSERT INTO transfer (account, amount, made_at, memo, details) "
    "SELECT mod(n, 1000), mod(n, 100000) / 100.0, now(), 'transfer number ' || n, "
    "jsonb_build_object('channel', 'batch', 'reference', n) "
    "FROM generate_series(1, cast(:rows AS integer)) n"
)

ONE = Workload("one", "1 insert", insert_one, 1000, 1)
MIXED = Workload("mixed", "10 inserts, 5 updates, 1 delete", change_mixed, 200, 16)
MANY = Workload("many", "1,000 inserts", insert_many, 5, 1000)
RAW = Workload("raw", "1 insert as SQL text", insert_as_text, 200, 1)
UPDATE_ALL = Workload("update_all", f"UPDATE of {BULK_ROWS:,} rows", update_all, 1, BULK_ROWS)
INSERT_SELECT = Workload(
    "insert_select", f"INSERT … SELECT of {BULK_ROWS:,} rows", insert_from_select, 1, BULK_ROWS
)

WORKLOADS = (ONE, MIXED, MANY)
ALL_WORKLOADS = {one.name: one for one in (*WORKLOADS, RAW, UPDATE_ALL, INSERT_SELECT)}


def make_log(keyring: Keyring, *, one_aggregate: bool = False) -> Oplog:
    """The log of the benchmark's table: an aggregate for each row, or one for all."""
    aggregates = {"transfer": "transfers"} if one_aggregate else {}
    return Oplog(TypeCatalog.from_models(Base, aggregates=aggregates), keyring=keyring)
