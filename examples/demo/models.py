"""The logged tables: files of a repository, a bank, a parcel service.

These are plain SQLAlchemy models. Only the catalog says that they are logged, and which rows form
an aggregate.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import TypeCatalog

PARCELS = 5
"""Parcels of one shipment; anything less is half a shipment."""


class Base(DeclarativeBase):
    """All tables of the demonstration."""


class TrackedFile(Base):
    """A file as the newest commit loaded so far has it."""

    __tablename__ = "file"
    path: Mapped[str] = mapped_column(primary_key=True)
    mode: Mapped[str]
    blob: Mapped[str]


class Account(Base):
    """An account; the database itself refuses to overdraw it."""

    __tablename__ = "account"
    __table_args__ = (sa.CheckConstraint("balance >= 0"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))


class Transfer(Base):
    """Money that went from one account to another; number and time are the database's."""

    __tablename__ = "transfer"
    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    source_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"))
    target_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"))
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    made_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )


class Shipment(Base):
    """An order on its way, in `PARCELS` parcels."""

    __tablename__ = "shipment"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    destination: Mapped[str]


class Parcel(Base):
    """One of a shipment's parcels."""

    __tablename__ = "parcel"
    shipment_id: Mapped[int] = mapped_column(sa.ForeignKey("shipment.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    weight_grams: Mapped[int]


def make_catalog() -> TypeCatalog:
    """Everything is logged; a shipment and its parcels change together."""
    return TypeCatalog.from_models(Base, aggregates={"parcel": "shipment/{shipment_id}"})
