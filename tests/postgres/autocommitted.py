"""A database that is written in AUTOCOMMIT, with rows, functions and triggers to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.logged import LoggedDatabase, open_logged


class Base(DeclarativeBase):
    """Rows that are written without a transaction."""


class Item(Base):
    """A generated key."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    n: Mapped[int] = mapped_column(server_default="7")


class Doc(Base):
    """A version, and a reference that is checked at COMMIT."""

    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("item.id", deferrable=True, initially="DEFERRED")
    )
    version = mapped_column(sa.Integer, nullable=False)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy has it


class Note(Base):
    """Written by triggers and functions."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


FUNCTION = """CREATE FUNCTION add_note(what text) RETURNS int LANGUAGE sql AS
'INSERT INTO note (text) VALUES (what) RETURNING id'"""
TRIGGER = """CREATE FUNCTION note_doc() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN INSERT INTO note (text) VALUES (''doc''); RETURN NULL; END'"""
OBJECTS = (
    FUNCTION,
    TRIGGER,
    """CREATE CONSTRAINT TRIGGER note_doc AFTER INSERT ON doc DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION note_doc()""",
)
ITEM: Any = Item.__table__
DOC: Any = Doc.__table__
NOTE: Any = Note.__table__


class Database(LoggedDatabase):
    """One with an attached engine in AUTOCOMMIT, and what was sent on it, in which state."""

    auto: Engine
    sent: list[tuple[str, str]]

    def check(self) -> None:
        """Nothing is open, and the log tells the rows."""
        with self.auto.connect() as connection:
            assert status(connection) == "IDLE"
        assert self.auto.pool.checkedout() == 0  # type: ignore[attr-defined]
        self.assert_replays()


def status(connection: Connection) -> str:
    raw: Any = connection.connection.driver_connection
    return str(raw.info.transaction_status.name)


def open_database(engine: Engine, *, guarded: bool) -> Iterator[Database]:
    objects = OBJECTS if guarded else ()
    opened = open_logged(engine, Base, guarded=guarded, seed="", objects=objects)
    db = Database(opened.engine, opened.log, opened.sessions)
    auto = sa.create_engine(
        engine.url, isolation_level="AUTOCOMMIT", pool_size=1, insertmanyvalues_page_size=2
    )
    db.log.attach(auto)
    sent: list[tuple[str, str]] = []
    with auto.connect():
        # Called after the log's own listener.
        event.listen(
            auto,
            "before_cursor_execute",
            lambda *given: sent.append((given[2], status(given[0]))),
        )
    object.__setattr__(db, "auto", auto)
    object.__setattr__(db, "sent", sent)
    yield db
    auto.dispose()
