"""The part of `Oplog` that goes through a migration: its data, its DDL, what became of types."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sqlalchemy.engine import Connection

from oplog.binding import Binding, bind_fitting
from oplog.capture.recorder import LiveTables
from oplog.errors import ConfigurationError
from oplog.facade.log_parts import LogParts
from oplog.facade.writing_part import Writing
from oplog.postgres.quoting import double_percent
from oplog.schema.tables import VERSION, retire_statement
from oplog.store.version import parse_version, read_comment


class Migrating:
    """What a migration does with a log."""

    def __init__(self, log: LogParts, *, writing: Writing) -> None:
        self._log = log
        self._writing = writing

    def migrating(self, connection: Connection) -> AbstractContextManager[None]:
        """Inside the block, log what a migration does on `connection`, data and DDL in any order.

        Everything is captured by the guards, whatever wrote it: SQL text, `Table` objects of the
        migration's own, models of another time, sessions on the connection. Before a statement
        that alters tables the changes so far are logged, in the same transaction, so that a
        transaction may make several records. On a connection in AUTOCOMMIT a statement that writes
        rows gets a transaction of its own. Tables without a guard are not seen. Alembic's
        migrations are in such a block by themselves, with `import oplog.migration`.
        """
        live = LiveTables(bind=self._bind_live, note=self.note_changes)
        return self._log.attachments.migrating(connection, live)

    def _bind_live(self, connection: Connection) -> Binding:
        """What the log knows of the tables as they are now, in the connection's transaction."""
        # The only place where a migration's changes of rows meet its changes of tables.
        self.note_changes(connection)
        return bind_fitting(
            connection, self._log.catalog, store=self._log.store, keyring=self._log.keyring
        )

    def note_changes(self, connection: Connection) -> None:
        """Say in the log what became of its tables, after the changes of rows so far.

        In the connection's transaction, which the caller commits. Does nothing in a database
        without a log of this version.
        """
        with self._log.attachments.at_work(connection):
            if parse_version(read_comment(connection, self._log.schema)) == VERSION:
                self._note(connection)

    def _note(self, connection: Connection) -> None:
        bind_fitting(
            connection, self._log.catalog, store=self._log.store, keyring=self._log.keyring
        )

    def replace_type(self, connection: Connection, type_name: str, *, reason: str) -> None:
        """Say in the log that another table has taken the place of a type's, and log its rows.

        The rows of the table before are gone with it. Runs in the connection's transaction;
        writers of the table wait until it ends. Raises `UnknownTypeError`, and
        `ConfigurationError` for an empty reason.
        """
        if not reason.strip():
            raise ConfigurationError(
                "replace_type needs a reason", hint="say why another table took this one's place"
            )
        with self._log.attachments.at_work(connection):
            statement = retire_statement(type_name, reason=reason, schema=self._log.schema)
            connection.exec_driver_sql(double_percent(statement))
            self._log.attachments.refresh()
            self._writing.adopt(connection, [type_name], again=True)
