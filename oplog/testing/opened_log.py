"""What the fixture `open_oplog` gives a test: a log on a database, and what of it is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, sessionmaker
from sqlalchemy.pool import NullPool

from oplog.capture.attach_target import is_async_factory
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.errors import ConfigurationError
from oplog.facade import Oplog
from oplog.postgres.quoting import qualify, quote
from oplog.schema.tables import track_statements
from oplog.testing.assertion import assert_logged
from oplog.testing.fresh_database import DatabaseCopies, SharedDatabase, run_statements
from oplog.testing.rolling_back import configured, rolled_back, rolled_back_async

if TYPE_CHECKING:
    # Importing it needs greenlet, which an application without asyncio does not have.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

Models = type[DeclarativeBase] | sa.MetaData


@dataclass(frozen=True)
class OpenedLog:
    """A log, attached to `sessions`, on the database of `engine`, whose tables are guarded."""

    log: Oplog
    sessions: Any
    engine: Engine
    _shared: SharedDatabase | None = field(default=None, repr=False)

    def assert_logged(self, model_or_type: Any = None, **wanted: Any) -> None:
        """`oplog.testing.assert_logged` on a connection of its own."""
        with self.engine.connect() as connection:
            assert_logged(self.log, connection, model_or_type, **wanted)

    def make_async_engine(self) -> AsyncEngine:
        """An engine of the same database for asyncio; it keeps no connection open.

        So it works in any event loop, and need not be disposed of.
        """
        if self._shared is not None:
            return self._shared.make_async_engine()
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see above

        return create_async_engine(self.engine.url, poolclass=NullPool)

    @contextmanager
    def rolled_back(self, *, verify: bool = True) -> Iterator[Connection]:
        """`oplog.testing.rolled_back` with these sessions."""
        with rolled_back(
            self.log, self.engine, sessions=self.sessions, verify=verify
        ) as connection:
            yield connection

    @asynccontextmanager
    async def rolled_back_async(self, *, verify: bool = True) -> AsyncIterator[AsyncConnection]:
        """`oplog.testing.rolled_back_async` with these sessions, which are an async factory."""
        async with rolled_back_async(
            self.log, self.engine, sessions=self.sessions, verify=verify
        ) as connection:
            yield connection


class OpenOplog:
    """`open_oplog`: what it returns, and what has to be done when the test ends."""

    def __init__(self, copies: DatabaseCopies, closing: ExitStack) -> None:
        self._copies = copies
        self._closing = closing

    def __call__(
        self,
        models: Models | None = None,
        *,
        catalog: TypeCatalog | None = None,
        keyring: Keyring | None = None,
        log: Oplog | None = None,
        sessions: Any = None,
        prepare: Callable[[Engine], object] | None = None,
        shared: bool = False,
        verify: bool = True,
        **declared: Any,
    ) -> OpenedLog:
        """See `oplog.testing.plugin.open_oplog`."""
        if log is not None and (catalog is not None or keyring is not None or declared):
            raise ConfigurationError(
                "open_oplog was given a log, and what another one is made of",
                hint="give log=app.log alone, or catalog= and keyring= without it",
            )
        content = _Content(
            models=models, catalog=catalog, log=log, prepare=prepare, declared=declared
        )
        engine, made, database = self._find_database(content, keyring, shared=shared)
        factory = sessionmaker() if sessions is None else sessions
        opened = OpenedLog(log or made, factory, engine, database)
        self._bind(opened, own=log is None, verify=verify and not shared)
        return opened

    def _find_database(
        self, content: _Content, keyring: Keyring | None, *, shared: bool
    ) -> tuple[Engine, Oplog, SharedDatabase | None]:
        copies, key, fill = self._copies, content.key(keyring), partial(content.fill, keyring)
        bare = content.prepare is not None
        if shared:
            template, log = copies.find_template(key, fill, bare=bare)
            database = copies.share(key, template, prepare=partial(_store_types, log))
            return database.engine, log, database
        # What no other test asks for is made where it is used: a catalog made by the test, say.
        known = bare or copies.is_known(key)
        if known:
            template, log = copies.find_template(key, fill, bare=bare)
        else:
            template = copies.find_log_template()
        url = copies.create(template)
        self._closing.callback(copies.remove, url)
        engine = sa.create_engine(url)
        self._closing.callback(engine.dispose)
        return engine, log if known else fill(engine), None

    def _bind(self, opened: OpenedLog, *, own: bool, verify: bool) -> None:
        if verify:
            self._closing.callback(opened.assert_logged)
        factory: Any = getattr(opened.sessions, "session_factory", opened.sessions)
        asynchronous = is_async_factory(factory)
        bind = opened.make_async_engine() if asynchronous else opened.engine
        self._closing.enter_context(configured(factory, bind=bind))
        opened.log.attach(opened.sessions)
        if own:
            # An application's own log stays attached to its sessions: it may have been before.
            self._closing.callback(opened.log.detach, opened.sessions)


@dataclass(frozen=True)
class _Content:
    """What a database is filled with: tables, guards, and what the log knows."""

    models: Models | None
    catalog: TypeCatalog | None
    log: Oplog | None
    prepare: Callable[[Engine], object] | None
    declared: dict[str, Any]

    def key(self, keyring: Keyring | None) -> Hashable:
        """Equal where the database would be."""
        # The objects themselves: an id may be another's later.
        tables = () if self.models is None else tuple(_find_metadata(self.models).tables.values())
        given = (self.models, tables, self.catalog, self.log, self.prepare, keyring)
        return (*given, repr(sorted(self.declared.items())))

    def fill(self, keyring: Keyring | None, engine: Engine) -> Oplog:
        """Make tables and guards."""
        log = self.log or self._make_log(keyring)
        if self.prepare is not None:
            self.prepare(engine)
        else:
            _create_tables(engine, self.models, log.catalog)
        return log

    def _make_log(self, keyring: Keyring | None) -> Oplog:
        catalog = self.catalog
        if catalog is None:
            if self.models is None:
                raise ConfigurationError(
                    "open_oplog does not know what to log",
                    hint="give it models, catalog= or log=",
                )
            catalog = TypeCatalog.from_models(self.models, **self.declared)
        return Oplog(catalog, keyring=keyring or Keyring.generate(), strict=True)


def _store_types(log: Oplog, engine: Engine) -> None:
    """What the first transaction would do, which is a commit of its own."""
    with engine.connect() as connection:
        log.store_types(connection)


def _find_metadata(models: Models) -> sa.MetaData:
    return models if isinstance(models, sa.MetaData) else models.metadata


def _create_tables(engine: Engine, models: Models | None, catalog: TypeCatalog) -> None:
    tables = [declared.table for declared in catalog.types.values()]
    known = [table.metadata for table in tables] if models is None else [_find_metadata(models)]
    every = list(dict.fromkeys(known))
    schemas = {t.schema for one in every for t in one.tables.values() if t.schema}
    schemas |= {table.schema for table in tables if table.schema}
    tenants = {one.table.schema for one in catalog.types.values() if one.model is not None}
    places: list[str | None] = [*filter(None, tenants)] or [None]
    run_statements(engine, [f"CREATE SCHEMA IF NOT EXISTS {quote(s)}" for s in sorted(schemas)])
    with engine.begin() as connection:
        for schema in places:
            translation = {} if schema is None else {None: schema}
            translated = connection.execution_options(schema_translate_map=translation)
            for metadata in every:
                metadata.create_all(translated)
    for table in tables:
        run_statements(engine, track_statements(qualify([table.name], table.schema)))
