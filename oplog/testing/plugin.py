"""Fixtures for pytest: a database with a log, and a strict log that is verified after each test.

Use it by `pytest_plugins = ["oplog.testing.plugin"]` in the top `conftest.py`, or by
`from oplog.testing.plugin import *`. Tables are guarded and the log is strict: an unlogged write
raises where it happens, or the verification after the test finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.facade import Oplog
from oplog.postgres.quoting import (
    qualify,
    quote,
)
from oplog.schema.tables import (
    create_statements,
    track_statements,
)
from oplog.testing.assertion import assert_logged
from oplog.testing.resolve import CHOICE, resolve_server

__all__ = ["OpenedLog", "open_oplog", "oplog_engine", "oplog_server_url", "oplog_template"]


@dataclass(frozen=True)
class OpenedLog:
    """A strict log, attached to `sessions`, whose tables are guarded."""

    log: Oplog
    sessions: sessionmaker[Session]
    engine: Engine

    def assert_logged(self, model_or_type: Any = None, **wanted: Any) -> None:
        """`oplog.testing.assert_logged` on a connection of its own."""
        with self.engine.connect() as connection:
            assert_logged(self.log, connection, model_or_type, **wanted)


@pytest.fixture(scope="session")
def oplog_server_url() -> Iterator[URL]:
    """URL of a database for administration on the server of this run.

    The server is the one in the variable `OPLOG_TEST_DATABASE_URL`, whose account must be
    allowed to create databases, or an embedded one that ends with the run.
    """
    server = resolve_server({CHOICE: "embedded", **os.environ})
    yield make_url(server.url).set(drivername="postgresql+psycopg")
    server.stop()


@pytest.fixture(scope="session")
def oplog_template(oplog_server_url: URL) -> Iterator[str]:
    """Name of a database with the log's tables, which is copied for each test."""
    with _make_database(oplog_server_url, "template1") as url:
        engine = sa.create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            _execute(connection, create_statements())
        yield str(url.database)


@pytest.fixture
def oplog_engine(oplog_server_url: URL, oplog_template: str) -> Iterator[Engine]:
    """Engine of a new database with the log's tables; both are removed after the test."""
    with _make_database(oplog_server_url, oplog_template) as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def open_oplog(oplog_engine: Engine) -> Iterator[Callable[..., OpenedLog]]:
    """A function that opens a log on `oplog_engine` for the models it is given.

    `opened = open_oplog(Base, untracked={...})` creates the tables of the models, guards those
    that are tracked, and attaches a strict log to a new sessionmaker. At the end of the test
    the live tables are compared with the log; the test fails if they differ.

    Arguments by name: `catalog`, or the arguments of `TypeCatalog.from_models`; `keyring`, by
    default a new one; `sessions`, the application's own sessionmaker, which is bound to the
    database during the test; `verify=False` for a test that tampers on purpose.
    """

    def open_log(
        models: type[DeclarativeBase] | sa.MetaData,
        *,
        catalog: TypeCatalog | None = None,
        keyring: Keyring | None = None,
        sessions: sessionmaker[Session] | None = None,
        verify: bool = True,
        **declared: Any,
    ) -> OpenedLog:
        known = catalog or TypeCatalog.from_models(models, **declared)
        _create_tables(oplog_engine, models, known)
        log = Oplog(known, keyring=keyring or Keyring.generate(), strict=True)
        factory = sessions or sessionmaker(oplog_engine)
        before = factory.kw.get("bind")
        factory.configure(bind=oplog_engine)
        log.attach(factory)
        opened = OpenedLog(log, factory, oplog_engine)

        def close() -> None:
            log.detach(factory)
            factory.configure(bind=before)
            if verify:
                opened.assert_logged()

        closing.callback(close)
        return opened

    with ExitStack() as closing:
        yield open_log


def _create_tables(
    engine: Engine, models: type[DeclarativeBase] | sa.MetaData, catalog: TypeCatalog
) -> None:
    metadata = models if isinstance(models, sa.MetaData) else models.metadata
    tables = [declared.table for declared in catalog.types.values()]
    schemas = {t.schema for t in (*metadata.tables.values(), *tables) if t.schema}
    tenants = {one.table.schema for one in catalog.types.values() if one.model is not None}
    places: list[str | None] = [*filter(None, tenants)] or [None]
    with engine.begin() as connection:
        _execute(connection, [f"CREATE SCHEMA IF NOT EXISTS {quote(s)}" for s in sorted(schemas)])
        for schema in places:
            translation = {} if schema is None else {None: schema}
            metadata.create_all(connection.execution_options(schema_translate_map=translation))
        connection.execution_options(schema_translate_map={})
        for table in tables:
            _execute(connection, track_statements(qualify([table.name], table.schema)))


def _execute(connection: Connection, statements: list[str]) -> None:
    for statement in statements:
        # Without this a percent sign in DDL would be read as a parameter.
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


@contextmanager
def _make_database(server: URL, template: str) -> Iterator[URL]:
    name = f"oplog_{uuid4().hex[:16]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {quote(name)} TEMPLATE {quote(template)}")
    try:
        yield server.set(database=name)
    finally:
        with admin.connect() as connection:
            # A test that failed may have left a connection open.
            connection.exec_driver_sql(f"DROP DATABASE {quote(name)} WITH (FORCE)")
