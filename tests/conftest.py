"""The server of a test run, and a fresh database for each test that wants one.

One server per run: the process that the user started resolves it, xdist's workers are told its
URL. A test's database is a copy of a template that has the log's tables (25 ms).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url

from oplog.errors import ConfigurationError
from oplog.testing.resolve import ResolvedServer, resolve_server
from tests.support import administer, install_log

SERVER = pytest.StashKey[ResolvedServer]()
SERVER_URL = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs so, and what tests start and interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    told = getattr(config, "workerinput", None)
    if told is not None:
        config.stash[SERVER_URL] = told["oplog_server_url"]
    elif not config.option.collectonly:
        try:
            server = resolve_server(os.environ)
        except ConfigurationError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[SERVER] = server
        config.stash[SERVER_URL] = server.url


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["oplog_server_url"] = node.config.stash[SERVER_URL]


def pytest_report_header(config: pytest.Config) -> list[str]:
    server = config.stash.get(SERVER, None)
    return [f"postgres: {server}"] if server is not None else []


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash.get(SERVER, None)
    if server is not None:
        server.stop()


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> URL:
    """A database of the run's server, for administration; tests do not write into it."""
    return make_url(pytestconfig.stash[SERVER_URL])


@pytest.fixture(scope="session")
def template(server_url: URL) -> Iterator[str]:
    """Name of a database with the log's tables, which nobody is connected to."""
    with _database(server_url, f"oplog_template_{uuid4().hex[:12]}") as url:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            install_log(connection)
        engine.dispose()
        assert url.database is not None
        yield url.database


@pytest.fixture
def database_url(server_url: URL, template: str) -> Iterator[URL]:
    """A fresh database with the log's tables."""
    with _database(server_url, f"oplog_test_{uuid4().hex[:12]}", template=template) as url:
        yield url


@pytest.fixture
def bare_database_url(server_url: URL) -> Iterator[URL]:
    """A fresh database with nothing in it."""
    with _database(server_url, f"oplog_test_{uuid4().hex[:12]}") as url:
        yield url


@pytest.fixture
def spare_engine(server_url: URL, template: str) -> Iterator[Engine]:
    """Engine of a second fresh database with the log's tables."""
    with _database(server_url, f"oplog_test_{uuid4().hex[:12]}", template=template) as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """Engine of a fresh database with the log's tables."""
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


@contextmanager
def _database(server: URL, name: str, *, template: str = "template1") -> Iterator[URL]:
    administer(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.set(database=name)
    # A test that failed may have left a connection open; its database goes all the same.
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")
