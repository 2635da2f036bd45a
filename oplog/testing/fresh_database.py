"""Databases for tests, copied from templates: what costs is DDL, so each content is made once.

A template holds tables and guards. It does not hold the types that the log stores with its first
transaction: in a copy of the database they would be stored again, because it is another one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from oplog.postgres.quoting import quote
from oplog.schema.tables import create_statements

if TYPE_CHECKING:
    # Importing it needs greenlet, which an application without asyncio does not have.
    from sqlalchemy.ext.asyncio import AsyncEngine

_BARE = "template1"
_IN_TRANSACTION = 2
"""As libpq numbers it; what has ended already, or failed, commits nothing more."""
HAS_WRITTEN = "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
"""Whether the transaction of a connection has written anything, also to be rolled back since."""
_TEMPLATES = 16
"""That many are kept; each takes about eight megabytes."""
_REMEMBERED = 100
_UNDROPPED = 8
"""Dropping is cheaper in groups: each DROP DATABASE waits for a checkpoint."""


@dataclass(slots=True)
class SharedDatabase:
    """A database that tests use one after the other, as long as each leaves nothing in it."""

    engine: Engine
    touched: bool = False
    """Something was written and committed."""
    _async_engine: AsyncEngine | None = None

    @classmethod
    def open(cls, url: URL) -> Self:
        """An engine of the database, whose commits are noticed."""
        made = cls(sa.create_engine(url))
        event.listen(made.engine, "commit", made._note_commit)
        return made

    def make_async_engine(self) -> AsyncEngine:
        """The same for asyncio; not before it is asked for, because it needs greenlet."""
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see above

        if self._async_engine is None:
            self._async_engine = create_async_engine(self.engine.url, poolclass=NullPool)
            event.listen(self._async_engine.sync_engine, "commit", self._note_commit)
        return self._async_engine

    def _note_commit(self, connection: Connection) -> None:
        """A connection is about to commit."""
        driver: Any = connection.connection.driver_connection
        if driver.pgconn.transaction_status != _IN_TRANSACTION:
            return
        self.touched = self.touched or connection.exec_driver_sql(HAS_WRITTEN).scalar_one()


@dataclass(frozen=True, slots=True)
class _Template:
    name: str
    value: Any


class DatabaseCopies:
    """Makes and drops the databases of one process on one server."""

    def __init__(self, server: URL) -> None:
        self.server = server
        self._admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._templates: OrderedDict[Hashable, _Template] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._shared: dict[Hashable, SharedDatabase] = {}
        self._undropped: list[str] = []
        self._log: str | None = None

    def create(self, template: str = _BARE) -> URL:
        """A new database."""
        name = f"oplog_{uuid4().hex[:16]}"
        with self._admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {quote(name)} TEMPLATE {quote(template)}")
        return self.server.set(database=name)

    def remove(self, url: URL) -> None:
        """Drop a database, soon."""
        self._undropped.append(str(url.database))
        if len(self._undropped) >= _UNDROPPED:
            self._drop()

    def find_template(
        self, content: Hashable, fill: Callable[[Engine], Any], *, bare: bool = False
    ) -> tuple[str, Any]:
        """Name of a database with this content, and what `fill` returned when it was made.

        `fill` gets the engine of a database that has the log's tables, or nothing if it is `bare`.
        """
        found = self._templates.get(content)
        if found is None:
            url = self.create(_BARE if bare else self.find_log_template())
            engine = sa.create_engine(url, poolclass=NullPool)
            try:
                value = fill(engine)
            except BaseException:
                self.remove(url)
                raise
            finally:
                engine.dispose()
            found = self._templates[content] = _Template(str(url.database), value)
        self._templates.move_to_end(content)
        if len(self._templates) > _TEMPLATES:
            _, oldest = self._templates.popitem(last=False)
            self._undropped.append(oldest.name)
        return found.name, found.value

    def is_known(self, content: Hashable) -> bool:
        """Whether it was asked before for this content, so that a template of it pays."""
        known = content in self._seen
        self._seen[content] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return known

    def find_log_template(self) -> str:
        """Name of a database with the log's tables and nothing else."""
        if self._log is None:
            url = self.create()
            engine = sa.create_engine(url, poolclass=NullPool)
            run_statements(engine, create_statements())
            self._log = str(url.database)
        return self._log

    def share(
        self, content: Hashable, template: str, *, prepare: Callable[[Engine], object]
    ) -> SharedDatabase:
        """The database that tests with this content share; a new one if one was written to.

        `prepare` gets the engine of a new one.
        """
        found = self._shared.get(content)
        if found is not None and found.touched:
            found.engine.dispose()
            self.remove(found.engine.url)
            found = None
        if found is None:
            found = self._shared[content] = SharedDatabase.open(self.create(template))
            prepare(found.engine)
            found.touched = False
        return found

    def close(self) -> None:
        """Drop everything."""
        for shared in self._shared.values():
            shared.engine.dispose()
            self._undropped.append(str(shared.engine.url.database))
        self._undropped += [template.name for template in self._templates.values()]
        self._undropped += filter(None, [self._log])
        self._drop()
        self._admin.dispose()

    def _drop(self) -> None:
        with self._admin.connect() as connection:
            while self._undropped:
                name = quote(self._undropped.pop())
                # A test that failed may have left a connection open.
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def run_statements(engine: Engine, statements: list[str]) -> None:
    """Execute DDL in one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            # Without this a percent sign in DDL would be read as a parameter.
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
