"""SQLAlchemy's engine plugin: `postgresql+psycopg://host/database?plugin=oplog` is logged.

Named in the package's entry points, so that a URL is all that a program needs. Nothing is asked of
the database before the first write to a guarded table: it need not even be there yet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, CreateEnginePlugin, Engine

from oplog.errors import ConfigurationError
from oplog.facade.learned_catalog import LearnedDatabases
from oplog.outside.learned_log import make_log
from oplog.outside.program_settings import read_settings
from oplog.postgres.driver import DRIVERS

NAME = "oplog"
"""The plugin's name in a URL."""


class OplogPlugin(CreateEnginePlugin):
    """Attaches a log to one engine, blocking or not, with whatever pool it has."""

    def __init__(self, databases: LearnedDatabases) -> None:
        # Read here, so that a process without a keyring ends when it starts.
        self._log = make_log(read_settings(os.environ, Path.cwd()), databases)

    def update_url(self, url: URL) -> URL:
        """SQLAlchemy has taken the plugin's name out already."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Attach. Raises `ConfigurationError` for a database or a driver that cannot be logged."""
        if engine.dialect.name != "postgresql" or engine.dialect.driver not in DRIVERS:
            raise ConfigurationError(
                f"plugin={NAME} is for PostgreSQL with psycopg 3, and this engine is for "
                f"{engine.dialect.name} with {engine.dialect.driver}",
                hint="use a postgresql+psycopg:// URL; create_async_engine takes the same one",
            )
        self._log.attach(engine)


class PluginLoader:
    """What SQLAlchemy calls for each engine; it lives as long as the process.

    Engines come and go, some with each request: what they learn of databases is kept here.
    """

    def __init__(self) -> None:
        self._databases = LearnedDatabases()

    def __call__(self, _url: URL, _kwargs: dict[str, Any]) -> OplogPlugin:
        """A plugin for one engine."""
        return OplogPlugin(self._databases)


plugin = PluginLoader()
"""The entry point."""


def without_plugin(url: URL) -> URL:
    """The same URL for an engine that is not attached."""
    named = url.query.get("plugin", ())
    names = [named] if isinstance(named, str) else named
    others = [name for name in names if name != NAME]
    bare = url.difference_update_query(["plugin"])
    return bare.update_query_dict({"plugin": others}) if others else bare
