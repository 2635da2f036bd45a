"""Customers, their invoices, writers that behave badly on purpose, and a consumer.

An invoice refers to its customer; each row is an aggregate of its own, so that cause and effect
are in different ones. Nothing here judges.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, LoggedEntry, Oplog, OpType, TypeCatalog
from oplog.reading.subscription import Subscription

COPY = "copied"


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Invoice(Base):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customer.id"))
    amount: Mapped[int]


class Member(Base):
    """Rows of one aggregate that writers change without touching the same row."""

    __tablename__ = "member"

    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    points: Mapped[int] = mapped_column(default=0)


def make_log(**options: Any) -> Oplog:
    catalog = TypeCatalog.from_models(Base, aggregates={"member": "team/{team}"})
    return Oplog(catalog, **{"keyring": Keyring.generate(), **options})


@contextmanager
def waiting_for_lock(engine: Engine, *, count: int = 1) -> Iterator[None]:
    """Leave the block's end once `count` sessions of the database wait for a lock."""
    yield
    query = sa.text(
        "SELECT count(*), pg_sleep(0.002) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(5_000):
            if connection.execute(query).one()[0] >= count:
                return
    raise AssertionError(f"{count} sessions never came to wait for a lock")


class AbandonedError(Exception):
    """A writer thinks better of it."""


@dataclass
class Writers:
    """Random transactions from many threads, each with a session factory of its own."""

    sessions: sessionmaker[Session]
    log: Oplog
    seed: int
    steps: int
    done: Counter[str] = field(default_factory=Counter)
    customers: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def run(self, count: int) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _write(self, number: int) -> None:
        draw = random.Random(f"{self.seed}/{number}")
        try:
            for _ in range(self.steps):
                self._step(draw)
        except BaseException as failure:
            self.failures.append(failure)
            raise

    def _step(self, draw: random.Random) -> None:
        made: list[int] = []
        try:
            self.log.run(self.sessions, lambda session: self._work(session, draw, made))
        except AbandonedError:
            self._count("rolled back")
            return
        with self._guard:
            # Only now may others refer to them: the cause is committed.
            self.customers += made
        self._count("committed")

    def _work(self, session: Session, draw: random.Random, made: list[int]) -> None:
        made.clear()
        if draw.random() < 0.4:
            # The transaction id comes long before the entry and its position.
            session.execute(sa.text("SELECT pg_current_xact_id()"))
            _pause(session, draw)
            self._count("early transaction ids")
        for _ in range(draw.randint(1, 3)):
            self._change(session, draw, made)
        for depth in range(draw.choice((0, 0, 1, 3))):
            try:
                with session.begin_nested():
                    kept = list(made)
                    self._change(session, draw, made)
                    session.flush()
                    _maybe_abandon(draw, chance=0.5)
                    self._count("savepoints kept")
            except AbandonedError:
                made[:] = kept
                self._count("savepoints rolled back")
            if depth:
                _pause(session, draw)
        session.flush()
        _maybe_abandon(draw, chance=0.15)
        _pause(session, draw)

    def _change(self, session: Session, draw: random.Random, made: list[int]) -> None:
        with self._guard:
            known = list(self.customers)
        if not known or draw.random() < 0.35:
            customer = Customer(name=f"customer {draw.randint(0, 99)}")
            session.add(customer)
            session.flush()
            made.append(customer.id)
            return
        # Prefer the newest: its transaction has hardly ended.
        customer_id = known[-1] if draw.random() < 0.7 else draw.choice(known)
        kind = draw.random()
        if kind < 0.7:
            session.add(Invoice(customer_id=customer_id, amount=draw.randint(1, 99)))
        elif kind < 0.85:
            session.get_one(Customer, customer_id).name = f"renamed {draw.randint(0, 99)}"
        else:
            newest = session.scalars(
                sa.select(Invoice).order_by(Invoice.id.desc()).limit(1).with_for_update()
            ).first()
            if newest is not None:
                session.delete(newest)

    def _count(self, what: str) -> None:
        with self._guard:
            self.done[what] += 1


def _maybe_abandon(draw: random.Random, *, chance: float) -> None:
    if draw.random() < chance:
        raise AbandonedError


def _pause(session: Session, draw: random.Random) -> None:
    session.execute(sa.text("SELECT pg_sleep(:s)"), {"s": draw.choice((0, 0.001, 0.004))})


def make_copies(connection: Connection) -> None:
    """Tables like the live ones, foreign key included, to apply entries to."""
    connection.exec_driver_sql(f"CREATE SCHEMA {COPY}")
    for table in ("customer", "invoice", "member"):
        connection.exec_driver_sql(f"CREATE TABLE {COPY}.{table} (LIKE {table} INCLUDING ALL)")
    # Checked at once, row by row: an effect applied before its cause is an error.
    connection.exec_driver_sql(
        f"ALTER TABLE {COPY}.invoice ADD FOREIGN KEY (customer_id) REFERENCES {COPY}.customer"
    )


def apply_entries(connection: Connection, entries: Sequence[LoggedEntry]) -> None:
    """Do to the copies what the entries say, in the order given."""
    for entry in entries:
        for operation in entry.operations:
            source = Base.metadata.tables[operation.type_name]
            table = sa.table(source.name, *(sa.column(c.name) for c in source.c), schema=COPY)
            key = sa.and_(*(table.c[name] == value for name, value in operation.key.items()))
            if operation.kind is OpType.CREATE:
                connection.execute(sa.insert(table).values(dict(operation.fields)))
                continue
            if operation.kind is OpType.UPDATE:
                done = connection.execute(
                    sa.update(table).where(key).values(dict(operation.fields))
                )
            else:
                done = connection.execute(sa.delete(table).where(key))
            if done.rowcount != 1:
                raise LookupError(f"{operation} met {done.rowcount} rows")


@dataclass
class Consumer:
    """Applies every batch to the copies and commits the cursor in the same transaction."""

    engine: Engine
    subscription: Subscription
    positions: list[int] = field(default_factory=list)
    batches: int = 0

    def catch_up(self) -> None:
        for batch in self.subscription:
            with self.engine.begin() as connection:
                apply_entries(connection, batch)
                batch.commit(connection)
            self.positions += [entry.position for entry in batch]
            self.batches += 1

    def follow(self, threads: Sequence[threading.Thread]) -> None:
        while any(thread.is_alive() for thread in threads):
            self.catch_up()
        self.catch_up()


def list_rows(connection: Connection, *, schema: str | None = None) -> dict[str, list[Any]]:
    """All rows of the live tables, or of the copies."""
    prefix = f"{schema}." if schema else ""
    return {
        table: [
            tuple(row)
            for row in connection.exec_driver_sql(f"SELECT * FROM {prefix}{table} ORDER BY id")
        ]
        for table in ("customer", "invoice", "member")
    }


def consume(log: Oplog, engine: Engine, *, name: str = "c", max_entries: int = 4000) -> list[int]:
    """Deliver and commit everything that is new."""
    seen: list[int] = []
    for batch in log.subscribe(engine, name=name, max_entries=max_entries):
        seen += [entry.position for entry in batch]
        batch.commit()
    return seen


def tail(log: Oplog, engine: Engine, *, after: int) -> list[int]:
    """What a consumer gets that remembers the highest position it has seen."""
    with engine.connect() as connection:
        return [entry.position for entry in log.read(connection, after=after)]


def add_customer(sessions: sessionmaker[Session], id: int) -> None:
    """One transaction, one entry."""
    with sessions.begin() as session:
        session.add(Customer(id=id, name=f"customer {id}"))
