"""What the applications keep, and the log that they keep it with."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Keyring, Oplog, TypeCatalog


class Base(DeclarativeBase):
    """Models of the applications."""


class Note(Base):
    """A note."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    words: Mapped[int | None]


def make_log() -> Oplog:
    """A log that refuses what nobody answers for."""
    return Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_env(), require=("actor",))


def count_words(note: Note) -> None:
    """Work that takes a while, so that a request leaves it for later."""
    note.words = len(note.text.split())
