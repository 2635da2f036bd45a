"""Columns whose stored value is not simply what the application sent."""

from __future__ import annotations

import enum
import itertools
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Upper(sa.TypeDecorator[str]):
    """Stores upper case, reads lower case: the database's value is not the application's."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.upper()

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


class Numbered(sa.TypeDecorator[str]):
    """Stores something else each time it is asked."""

    impl = sa.String
    cache_ok = True
    counter = itertools.count()

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else f"{value}-{next(self.counter)}"


class Reversed(sa.types.UserDefinedType[str]):
    """Passes through an SQL function on its way into the database."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        return "TEXT"

    def bind_expression(self, bindvalue: sa.BindParameter[str]) -> sa.ColumnElement[str]:
        return sa.func.reverse(bindvalue, type_=self)


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Always(Base):
    __tablename__ = "always"
    id: Mapped[int] = mapped_column(sa.Identity(always=True, start=100), primary_key=True)
    name: Mapped[str | None]


class ByDefault(Base):
    __tablename__ = "by_default"
    id: Mapped[int] = mapped_column(sa.Identity(start=100), primary_key=True)
    ticket: Mapped[int] = mapped_column(sa.BigInteger, sa.Sequence("ticket_numbers", start=7))
    name: Mapped[str | None]


class Defaults(Base):
    """Every way in which a value can come about without being given."""

    __tablename__ = "defaults"
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sa.text("gen_random_uuid()"))
    plain: Mapped[int | None]
    python: Mapped[UUID] = mapped_column(default=uuid4)
    python_sql: Mapped[str] = mapped_column(default=sa.func.lower("ABC"))
    server: Mapped[datetime] = mapped_column(server_default=sa.text("clock_timestamp()"))
    python_update: Mapped[str | None] = mapped_column(onupdate=lambda: uuid4().hex)
    sql_update: Mapped[datetime | None] = mapped_column(onupdate=sa.text("clock_timestamp()"))
    touched: Mapped[int | None] = mapped_column(server_onupdate=sa.FetchedValue())


class Computed(Base):
    __tablename__ = "computed"
    id: Mapped[int] = mapped_column(primary_key=True)
    side: Mapped[int]
    area: Mapped[int] = mapped_column(sa.Computed("side * side", persisted=True))


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int | None]
    label: Mapped[str | None]
    version_id: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version_id}  # noqa: RUF012 - SQLAlchemy's own spelling


class Typed(Base):
    __tablename__ = "typed"
    id: Mapped[int] = mapped_column(primary_key=True)
    upper: Mapped[str | None] = mapped_column(Upper)
    numbered: Mapped[str | None] = mapped_column(Numbered)
    reversed: Mapped[str | None] = mapped_column(Reversed)
    colour: Mapped[Colour | None] = mapped_column(sa.Enum(Colour, name="colour"))
    document: Mapped[Any | None] = mapped_column(sa.JSON)
    binary_document: Mapped[Any | None] = mapped_column(pg.JSONB)
    numbers: Mapped[list[int] | None] = mapped_column(pg.ARRAY(sa.Integer))
    words: Mapped[list[str] | None] = mapped_column(pg.ARRAY(sa.String(5)))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(8, 2))
    exact: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    code: Mapped[str | None] = mapped_column(sa.CHAR(4))
    ratio: Mapped[float | None] = mapped_column(sa.REAL)
    data: Mapped[bytes | None]
    moment: Mapped[datetime | None] = mapped_column(pg.TIMESTAMP(precision=3))
    span: Mapped[Any | None] = mapped_column(pg.INTERVAL)


class TextKeyed(Base):
    """Keys that Python does not hold in the form of the database."""

    __tablename__ = "text_keyed"
    id: Mapped[str] = mapped_column(
        sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text("gen_random_uuid()")
    )
    name: Mapped[str | None]


class DecoratedKey(Base):
    __tablename__ = "decorated_key"
    id: Mapped[str] = mapped_column(Upper, primary_key=True)
    name: Mapped[str | None]


class LooseKey(Base):
    """1.0 and 1.00 are the same key to SQL, and stored apart."""

    __tablename__ = "loose_key"
    id: Mapped[Decimal] = mapped_column(sa.Numeric, primary_key=True, autoincrement=False)
    name: Mapped[str | None]
