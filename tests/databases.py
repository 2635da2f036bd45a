"""Databases of the run's server: made for a test by copying a template, dropped after it.

What costs is DDL, so tables, guards and first rows that many tests begin with are put into a
template once in each process, and a test's set-up is one CREATE DATABASE.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from tests.support import install_log

T = TypeVar("T")
OPTION = "test_database"
"""Execution option of an engine whose database is made when it is first connected to."""
TEMPLATES = 24
"""That many are kept; each takes about eight megabytes."""
REMEMBERED = 200
"""Contents of which it is known that some test had them."""
UNDROPPED = 8
"""Dropping is cheaper in groups: each DROP DATABASE waits for a checkpoint."""


@dataclass(frozen=True)
class Template:
    """A database that nobody is connected to, and what its maker returned."""

    name: str
    value: Any


class Cluster:
    """Makes and drops databases over one connection, which is kept."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._templates: OrderedDict[Hashable, Template] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._undropped: list[str] = []
        self._log: str | None = None

    @property
    def log_template(self) -> str:
        """A template with the log's tables alone."""
        if self._log is None:
            self._log = self._make_template("template1", _install).name
        return self._log

    def run(self, *statements: str) -> None:
        with self._engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def create(self, name: str, *, template: str) -> None:
        # Copying files takes a checkpoint, which costs nothing without fsync, and no WAL. Before
        # PostgreSQL 15 it is the only way, and has no name.
        with self._engine.connect() as connection:
            named = connection.dialect.server_version_info >= (15,)  # type: ignore[operator]
        strategy = " STRATEGY FILE_COPY" if named else ""
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}{strategy}")

    def drop(self, name: str) -> None:
        """Drop a database now or soon, whoever is connected to it."""
        self._undropped.append(name)
        if len(self._undropped) >= UNDROPPED:
            self._drop_all()

    def find_template(self, content: Hashable, fill: Callable[[Engine], Any]) -> Template | None:
        """The template with this content; None on the first request, which a template of its own
        would cost more than it saves."""
        found = self._templates.get(content)
        if found is not None:
            self._templates.move_to_end(content)
        elif content in self._seen:
            found = self._templates[content] = self._make_template(self.log_template, fill)
            if len(self._templates) > TEMPLATES:
                self._undropped.append(self._templates.popitem(last=False)[1].name)
        self._seen[content] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return found

    def close(self) -> None:
        self._undropped += [template.name for template in self._templates.values()]
        if self._log is not None:
            self._undropped.append(self._log)
        self._drop_all()
        self._engine.dispose()

    def _drop_all(self) -> None:
        names, self._undropped = self._undropped, []
        # A test that failed may have left a connection open; its database goes all the same.
        self.run(*(f"DROP DATABASE {name} WITH (FORCE)" for name in names))

    def _make_template(self, template: str, fill: Callable[[Engine], Any]) -> Template:
        name = f"oplog_template_{uuid4().hex[:12]}"
        self.create(name, template=template)
        try:
            value = call_apart(fill, self.url.set(database=name))
        except BaseException:
            self._undropped.append(name)
            raise
        # Autovacuum stays away too, which would keep the template from being copied.
        self.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        return Template(name, value)


class FreshDatabase:
    """A database for one test. It is made when somebody needs it, or with a content."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._made = False
        self._url = cluster.url.set(database=f"oplog_test_{uuid4().hex[:12]}")

    @property
    def url(self) -> URL:
        """The database's, which there is from now on, at least with the log's tables."""
        self.ensure()
        return self._url

    def ensure(self, *, template: str | None = None) -> None:
        if not self._made:
            self._cluster.create(
                str(self._url.database), template=template or self._cluster.log_template
            )
            self._made = True

    def fill(self, content: Hashable, fill: Callable[[Engine], T]) -> T:
        """Have `fill` work on the database, or copy one on which it has; what it returned.

        `content` says all that `fill` depends on.
        """
        template = None if self._made else self._cluster.find_template(content, fill)
        if template is None:
            return call_apart(fill, self.url)
        self.ensure(template=template.name)
        return cast("T", template.value)

    def make_engine(self, **options: Any) -> Engine:
        """An engine that has the database made when it first connects."""
        engine = sa.create_engine(self._url, execution_options={OPTION: self}, **options)
        sa.event.listen(engine, "do_connect", lambda *_: self.ensure())
        return engine

    def drop(self) -> None:
        if self._made:
            self._cluster.drop(str(self._url.database))


def fill_database(engine: Engine, content: Hashable, fill: Callable[[Engine], T]) -> T:
    """`FreshDatabase.fill` of an engine's database, or `fill` itself for any other engine."""
    database = engine.get_execution_options().get(OPTION)
    if isinstance(database, FreshDatabase):
        return database.fill(content, fill)
    return fill(engine)


def call_apart(fill: Callable[[Engine], T], url: URL) -> T:
    """Call with an engine that leaves no connection behind."""
    engine = sa.create_engine(url, poolclass=NullPool)
    try:
        return fill(engine)
    finally:
        engine.dispose()


def _install(engine: Engine) -> None:
    with engine.begin() as connection:
        install_log(connection)
