"""Which driver a connection uses, and that the log can work with it.

The log's statements, its pipelines and the guards' messages are psycopg 3's. With another
driver some of it would fail late, after rows were written; so it is refused first.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError

DRIVERS = frozenset({"psycopg", "psycopg_async"})
"""As SQLAlchemy names them."""


def require_driver(connection: Connection) -> None:
    """Raise `ConfigurationError` unless the engine uses psycopg 3, blocking or not."""
    dialect = connection.dialect
    if dialect.driver not in DRIVERS:
        raise ConfigurationError(
            f"the log works with psycopg 3, and this engine's driver is {dialect.driver}",
            hint="use a postgresql+psycopg:// URL; create_async_engine takes the same one",
        )
