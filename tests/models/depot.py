"""Tables that are written in every way there is: cascades, triggers, partitions, a view."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

AGGREGATES = {"slot": "bin/{bin_id}", "setting": "settings"}


class Base(DeclarativeBase):
    pass


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(unique=True)
    stock: Mapped[int] = mapped_column(server_default="0")
    note: Mapped[str | None]


class Bin(Base):
    __tablename__ = "bin"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    up: Mapped[int | None] = mapped_column(ForeignKey("bin.id", ondelete="CASCADE"))


class Slot(Base):
    """Belongs to its bin's aggregate, which its key does not name."""

    __tablename__ = "slot"
    id: Mapped[int] = mapped_column(primary_key=True)
    bin_id: Mapped[int] = mapped_column(
        ForeignKey("bin.id", ondelete="CASCADE", onupdate="CASCADE")
    )
    part_id: Mapped[int | None] = mapped_column(ForeignKey("part.id", ondelete="SET NULL"))
    amount: Mapped[int]


class Setting(Base):
    __tablename__ = "setting"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class Movement(Base):
    """Written by triggers on `part`, at once and deferred."""

    __tablename__ = "movement"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    part_id: Mapped[int]
    change: Mapped[int]
    kind: Mapped[str]


class Reading(Base):
    __tablename__ = "reading"
    __table_args__ = {"postgresql_partition_by": "LIST (day)"}  # noqa: RUF012 - SQLAlchemy's way
    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]
    twice: Mapped[float] = mapped_column(sa.Computed("value * 2", persisted=True))


TABLES: dict[str, sa.Table] = dict(Base.metadata.tables)
OBJECTS = (
    "CREATE TABLE reading_1 PARTITION OF reading FOR VALUES IN (1)",
    "CREATE TABLE reading_2 PARTITION OF reading FOR VALUES IN (2)",
    """CREATE FUNCTION move_part() RETURNS trigger LANGUAGE plpgsql AS $fn$ BEGIN
  INSERT INTO movement (part_id, change, kind) VALUES (NEW.id, NEW.stock, tg_argv[0]);
  RETURN NULL; END $fn$""",
    """CREATE TRIGGER moved AFTER UPDATE OF stock ON part FOR EACH ROW
  WHEN (NEW.stock <> OLD.stock) EXECUTE FUNCTION move_part('now')""",
    """CREATE CONSTRAINT TRIGGER moved_late AFTER UPDATE OF note ON part
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.note = 'late')
  EXECUTE FUNCTION move_part('late')""",
    """CREATE FUNCTION restock(p_id integer, p_more integer) RETURNS integer LANGUAGE sql AS $fn$
  UPDATE part SET stock = stock + p_more WHERE id = p_id RETURNING stock $fn$""",
    "CREATE VIEW part_label AS SELECT id, sku || ':' || stock AS label FROM part",
    """CREATE FUNCTION write_label() RETURNS trigger LANGUAGE plpgsql AS $fn$ BEGIN
  UPDATE part SET sku = NEW.label WHERE id = OLD.id; RETURN NEW; END $fn$""",
    """CREATE TRIGGER write_label INSTEAD OF UPDATE ON part_label FOR EACH ROW
  EXECUTE FUNCTION write_label()""",
)
