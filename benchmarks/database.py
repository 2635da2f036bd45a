"""Databases to measure in, and where the figures are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import sqlalchemy as sa

from benchmarks.workloads import Base
from oplog.schema.tables import create_statements


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """A database with nothing in it, dropped afterwards; its URL."""
    name = f"bench_{uuid4().hex[:8]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = sa.make_url(server).set(database=name)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@contextmanager
def fresh_database(server: str, metadata: sa.MetaData = Base.metadata) -> Iterator[str]:
    """A database with a benchmark's tables and the log's, dropped afterwards."""
    with empty_database(server) as url:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            metadata.create_all(connection)
            for statement in create_statements():
                connection.exec_driver_sql(statement)
        engine.dispose()
        yield url
