"""The database of the demonstration, opened in the same way by each of its processes.

Several processes write one log. They share only the URL of the database and the key file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from examples.demo.models import Base, make_catalog
from oplog import Keyring, Oplog
from oplog.migration import migrations_path

LOG_SCHEMA = "oplog"


@dataclass(frozen=True, slots=True)
class Database:
    """An engine, a logged session factory, and the log; `directory` holds the key file."""

    url: str
    directory: Path
    engine: Engine
    sessions: sessionmaker[Session]
    log: Oplog


def make_keys(directory: Path) -> None:
    """Make the keys that records are sealed with."""
    Keyring.generate().save(_key_file(directory))


def open_database(
    url: str, directory: Path, *, name: str, on_event: Callable[[Any], None] | None = None
) -> Database:
    """Connect as `name`, which the server shows, and attach the log to new sessions."""
    engine = sa.create_engine(url, connect_args={"application_name": name})
    sessions = sessionmaker(engine)
    keyring = Keyring.from_file(_key_file(directory))
    log = Oplog(make_catalog(), keyring=keyring, schema=LOG_SCHEMA, on_event=on_event or _ignore)
    log.attach(sessions)
    return Database(url, directory, engine, sessions, log)


def migrate(engine: Engine) -> str:
    """Create the log's tables with Alembic, then the demonstration's; return the revision."""
    config = Config()
    # Alembic reads a percent sign in a setting as the start of a name.
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        revision = connection.scalar(sa.text("SELECT version_num FROM oplog_alembic_version"))
        Base.metadata.create_all(connection)
    return str(revision)


def drop_schema(connection: Connection, schema: str) -> None:
    """Remove tables that were replayed for a comparison."""
    quoted = connection.dialect.identifier_preparer.quote(schema)
    connection.execute(sa.text(f"DROP SCHEMA {quoted} CASCADE"))


def count_rows(connection: Connection, table: sa.FromClause) -> int:
    """Rows of a table."""
    return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def count_differing(connection: Connection, table: sa.Table, *, schema: str) -> int:
    """Rows that only one of the live table and its replayed copy in `schema` has.

    Plain SQL, in both directions, and so independent of the log's own comparison.
    """
    live = sa.select(*table.columns)
    copy = sa.select(*table.to_metadata(sa.MetaData(), schema=schema).columns)
    both = sa.union_all(
        sa.select(sa.except_all(live, copy).subquery()),
        sa.select(sa.except_all(copy, live).subquery()),
    )
    return count_rows(connection, both.subquery())


def verify(database: Database) -> tuple[Any, float]:
    """Verify all tables; return the report and the seconds it took."""
    began = time.monotonic()
    with database.engine.connect() as connection:
        verdict = database.log.verify(connection)
    return verdict, time.monotonic() - began


def describe_differences(differences: Sequence[Any]) -> str:
    """The first few of them, in one line."""
    shown = ", ".join(
        f"{d.table} {dict(d.key)} column {d.column}: {d.kind}" for d in differences[:3]
    )
    return f"{len(differences)} differences, such as {shown}" if differences else "none"


def dispose(database: Database) -> None:
    """Close the connections; a server that has ended already is not an error here."""
    with suppress(sa.exc.DBAPIError):
        database.engine.dispose()


def _key_file(directory: Path) -> Path:
    return directory / "keyring.json"


def _ignore(event: object) -> None:
    """Ignore an event of the log."""
