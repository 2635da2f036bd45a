"""Names that need quoting, escaping, or are not what Python calls them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

WEIRD_NAMES = [
    "select",
    "a b",
    "per%cent",
    "per%s",
    "per%(x)s",
    "col:on",
    "naïve",
    'dou"ble',
    "sin'gle",
    "{brace}",
    "(paren)",
    "[bracket]",
    "dot.ted",
    "back\\slash",
    "MixedCase",
    "self",
    "class",
    "column_2",
    "column_9",
    "address1",
    "address_1",
    "a_b_",
    "a__b",
    "_a_b",
    "x",
    "_x",
    "clear",
    "DESCRIPTOR",
    "日本",
]


class Base(DeclarativeBase):
    pass


weird_table = sa.Table(
    "weird",
    Base.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column(name, sa.String, key=f"c{n}") for n, name in enumerate(WEIRD_NAMES)),
)


class Weird(Base):
    __table__ = weird_table


class Renamed(Base):
    """The attribute, the column's key and the column's name all differ."""

    __tablename__ = "renamed"
    number: Mapped[int] = mapped_column("row no", key="nr", primary_key=True)
    title: Mapped[str | None] = mapped_column("select", key="from")
    # The label of `renamed.id`-like names: SQLAlchemy's own parameters must not clash.
    renamed_nr: Mapped[str | None] = mapped_column("renamed_row no")
    stamp: Mapped[str | None] = mapped_column(
        "per%cent", key="stamp_key", default="new", onupdate=lambda: "touched"
    )


class Elsewhere(Base):
    __tablename__ = "else"
    __table_args__ = {"schema": "Other schema"}  # noqa: RUF012 - SQLAlchemy's own spelling
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class MixedCase(Base):
    __tablename__ = 'Mixed "Case" 100%'
    id: Mapped[int] = mapped_column("Id", primary_key=True)
    name: Mapped[str | None] = mapped_column("Na%me", server_default="x")


class Pair(Base):
    """A composite key whose order in the model is not that of the table's columns."""

    __tablename__ = "pair"
    name: Mapped[str | None]
    right: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[int] = mapped_column(primary_key=True)


class Secret(Base):
    __tablename__ = "secret"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password: Mapped[str] = mapped_column(server_default="unset")
