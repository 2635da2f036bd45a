"""A database for an application of `examples/applications`."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from examples.applications.notes import Base
from oplog import Keyring
from tests.databases import fill_database
from tests.examples.kept_notes import Shelf
from tests.logged import track


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
