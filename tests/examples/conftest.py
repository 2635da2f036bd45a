"""A database for an application of `examples/applications`, and what its records say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from examples.applications.notes import Base, make_log
from oplog import Keyring
from tests.databases import fill_database
from tests.logged import track

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shelf:
    """The database of an application."""

    engine: Engine

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return self.engine.url.render_as_string(hide_password=False)

    def tell(self) -> list[tuple[str, dict[str, list[str]]]]:
        """Each entry in the order of the log: what was done, and its metadata."""
        with self.engine.connect() as connection:
            return [
                (f"{entry.operations[0].kind.name} {entry.aggregate}", dict(entry.metadata))
                for entry in make_log().read(connection)
            ]

    def count(self) -> int:
        """Number of notes."""
        with self.engine.connect() as connection:
            return int(connection.scalar(sa.text("SELECT count(*) FROM note")) or 0)


@pytest.fixture
def shelf(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A guarded table of notes, and a keyring in the environment."""

    def fill(engine: Engine) -> None:
        Base.metadata.create_all(engine)
        track(engine, *Base.metadata.tables.values())

    fill_database(engine, ("notes of examples",), fill)
    monkeypatch.setenv("OPLOG_KEYRING", Keyring.generate().to_text())
    monkeypatch.setenv("NOTES_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    return Shelf(engine)
