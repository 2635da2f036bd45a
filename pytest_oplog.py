"""The fixtures of `oplog.testing.plugin`, which pytest finds by itself where the package is.

Every run of pytest in such an environment imports this module, so it imports nothing but pytest;
the package is imported by the first test that uses a fixture. It stands outside of the package
because a module inside could not be imported without the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

    from oplog.testing.fresh_database import DatabaseCopies
    from oplog.testing.opened_log import OpenOplog

__all__ = ["open_oplog", "oplog_databases", "oplog_engine", "oplog_server_url", "oplog_template"]


@pytest.fixture(scope="session")
def oplog_server_url() -> Iterator[URL]:
    """URL of a database for administration on the server of this run.

    The server is the one in the variable `OPLOG_TEST_DATABASE_URL`, whose account must be
    allowed to create databases, or an embedded one that ends with the run. Each worker of
    pytest-xdist has an embedded one of its own.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see above

    from oplog.testing.resolve import CHOICE, resolve_server  # noqa: PLC0415 - see above

    server = resolve_server({CHOICE: "embedded", **os.environ})
    yield make_url(server.url).set(drivername="postgresql+psycopg")
    server.stop()


@pytest.fixture(scope="session")
def oplog_databases(oplog_server_url: URL) -> Iterator[DatabaseCopies]:
    """Makes the databases of the tests, and drops them; for the other fixtures."""
    from oplog.testing.fresh_database import DatabaseCopies  # noqa: PLC0415 - see above

    copies = DatabaseCopies(oplog_server_url)
    yield copies
    copies.close()


@pytest.fixture(scope="session")
def oplog_template(oplog_databases: DatabaseCopies) -> str:
    """Name of a database with the log's tables, which is copied for each test."""
    return oplog_databases.find_log_template()


@pytest.fixture
def oplog_engine(oplog_databases: DatabaseCopies, oplog_template: str) -> Iterator[Engine]:
    """Engine of a new database with the log's tables; both are removed after the test."""
    import sqlalchemy as sa  # noqa: PLC0415 - see above

    url = oplog_databases.create(oplog_template)
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()
    oplog_databases.remove(url)


@pytest.fixture
def open_oplog(oplog_databases: DatabaseCopies) -> Iterator[OpenOplog]:
    """A function that opens a log on a new database for the models it is given.

    `opened = open_oplog(Base, untracked={...})` creates the tables of the models, guards those
    that are tracked, and attaches a strict log to a new sessionmaker. At the end of the test
    the live tables are compared with the log; the test fails if they differ.

    Arguments by name: `catalog`, or the arguments of `TypeCatalog.from_models`; `keyring`, by
    default a new one; `log`, the application's own log, in place of these, which stays attached;
    `sessions`, the application's own sessionmaker or async_sessionmaker, which is bound to the
    database during the test; `prepare`, a function that gets the engine of an empty database and
    makes everything in it, the log's tables and guards too, as migrations do; `verify=False` for a
    test that tampers on purpose. With `shared=True` the database is shared by all tests that open
    the same, which roll back what they do: `with opened.rolled_back() as connection`.
    """
    from oplog.testing.opened_log import OpenOplog  # noqa: PLC0415 - see above

    with ExitStack() as closing:
        yield OpenOplog(oplog_databases, closing)
