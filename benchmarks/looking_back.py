"""Reading a table as it was, beside reading it as it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog

SHARE = 100
"""One row in so many is changed after the moment."""
_BATCH = 20_000


class Base(DeclarativeBase):
    """The model that is read."""


class Holding(Base):
    """A row of usual width."""

    __tablename__ = "holding"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]


def fill_holdings(engine: Engine, rows: int) -> tuple[Oplog, int]:
    """A logged table of so many rows, of which a part changed since the position."""
    Base.metadata.create_all(engine)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    for first in range(0, rows, _BATCH):
        made = [
            {"id": number, "name": f"holding {number}", "amount": number}
            for number in range(first, min(first + _BATCH, rows))
        ]
        with sessions.begin() as session:
            session.execute(sa.insert(Holding), made)
    with engine.connect() as connection:
        position = log.history(connection, Holding, rows - 1)[-1].position
    chosen = random.Random(1).sample(range(rows), max(rows // SHARE, 1))
    for first in range(0, len(chosen), SHARE):
        with sessions.begin() as session:
            for number in chosen[first : first + SHARE]:
                session.execute(sa.update(Holding).where(Holding.id == number).values(amount=-1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    return log, position


def compare_reading(engine: Engine, log: Oplog, position: int) -> Iterator[tuple[str, float]]:
    """What is read, and how many times as long as now it takes as of the position."""
    whole = sa.select(Holding)
    summed = sa.select(sa.func.sum(Holding.amount))
    for what, select in (("all rows", whole), ("a sum", summed)):

        def read(connection: Connection, select: Any = select) -> int:
            return len(connection.execute(select).mappings().all())

        def look_back(connection: Connection, select: Any = select) -> int:
            return len(list(log.as_of(connection, select, at=position)))

        yield what, measure(engine, look_back) / measure(engine, read)


def measure(engine: Engine, work: Callable[[Connection], int]) -> float:
    """Seconds on a connection of its own."""
    with engine.connect() as connection:
        begun = time.perf_counter()
        work(connection)
        return time.perf_counter() - begun
