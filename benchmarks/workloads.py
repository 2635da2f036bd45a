"""The three workloads, and the ways of writing that are compared.

A workload is what one transaction does to the `transfer` table. Every way of writing runs
the same workload through the same ORM class: alone, with a hand-written outbox row, or with
the log attached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Transfer(Base):
    """A row of ordinary width and types."""

    __tablename__ = "transfer"

    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[int]
    target: Mapped[int]
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    memo: Mapped[str]
    status: Mapped[str | None]


class Outbox(Base):
    """The hand-written alternative: one JSON row for each transaction."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True)
    payload: Mapped[Any] = mapped_column(JSONB)


@dataclass(frozen=True)
class Turn:
    """The place of a transaction in its measurement, and rows it may change."""

    number: int
    known: list[int]


@dataclass(frozen=True)
class Workload:
    """What a transaction does, and how many of them make a measurement."""

    name: str
    title: str
    run: Callable[[Session, Turn], list[Transfer]]
    transactions: int
    rows: int


def insert_one(session: Session, turn: Turn) -> list[Transfer]:
    """One insert."""
    row = _make_row(turn.number)
    session.add(row)
    return [row]


def change_mixed(session: Session, turn: Turn) -> list[Transfer]:
    """Ten inserts, five updates, one delete."""
    start = turn.number * 6
    loaded = session.scalars(
        sa.select(Transfer)
        .where(Transfer.id.in_(turn.known[start : start + 6]))
        .order_by(Transfer.id)
    ).all()
    for row in loaded[:5]:
        row.status = f"turn {turn.number}"
    session.delete(loaded[5])
    added = [_make_row(n) for n in range(10)]
    session.add_all(added)
    return [*added, *loaded]


def insert_many(session: Session, turn: Turn) -> list[Transfer]:
    """A thousand inserts."""
    rows = [_make_row(turn.number + n) for n in range(1000)]
    session.add_all(rows)
    return rows


def _make_row(number: int) -> Transfer:
    return Transfer(
        source=number, target=number + 1, amount=Decimal("12.50"), memo=f"transfer number {number}"
    )


WORKLOADS = (
    Workload("one", "one insert", insert_one, 150, 1),
    Workload("mixed", "10 inserts, 5 updates, 1 delete", change_mixed, 50, 16),
    Workload("many", "1,000 inserts", insert_many, 4, 1000),
)


def write_plain(sessions: sessionmaker[Session], workload: Workload, known: list[int]) -> None:
    """The workload and nothing else; also what runs when the log is attached."""
    for turn in range(workload.transactions):
        with sessions.begin() as session:
            workload.run(session, Turn(turn, known))


def write_outbox(sessions: sessionmaker[Session], workload: Workload, known: list[int]) -> None:
    """The workload and one row that describes it as JSON."""
    for turn in range(workload.transactions):
        with sessions.begin() as session:
            rows = workload.run(session, Turn(turn, known))
            session.flush()
            payload = [
                {
                    "id": row.id,
                    "source": row.source,
                    "target": row.target,
                    "amount": str(row.amount),
                    "memo": row.memo,
                    "status": row.status,
                }
                for row in rows
            ]
            session.add(Outbox(payload={"kind": workload.name, "rows": payload}))


WRITERS: dict[str, Callable[[sessionmaker[Session], Workload, list[int]], None]] = {
    "plain": write_plain,
    "outbox": write_outbox,
    "log": write_plain,
    "log, one aggregate": write_plain,
}
"""Ways of writing, by name; `plain` is what the others are compared with."""


def make_log(way: str, keyring: Keyring) -> Oplog:
    """The log for a way of writing: an aggregate for each row, or one for all."""
    catalog = TypeCatalog.from_models(
        Base,
        aggregates={"transfer": "transfers"} if way == "log, one aggregate" else {},
        untracked={"outbox": "the alternative that is measured"},
    )
    return Oplog(catalog, keyring=keyring)
