"""The part of `Oplog` that goes through a migration: its data, its DDL, what became of types."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sqlalchemy.engine import Connection

from oplog.binding import Binding, bind_stored
from oplog.capture.recorder import LiveTables
from oplog.facade.given_target import Inside, take_connection
from oplog.facade.log_parts import LogParts
from oplog.facade.types_part import Types
from oplog.schema.tables import VERSION
from oplog.store.version import parse_version, read_comment


class Migrating:
    """What a migration does with a log."""

    def __init__(self, log: LogParts, *, types: Types) -> None:
        self._log = log
        self._types = types

    def migrating(self, connection: Inside) -> AbstractContextManager[None]:
        """Inside the block, log what a migration does on `connection`, data and DDL in any order.

        Everything is captured by the guards, whatever wrote it: SQL text, `Table` objects of the
        migration's own, models of another time, sessions on the connection. Before a statement
        that alters tables the changes so far are logged, in the same transaction, so that a
        transaction may make several records. On a connection in AUTOCOMMIT a statement that writes
        rows gets a transaction of its own. Tables without a guard are not seen. Alembic's
        migrations are in such a block by themselves, with `import oplog.migration`.
        """
        live = LiveTables(bind=self._bind_live, note=self.note_migration)
        inside = take_connection(connection, self._log.catalog)
        return self._log.attachments.migrating(inside, live)

    def _bind_live(self, connection: Connection) -> Binding:
        """What the log knows of the tables as they are now, in the connection's transaction."""
        # The only place where a migration's changes of rows meet its changes of tables.
        self.note_migration(connection)
        log = self._log
        return bind_stored(connection, log.catalog, store=log.store, keyring=log.keyring)

    def note_migration(self, connection: Connection) -> None:
        """`note_changes` after a revision of a migration; nothing in a database without a log.

        Tables that are guarded are logged, whether or not the models of now declare them.
        """
        if parse_version(read_comment(connection, self._log.schema)) == VERSION:
            self._types.note_guarded(connection)
