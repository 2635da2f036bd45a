"""The server of a test run, and a fresh database for each test that wants one.

One server per run: the process that the user started resolves it, xdist's workers are told its
URL. A test's database is a copy of a template (`tests/databases.py`).
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import NullPool

from oplog.errors import ConfigurationError
from oplog.testing import EmbeddedServer
from oplog.testing.resolve import ResolvedServer, resolve_server
from tests import environments, sampling, scratch
from tests.databases import Cluster, FreshDatabase
from tests.older import NEWEST, NEWEST_AND_OLDER, OLDER, find_programs, skip_older
from tests.sampling import Sample, Sampling
from tests.support import administer

SERVER = pytest.StashKey[ResolvedServer]()
SERVER_URL = pytest.StashKey[str]()
SERVER_VERSION = pytest.StashKey[int]()
SCRATCH = pytest.StashKey[Path]()
SAMPLING = pytest.StashKey[Sampling]()


def pytest_addoption(parser: pytest.Parser) -> None:
    environments.add_options(parser)
    sampling.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs so, and what tests start and interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Workers are told by the environment that they inherit.
    config.stash[SCRATCH] = scratch.keep_in_memory(os.environ)
    told = getattr(config, "workerinput", None)
    if told is not None:
        config.stash[SERVER_URL] = told["oplog_server_url"]
        config.stash[SAMPLING] = Sampling(*told["oplog_sampling"])
        return
    config.stash[SAMPLING] = sampling.read_sampling(config)
    if not config.option.collectonly:
        try:
            server = resolve_server(os.environ)
        except ConfigurationError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[SERVER] = server
        config.stash[SERVER_URL] = server.url


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["oplog_server_url"] = node.config.stash[SERVER_URL]
    drawn = node.config.stash[SAMPLING]
    node.workerinput["oplog_sampling"] = (drawn.seed, drawn.whole)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    environments.deselect_unaffected(config, items)
    sampling.deselect_undrawn(config.stash[SAMPLING], config, items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("since") is not None:
        skip_older(item, _read_version(item.config))


def _read_version(config: pytest.Config) -> int:
    if SERVER_VERSION not in config.stash:
        engine = sa.create_engine(config.stash[SERVER_URL], poolclass=NullPool)
        with engine.connect() as connection:
            number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        config.stash[SERVER_VERSION] = number // 10_000
    return config.stash[SERVER_VERSION]


def pytest_report_header(config: pytest.Config) -> list[str]:
    server = config.stash.get(SERVER, None)
    found = [f"postgres: {server}"] if server is not None else []
    return [
        *found,
        f"temporary files: {config.stash[SCRATCH]}",
        f"sampled: {config.stash[SAMPLING]}",
    ]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if terminalreporter.stats.get("failed") and SAMPLING in config.stash:
        terminalreporter.write_line(f"sampled: {config.stash[SAMPLING]}")


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash.get(SERVER, None)
    if server is not None:
        server.stop()


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage after each module, so that what a module leaves open fails there.

    Else a file that only the collector closes fails a test that has nothing to do with it.
    """
    yield
    gc.collect()


@pytest.fixture
def sample(request: pytest.FixtureRequest) -> Sample:
    """Draws a part of what the test could try; its mark is `sampled`."""
    return sampling.make_sample(request.config.stash[SAMPLING], request.node)


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> URL:
    """A database of the run's server, for administration; tests do not write into it."""
    return make_url(pytestconfig.stash[SERVER_URL])


@pytest.fixture(scope="session")
def cluster(server_url: URL) -> Iterator[Cluster]:
    """Makes databases, and keeps the templates of this process."""
    cluster = Cluster(server_url)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> str:
    """Name of a database with the log's tables, which nobody is connected to."""
    return cluster.log_template


@pytest.fixture
def fresh_database(cluster: Cluster) -> Iterator[FreshDatabase]:
    """A fresh database, which is made when it is first needed."""
    database = FreshDatabase(cluster)
    yield database
    database.drop()


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> URL:
    """A fresh database with the log's tables."""
    return fresh_database.url


@pytest.fixture
def bare_database_url(cluster: Cluster) -> Iterator[URL]:
    """A fresh database with nothing in it."""
    database = FreshDatabase(cluster)
    database.ensure(template="template1")
    yield database.url
    database.drop()


@pytest.fixture(scope="session")
def start_older() -> Iterator[Callable[[str], URL]]:
    """Starts an older server, or skips; each once."""
    started: dict[str, EmbeddedServer] = {}
    with ExitStack() as stack:

        def start(name: str) -> URL:
            if name not in started:
                server = EmbeddedServer(bin_dir=find_programs(name))
                started[name] = stack.enter_context(server)
            return make_url(started[name].url)

        yield start


@pytest.fixture(scope="session", params=OLDER)
def older_server_url(request: pytest.FixtureRequest, start_older: Callable[[str], URL]) -> URL:
    """An older server, where one is installed."""
    return start_older(request.param)


@pytest.fixture(params=NEWEST_AND_OLDER)
def each_bare_database_url(
    request: pytest.FixtureRequest, start_older: Callable[[str], URL]
) -> Iterator[URL]:
    """A fresh database with nothing in it, on the run's server and on older ones."""
    if request.param == NEWEST:
        yield request.getfixturevalue("bare_database_url")
        return
    older = start_older(request.param)
    url = older.set(database=f"oplog_test_{uuid4().hex[:12]}")
    administer(older, f"CREATE DATABASE {url.database}")
    yield url
    administer(older, f"DROP DATABASE {url.database} WITH (FORCE)")


@pytest.fixture
def spare_database(cluster: Cluster) -> Iterator[FreshDatabase]:
    """A second fresh database."""
    database = FreshDatabase(cluster)
    yield database
    database.drop()


@pytest.fixture
def spare_engine(spare_database: FreshDatabase) -> Iterator[Engine]:
    """Engine of a second fresh database with the log's tables."""
    engine = spare_database.make_engine()
    yield engine
    engine.dispose()


@pytest.fixture
def engine(fresh_database: FreshDatabase) -> Iterator[Engine]:
    """Engine of a fresh database with the log's tables."""
    engine = fresh_database.make_engine()
    yield engine
    engine.dispose()
