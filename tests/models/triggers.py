"""A table whose rows the database changes on their way in, and the functions that do it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    stamp: Mapped[str | None]
    gone: Mapped[bool] = mapped_column(default=False, server_default=sa.false())


def make_trigger(when: str, body: str, *, name: str = "shape_item") -> list[str]:
    """Statements that make a row trigger on `item`; `body` is PL/pgSQL."""
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $fn$ BEGIN {body} END $fn$",
        f"CREATE TRIGGER {name} {when} ON item FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]
