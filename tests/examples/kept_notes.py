"""The database of an application of `examples/applications`, and what its records say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from examples.applications.notes import make_log

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
