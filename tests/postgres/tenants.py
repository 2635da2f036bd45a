"""Tables of one model in the schemas of two tenants, and what a test does with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.postgres.quoting import qualify
from oplog.schema.tables import track_statements
from tests.logged import LoggedDatabase

TENANTS = ("t1", "t2")


class Base(DeclarativeBase):
    pass


class Plan(Base):
    """A table that all tenants share."""

    __tablename__ = "plan"
    __table_args__ = ({"schema": "common"},)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    number: Mapped[int | None] = mapped_column(server_default="7")
    mood: Mapped[str | None] = mapped_column(sa.Enum("good", "bad", name="mood"))
    plan_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Plan.id))


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(sa.ForeignKey(Note.id, ondelete="CASCADE"))
    text: Mapped[str]


class Office(LoggedDatabase):
    """A database whose log has the tables of both tenants."""

    @contextmanager
    def under(self, tenant: str) -> Iterator[Session]:
        """A transaction in which the search path says whose tables are meant."""
        with self.sessions.begin() as session:
            enter(session, tenant)
            yield session

    @contextmanager
    def translated(self, tenant: str) -> Iterator[Session]:
        """A transaction in which SQLAlchemy names the tenant's schema."""
        with self.sessions.begin() as session:
            session.connection(execution_options={"schema_translate_map": {None: tenant}})
            yield session

    def list_rows(self, tenant: str) -> list[Any]:
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT id, body FROM {tenant}.note ORDER BY 1")
            return [tuple(row) for row in rows]


def enter(session: Session, tenant: str) -> None:
    session.execute(sa.text(f"SET LOCAL search_path = {tenant}, common"))


def make_office(engine: Engine, *, guarded: bool, schemas: tuple[str, ...] = TENANTS) -> Office:
    """The tables of both tenants, and a log whose catalog names those of `schemas`."""
    create_tables(engine, guarded=guarded)
    catalog = TypeCatalog.from_models(Base, schemas=schemas, aggregates={"line": "note/{note_id}"})
    log, sessions = Oplog(catalog, keyring=Keyring.generate()), sessionmaker(engine)
    log.attach(sessions)
    return Office(engine, log, sessions)


def create_tables(engine: Engine, *, guarded: bool) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA common")
        for tenant in TENANTS:
            connection.exec_driver_sql(f"CREATE SCHEMA {tenant}")
            Base.metadata.create_all(
                connection.execution_options(schema_translate_map={None: tenant})
            )
        places = [("plan", "common"), *((n, t) for t in TENANTS for n in ("note", "line"))]
        for name, schema in places if guarded else ():
            for statement in track_statements(qualify([name], schema)):
                connection.exec_driver_sql(statement)
