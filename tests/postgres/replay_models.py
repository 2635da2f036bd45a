"""Tables of every awkward kind, a log over them, and the law: live == replayed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.facade import Oplog
from tests.databases import fill_database
from tests.logged import write_first


class Base(DeclarativeBase):
    """The models of these tests."""


class Owner(Base):
    """Identity key, a unique name, and a column that the log must never see."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    motto: Mapped[str | None]
    # Excluded from the log: without a default of the server no row could be restored.
    secret: Mapped[str] = mapped_column(default="hush", server_default="")


class Account(Base):
    """A foreign key to another aggregate, a computed column, a default, a check."""

    __tablename__ = "account"
    __table_args__ = (sa.CheckConstraint("balance > -1000", name="sane"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey("owner.id"))
    balance: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    doubled: Mapped[Decimal | None] = mapped_column(
        sa.Numeric(14, 2), sa.Computed("balance * 2", persisted=True)
    )
    opened: Mapped[dt.datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )


class Node(Base):
    """A tree in one table."""

    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
    label: Mapped[str | None]


class Line(Base):
    """A composite key, of which one part names the aggregate."""

    __tablename__ = "line"
    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float | None]
    paid: Mapped[bool | None]
    blob: Mapped[bytes | None]


class Task(Base):
    """Its aggregate depends on a column that changes."""

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    title: Mapped[str | None]


class Vehicle(Base):
    """Joined inheritance, the parent."""

    __tablename__ = "vehicle"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    maker: Mapped[str | None]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}  # noqa: RUF012


class Car(Vehicle):
    """Joined inheritance, the child."""

    __tablename__ = "car"
    id: Mapped[int] = mapped_column(sa.ForeignKey("vehicle.id"), primary_key=True)
    doors: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "car"}  # noqa: RUF012


EXCLUDED = {"owner.secret": "secret"}


@dataclass(frozen=True)
class Bench:
    """A database with tracked tables and a session factory whose work is logged."""

    engine: Engine
    log: Oplog
    sessions: sessionmaker[Session]

    def write(self, work: Callable[[Session], object]) -> None:
        """One logged transaction."""
        with self.sessions.begin() as session:
            work(session)

    def tamper(self, *statements: str) -> None:
        """Statements behind the log's back."""
        engine = sa.create_engine(self.engine.url)
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def last_position(self) -> int:
        """The highest position of the log."""
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT coalesce(max(position), 0) FROM oplog.oplog_record"
            )
            return int(found.scalar_one())


def make_bench(engine: Engine, keyring: Keyring | None = None) -> Bench:
    """Tables, catalog, log and sessions in a database that has the log's tables.

    Without a `keyring` the log knows types and key already, as after a first transaction.
    """
    catalog = TypeCatalog.from_models(
        Base,
        aggregates={"line": "order/{order_id}", "task": "project/{project}"},
        exclude=EXCLUDED,
    )

    def fill(engine: Engine) -> Keyring:
        known = Keyring.generate()
        Base.metadata.create_all(engine)
        if keyring is None:
            write_first(Oplog(catalog, keyring=known), engine)
        return known

    known = fill_database(engine, (make_bench, keyring is None), fill)
    log = Oplog(catalog, keyring=keyring or known)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return Bench(engine, log, sessions)


def dump_tables(connection: Connection, schema: str = "public") -> dict[str, list[tuple[str, ...]]]:
    """Every row of every tracked table as text, excluded columns left out."""
    dumped = {}
    for table in Base.metadata.sorted_tables:
        columns = [c.name for c in table.columns if f"{table.name}.{c.name}" not in EXCLUDED]
        quoted = ", ".join(f't."{name}"' for name in columns)
        rows = connection.exec_driver_sql(
            f'SELECT ROW({quoted})::text FROM "{schema}"."{table.name}" t ORDER BY 1'
        )
        dumped[table.name] = [tuple(row) for row in rows]
    return dumped


def check_law(bench: Bench) -> None:
    """Replayed tables equal the live ones, twice over, and `verify` says so."""
    with bench.engine.connect() as connection:
        report = bench.log.replay(connection)
        assert bench.log.replay(connection) == report
        live = dump_tables(connection)
        assert dump_tables(connection, "replayed") == live
        assert report.rows == sum(len(rows) for rows in live.values())
        connection.rollback()
        verdict = bench.log.verify(connection)
        assert verdict.differences == []
        assert verdict.ok
        assert (verdict.rows, verdict.entries, verdict.position) == (
            report.rows,
            report.entries,
            report.position,
        )


# -- a history with every kind of change -------------------------------------------------------


def add_owner(session: Session, name: str = "ann", **values: str | None) -> Owner:
    owner = Owner(name=name, **values)
    session.add(owner)
    session.flush()
    return owner


def add_account(session: Session, id: int, balance: str = "10.00") -> None:
    owner = session.scalars(sa.select(Owner)).first() or add_owner(session)
    session.add(Account(id=id, owner_id=owner.id, balance=Decimal(balance)))


def swap_tasks(session: Session) -> None:
    session.execute(sa.update(Task).where(Task.id == 1).values(id=99))
    session.execute(sa.update(Task).where(Task.id == 2).values(id=1))
    session.execute(sa.update(Task).where(Task.id == 99).values(id=2))


def replace_task(session: Session) -> None:
    session.execute(sa.delete(Task).where(Task.id == 1))
    session.flush()
    session.add(Task(id=1, project="new", title=None))


def move_task(session: Session) -> None:
    task = session.get_one(Task, 2)
    task.project = "a first"


def move_back_and_rename(session: Session) -> None:
    task = session.get_one(Task, 2)
    task.project = "z last"
    session.flush()
    task.title = ""


def add_lines(session: Session) -> None:
    blob = bytes(range(256))
    session.add(Line(order_id=1, number="a/b", weight=0.1, paid=True, blob=blob))
    session.add(Line(order_id=1, number="", weight=float("nan"), paid=False, blob=b""))
    session.add(Line(order_id=2, number="tab\t\\N\nend", weight=-0.0, paid=None, blob=None))


def empty_line(session: Session) -> None:
    line = session.get_one(Line, (1, "a/b"))
    line.weight = line.paid = line.blob = None


def grow_tree(session: Session) -> None:
    session.add(Node(id=1, parent_id=None, label=None))
    session.flush()
    session.add(Node(id=2, parent_id=1, label=""))


def turn_tree(session: Session) -> None:
    session.get_one(Node, 2).parent_id = None
    session.flush()
    session.get_one(Node, 1).parent_id = 2


HISTORY: list[Callable[[Session], object]] = [
    add_owner,
    lambda s: add_account(s, 1),
    lambda s: s.add_all([Task(id=1, project="p", title="x"), Task(id=2, project="q", title="y")]),
    lambda s: setattr(s.get_one(Account, 1), "balance", Decimal("-0.05")),
    swap_tasks,
    replace_task,
    move_task,
    add_lines,
    empty_line,
    grow_tree,
    turn_tree,
    move_back_and_rename,
    lambda s: s.add(Car(id=7, maker="m", doors=None)),
    lambda s: setattr(s.get_one(Car, 7), "doors", 5),
    lambda s: setattr(s.scalars(sa.select(Owner)).one(), "motto", ""),
    lambda s: s.delete(s.get_one(Account, 1)),
    lambda s: add_account(s, 1, "3.30"),
    lambda s: s.delete(s.get_one(Line, (1, ""))),
    lambda s: s.delete(s.get_one(Car, 7)),
]


def write_history(bench: Bench) -> None:
    for work in HISTORY:
        bench.write(work)


def unlock(bench: Bench, table: str, *statements: str) -> None:
    bench.tamper(f"ALTER TABLE oplog.{table} DISABLE TRIGGER ALL", *statements)
