"""The databases of one server: made, copied, put in the place of others."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.pool import NullPool


@dataclass
class Cluster:
    """Makes and copies databases, over a connection of its own for each statement."""

    url: sa.URL

    def run(self, *statements: str) -> None:
        """Execute outside of a transaction."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def create(self, name: str, *, template: str = "template1") -> sa.URL:
        """A database in place of one of this name."""
        self.run(
            f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
            f'CREATE DATABASE "{name}" TEMPLATE "{template}"',
        )
        return self.url.set(database=name)

    def replace(self, name: str, *, by: str) -> None:
        """Have the database `by` under the name of another one, which is dropped."""
        self.run(
            f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
            f'ALTER DATABASE "{by}" RENAME TO "{name}"',
        )
