"""Migrations of an application that pins SQLAlchemy 1.4: its statements go to another process.

This module runs in the application's environment, which has no log, and imports nothing but what
is there and the channel. It offers SQLAlchemy a database driver that sends each statement, with
its parameters printed into it, over a pipe; the walk executes it on its own connection, which has
a log, and sends rows or the error back. So the migration reads what is really there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import psycopg2
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect

from tests.histories.channel import Channel


class Error(Exception):
    """Base of what a driver raises."""


class DatabaseError(Error):
    """What the server said."""

    sqlstate = ""


class IntegrityError(DatabaseError):
    """SQLSTATE class 23."""


class ProgrammingError(DatabaseError):
    """SQLSTATE class 42."""


class OperationalError(DatabaseError):
    """Any other."""


KINDS = {"23": IntegrityError, "42": ProgrammingError}


class Cursor:
    """A DB-API cursor. `mogrify` prints parameters into a statement."""

    arraysize = 1

    def __init__(self, channel: Channel, mogrify: Callable[[str, Any], str]) -> None:
        self.channel, self.mogrify = channel, mogrify
        self.rows: list[tuple[Any, ...]] = []
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1

    def execute(self, statement: str, parameters: Any = None) -> None:
        """Execute elsewhere, and keep all rows."""
        text = self.mogrify(statement, parameters or {})
        answer = self.channel.ask("execute", text)
        if answer[0] == "error":
            error = KINDS.get(answer[1][:2], OperationalError)(answer[2])
            error.sqlstate = answer[1]
            raise error
        _, names, self.rows, self.rowcount = answer
        self.description = names and [(one, None, None, None, None, None, None) for one in names]

    def executemany(self, statement: str, parameters: Sequence[Any]) -> None:
        """Execute once for each."""
        for one in parameters:
            self.execute(statement, one)

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row."""
        return self.rows.pop(0) if self.rows else None

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """The next rows."""
        found, self.rows = self.rows[:size], self.rows[size:]
        return found

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        return self.fetchmany(len(self.rows))

    def close(self) -> None:
        """Nothing is held."""

    def setinputsizes(self, *_sizes: Any) -> None:
        """Nothing depends on it."""


class Connection:
    """A DB-API connection; all of them are the one on the other side."""

    def __init__(self, channel: Channel, mogrify: Callable[[str, Any], str]) -> None:
        self.channel, self.mogrify = channel, mogrify

    def cursor(self, *_arguments: Any) -> Cursor:
        """A cursor."""
        return Cursor(self.channel, self.mogrify)

    def commit(self) -> None:
        """Commit on the other side."""
        self._end("commit")

    def rollback(self) -> None:
        """Roll back on the other side."""
        self._end("rollback")

    def _end(self, how: str) -> None:
        answer = self.channel.ask(how)
        if answer[0] == "error":
            error = OperationalError(answer[2])
            error.sqlstate = answer[1]
            raise error

    def close(self) -> None:
        """The connection on the other side stays."""


def make_engine(channel: Channel, url: str) -> Any:
    """An engine of SQLAlchemy 1.4 over the channel; `url` is of a database that only prints."""
    printer = psycopg2.connect(url).cursor()

    def mogrify(statement: str, parameters: Any) -> str:
        return str(printer.mogrify(statement, parameters).decode())

    class Dialect(PGDialect):
        driver = "relay"
        default_paramstyle = "pyformat"
        supports_statement_cache = True
        supports_native_decimal = True

        @classmethod
        def dbapi(cls) -> Any:  # type: ignore[override]
            return SimpleNamespace(
                paramstyle="pyformat",
                Error=Error,
                DatabaseError=DatabaseError,
                IntegrityError=IntegrityError,
                ProgrammingError=ProgrammingError,
                OperationalError=OperationalError,
            )

    registry.impls["postgresql.relay"] = lambda: Dialect
    return sa.create_engine(
        "postgresql+relay://",
        creator=lambda: Connection(channel, mogrify),
        poolclass=sa.pool.NullPool,
    )


def create(engine: Any, setup: str) -> None:
    """Create the tables of `module:metadata prefix` whose names begin with the prefix."""
    path, prefix = setup.split()
    module, _, attributes = path.partition(":")
    metadata: Any = importlib.import_module(module)
    for one in attributes.split("."):
        metadata = getattr(metadata, one)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            # One by one: the metadata would create the enums of all its tables.
            if table.name.startswith(prefix):
                table.create(connection)


def serve(channel: Channel, order: Mapping[str, Any]) -> None:
    """Answer what the walk asks: which revisions there are, and to upgrade to one."""
    config = Config()
    config.set_main_option("script_location", order["scripts"])
    scripts = ScriptDirectory.from_config(config)
    found = [(one.revision, one.doc) for one in scripts.walk_revisions()]
    channel.send("revisions", found[::-1])
    engine = make_engine(channel, order["url"])

    def upgrade(engine: Any, revision: str) -> None:
        def find_steps(current: Any, _context: Any) -> Any:
            return scripts._upgrade_revs(revision, current)

        with (
            EnvironmentContext(config, scripts, fn=find_steps) as environment,
            engine.connect() as connection,
        ):
            environment.configure(connection=connection)
            with environment.begin_transaction():
                environment.run_migrations()

    while True:
        try:
            what, target = channel.receive()
        except EOFError:
            return
        try:
            if what == "create":
                create(engine, target)
            else:
                upgrade(engine, target)
        except Exception as error:  # noqa: BLE001 - the walk reports it
            channel.send("failed", type(error).__name__, str(getattr(error, "orig", None) or error))
        else:
            channel.send("done")


def main() -> None:
    """Make the application, then serve on standard input and output."""
    channel = Channel(sys.stdin.buffer, sys.stdout.buffer)
    # Applications print; the pipe is for messages.
    sys.stdout = sys.stderr
    order: Mapping[str, Any] = channel.receive()[0]
    module, _, name = order["factory"].partition(":")
    application = getattr(importlib.import_module(module), name)()
    with application.app_context():
        serve(channel, order)


if __name__ == "__main__":
    main()
