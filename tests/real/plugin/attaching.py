"""A plugin for pytest (`-p attaching`): every engine of a test run has the log.

For the tests that an application ships. Engines that its tests make for SQLite are made for
PostgreSQL if `OPLOG_REAL_MOVED` is set, each in-memory one with a database of its own. Without
`OPLOG_REAL_ATTACHING` that is all. With `engines` the log is attached to each engine as the
engine plugin attaches it. With `tables` also guards are put on tables when the run creates them,
and what they hold is verified before the run drops them. What was found is in the file that
`OPLOG_REAL_FINDINGS` names.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from oplog.errors import OplogError
from oplog.outside.engine_plugin import NAME
from oplog.outside.learned_log import learn_log
from oplog.outside.program_settings import read_settings
from oplog.postgres.quoting import qualify
from oplog.schema.tables import retire_statement, track_statements

LOG = "oplog"
DRIVERS = ("psycopg", "psycopg_async")
LOGGED = "SELECT pg_catalog.to_regclass('oplog.oplog_record') IS NOT NULL"
KNOWN = "SELECT EXISTS (SELECT FROM oplog.oplog_type WHERE type_name = %s)"
COUNT = "SELECT count(*) FROM oplog.oplog_record"
DATABASES = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate"
PATIENCE = "-c lock_timeout=5s -c statement_timeout=60s"
OF_SQLITE = frozenset({"check_same_thread", "timeout", "uri", "isolation_level"})
"""Arguments of SQLite's driver, which PostgreSQL's does not know."""
_DEPTH = 6
"""Differences of one look that are written down."""


@dataclass
class Findings:
    """What became of one run."""

    tracked: int = 0
    verified: int = 0
    records: int = 0
    untracked: Counter[str] = field(default_factory=Counter)
    unverified: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass
class Moving:
    """SQLAlchemy's engines for SQLite lead to databases of the server at `url`."""

    url: URL
    plain: Engine
    known: dict[str, str] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def move(self, url: URL) -> URL:
        """The URL to use in place of one for SQLite."""
        name = url.database or ":memory:"
        memory = name == ":memory:" or "mode=memory" in name
        database = self.known.get(name)
        # A file that is not there any more is another one now.
        if database is None or memory or not Path(name).exists():
            database = f"moved_{os.getpid()}_{next(self.numbers)}"
            engine = self.plain.execution_options(isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql(f'CREATE DATABASE "{database}"')
            self.known[name] = database
            if not memory:
                # Tests remove the file when they are done.
                Path(name).touch()
        return self.url.set(database=database)


@dataclass
class Attaching:
    """What is done during one run."""

    path: Path
    url: URL
    wanted: str
    plain: Engine = field(init=False)
    moving: Moving | None = field(init=False)
    found: Findings = field(default_factory=Findings)
    test: str = ""

    def __post_init__(self) -> None:
        # Made before engines get the log: what judges the log is read without it.
        self.plain = self.open_plain(self.url.database)
        self.moving = Moving(self.url, self.plain) if "OPLOG_REAL_MOVED" in os.environ else None

    def open_plain(self, database: str | None) -> Engine:
        """An engine without a log."""
        return sa.create_engine(
            self.url.set(database=database).update_query_dict({"application_name": "judge"}),
            poolclass=NullPool,
            connect_args={"options": PATIENCE},
        )

    def begin(self) -> None:
        """From here on engines are moved and attached."""
        original = URL._instantiate_plugins
        wanted, moving = self.wanted, self.moving

        def instantiate(
            url: URL, kwargs: Mapping[str, Any]
        ) -> tuple[URL, list[Any], dict[str, Any]]:
            if url.query.get("application_name") == "judge":
                return original(url, kwargs)
            if moving is not None and url.get_backend_name() == "sqlite":
                url, kwargs = moving.move(url), _adapt(kwargs)
            if wanted and _is_logged(url) and NAME not in kwargs.get("plugins", ()):
                kwargs = {**kwargs, "plugins": [*kwargs.get("plugins", ()), NAME]}
            return original(url, kwargs)

        URL._instantiate_plugins = instantiate  # type: ignore[method-assign,assignment]
        if self.wanted == "tables":
            sa.event.listen(sa.Table, "after_create", self.track)
            sa.event.listen(sa.Table, "before_drop", self.verify_table)
            sa.event.listen(sa.Table, "after_drop", self.retire)
            sa.event.listen(sa.MetaData, "before_drop", self.verify)

    def track(self, table: sa.Table, connection: Any, **_: Any) -> None:
        """Guard a table that has just been created, in the same transaction."""
        schema = self.find_schema(table, connection)
        if schema is None:
            return
        names = qualify([str(table.name)], schema)
        error = attempt(connection, track_statements(names, bypass_role=None, schema=LOG))
        if error:
            self.found.untracked[error] += 1
        else:
            self.found.tracked += 1

    def retire(self, table: sa.Table, connection: Any, **_: Any) -> None:
        """Say that a table is gone, as a migration does: tests make many tables of one name."""
        schema = self.find_schema(table, connection)
        if schema is None:
            return
        name = str(table.name) if schema == "public" else f"{schema}.{table.name}"
        if ask(connection, KNOWN, name):
            attempt(connection, [retire_statement(name, reason="dropped", schema=LOG)])

    def find_schema(self, table: sa.Table, connection: Any) -> str | None:
        """The schema of a table in a database with a log; None elsewhere."""
        if not _is_ours(connection) or not ask(connection, LOGGED):
            return None
        given = connection.schema_for_object(table)
        return str(given or ask(connection, "SELECT current_schema()"))

    def verify_table(
        self, table: sa.Table, connection: Any, *, _is_metadata_operation: bool = False, **_: Any
    ) -> None:
        """Before a single table is dropped."""
        if not _is_metadata_operation:
            self.verify(table, connection)

    def verify(self, _target: Any, connection: Any, **_: Any) -> None:
        """Before tables are dropped: whether the log has what they hold."""
        if _is_ours(connection):
            self.look(connection.engine.url.database)

    def look(self, database: str | None) -> None:
        """Verify all tables of a database, in a connection that has no log."""
        engine = self.open_plain(database)
        try:
            with engine.connect() as connection:
                if not connection.exec_driver_sql(LOGGED).scalar():
                    return
                if self.test == "end":
                    self.found.records += connection.exec_driver_sql(COUNT).scalar_one()
                log = learn_log(read_settings(os.environ, Path.cwd()), connection)
                # In a snapshot of its own.
                connection.rollback()
                report = log.verify(connection)
        except (OplogError, sa.exc.DBAPIError) as error:
            text = f"{self.test}: {type(error).__name__}: {_first_line(error)}"
            self.found.unverified.append(text)
            return
        self.found.verified += 1
        for one in report.differences[:_DEPTH]:
            self.found.differences.append(f"{self.test}: {one}"[:600])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which test runs."""
        self.test = nodeid

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Verify what is left, and write down what was found."""
        self.test = "end"
        if self.wanted == "tables":
            with self.plain.connect() as connection:
                names = connection.exec_driver_sql(DATABASES).scalars().all()
            for name in names:
                self.look(name)
        self.path.write_text(json.dumps(self.found.__dict__, indent=1), encoding="utf-8")


def ask(connection: Connection, sql: str, *parameters: str) -> Any:
    """One value, by the driver: tests count the statements that SQLAlchemy sends."""
    with contextlib.closing(connection.connection.cursor()) as cursor:
        cursor.execute(sql, parameters)
        row: Any = cursor.fetchone()
        return row[0]


def attempt(connection: Connection, statements: Iterable[str]) -> str:
    """Execute them, or leave the transaction as it was; returns what was wrong."""
    framed = connection.get_isolation_level() != "AUTOCOMMIT"
    with contextlib.closing(connection.connection.cursor()) as cursor:
        if framed:
            cursor.execute("SAVEPOINT attempt")
        try:
            for statement in statements:
                cursor.execute(statement)
        except connection.dialect.loaded_dbapi.Error as error:
            if framed:
                cursor.execute("ROLLBACK TO SAVEPOINT attempt")
            return _first_line(error)
        if framed:
            cursor.execute("RELEASE SAVEPOINT attempt")
    return ""


def _adapt(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an engine for SQLite, without what is for SQLite alone."""
    adapted = {key: value for key, value in kwargs.items() if key != "native_datetime"}
    if "connect_args" in adapted:
        adapted["connect_args"] = {
            key: value for key, value in adapted["connect_args"].items() if key not in OF_SQLITE
        }
    return adapted


def _is_ours(connection: Any) -> bool:
    """Whether it leads to PostgreSQL, and not to a mock."""
    return (
        isinstance(connection, Connection)
        and connection.dialect.name == "postgresql"
        and connection.dialect.driver in DRIVERS
    )


def _is_logged(url: URL) -> bool:
    name, _, driver = url.drivername.partition("+")
    # SQLAlchemy 2.0 takes another driver where none is named.
    named = driver or ("psycopg2" if sa.__version__.startswith("2.0.") else "psycopg")
    return name == "postgresql" and named in DRIVERS


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).splitlines()[0]


def pytest_configure(config: pytest.Config) -> None:
    """Begin before the first module of tests is imported."""
    path = os.environ.get("OPLOG_REAL_FINDINGS")
    if path is None:
        return
    url = sa.make_url(os.environ["OPLOG_REAL_URL"])
    attaching = Attaching(Path(path), url, os.environ.get("OPLOG_REAL_ATTACHING", ""))
    config.pluginmanager.register(attaching, "oplog-attaching")
    attaching.begin()
