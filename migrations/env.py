"""Alembic environment that holds the log's tables and nothing else.

Which database: the connection in `config.attributes["connection"]`, `-x url=`, the environment
variable OPLOG_DATABASE_URL, or `sqlalchemy.url`, in this order. An application with an
environment of its own does not need this one: it imports `oplog.migration` in its `env.py`.
"""

from __future__ import annotations

import os
from logging.config import fileConfig

import sqlalchemy as sa
from alembic import context
from alembic.util import CommandError
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.pool import NullPool

import oplog.migration  # noqa: F401 - registers op.create_oplog and its siblings

# Not `alembic_version`: that is the application's table, which may be in the same schema. Not in
# the log's schema: the table would have to exist before that schema, and would outlive it.
VERSION_TABLE = "oplog_alembic_version"


def find_url() -> URL | None:
    """Return the database's URL, or None when none was given."""
    given = (
        context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("OPLOG_DATABASE_URL")
        or context.config.get_main_option("sqlalchemy.url")
    )
    if not given:
        return None
    url = make_url(given)
    # Without a driver in the URL, psycopg is meant, which is installed with the log.
    plain = url.drivername in {"postgres", "postgresql"}
    return url.set(drivername="postgresql+psycopg") if plain else url


def print_statements() -> None:
    """Print the statements; they are the same for every database, so a URL is not needed."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table=VERSION_TABLE,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_statements(connection: Connection) -> None:
    """Migrate; a caller's connection is left in the transaction that it came in."""
    context.configure(connection=connection, version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()


def connect_and_run() -> None:
    """Migrate through a connection of our own."""
    url = find_url()
    if url is None:
        raise CommandError(
            "no database: give -x url=postgresql+psycopg://user@host/database, "
            "or set OPLOG_DATABASE_URL"
        )
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        run_statements(connection)


# From the command line only: a program that migrates has set up its own logging.
if context.config.cmd_opts is not None and context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

shared = context.config.attributes.get("connection")
if context.is_offline_mode():
    print_statements()
elif shared is not None:
    run_statements(shared)
else:
    connect_and_run()
