"""A blocking engine for the database of an asynchronous connection.

COPY, by which tables are rebuilt, is driven by psycopg's blocking connection alone.
"""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool


def make_blocking(driver_connection: Any) -> Engine:
    """An engine that connects as this psycopg connection did, and keeps no connection.

    What was set on the connection since then is not set on the engine's.
    """
    info = driver_connection.info
    parameters = {**info.get_parameters(), "password": info.password or None}

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(**parameters)

    return sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
