"""An `Oplog` whose tables are the guarded ones of a database, for programs that declare none."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.facade import Oplog
from oplog.facade.learned_catalog import LearnedCatalog, LearnedDatabases
from oplog.outside.program_settings import ProgramSettings


def make_log(settings: ProgramSettings, databases: LearnedDatabases) -> Oplog:
    """A log that learns its tables when an engine that it is attached to writes first."""
    keyring = settings.open_keyring()
    return Oplog(
        LearnedCatalog(databases, choice=settings.columns),
        keyring=keyring,
        schema=settings.schema,
        plaintext=settings.plaintext,
    )


def learn_log(settings: ProgramSettings, connection: Connection) -> Oplog:
    """A log of the tables that are guarded in this database now. Raises `SchemaVersionError`."""
    catalog = LearnedCatalog(LearnedDatabases(), choice=settings.columns)
    log = Oplog(
        catalog,
        keyring=settings.open_keyring(),
        schema=settings.schema,
        plaintext=settings.plaintext,
    )
    catalog.learn(connection, log.store)
    return log
