"""Opens a log for reading: its tables, an archive, or both as one, with the keys it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Sealer
from oplog.errors import ConfigurationError, KeyUnavailableError, PrunedError
from oplog.payload.codec import PayloadCodec
from oplog.payload.upcast import Upcaster
from oplog.reading.joined_log import join_log
from oplog.reading.reader import RecordReader
from oplog.reading.shape_table import ShapeTable
from oplog.reading.type_match import StoredSteps
from oplog.store import LogSource, Store, TablesLog
from oplog.store.removal import PruningStore


@dataclass(frozen=True)
class LogOpener:
    """What it takes to open one log, except a connection.

    With a `source` that log is read, whatever the database itself has. With an `archive` what was
    published is read from there.
    """

    store: Store
    catalog: TypeCatalog
    keyring: Keyring | None
    sealer: Sealer
    codec: PayloadCodec
    archive: Archive | None = None
    source: LogSource | None = None
    pause: Callable[[], None] | None = None
    """Called between records, so that a task that reads many lets others run."""

    def open(
        self,
        connection: Connection | None,
        *,
        revisions: Mapping[str, int] | None = None,
        whole: bool = True,
        stepping: bool = True,
    ) -> RecordReader:
        """A reader of the log, after checking schema, server and keyring.

        `revisions` are wanted of types; without `stepping` rows stay as they were logged. Without
        a connection the archive is read alone. Raises `PrunedError` if the log must be `whole`
        and what is read lacks its beginning; `ConfigurationError` if there is nothing to read
        from.
        """
        source = self.source or self._find_source(connection, whole=whole)
        return self.open_source(source, revisions=revisions, stepping=stepping)

    def open_source(
        self,
        source: LogSource,
        *,
        revisions: Mapping[str, int] | None = None,
        stepping: bool = True,
    ) -> RecordReader:
        """A reader of `source`, with the keys and codecs of this log."""
        types = ShapeTable(source)
        upcaster = None
        if stepping and (self.catalog.has_steps or revisions):
            steps = StoredSteps(self.catalog, lambda: types.latest)
            wanted = steps.name_stored(revisions) if revisions else {}
            upcaster = Upcaster(steps, types, revisions=wanted)
        return RecordReader(
            source,
            sealer=self.sealer,
            codec=self.codec,
            types=types,
            log_id=source.read_log_id(),
            key_checks=check_keyring(source, self.keyring),
            upcaster=upcaster,
            pause=self.pause,
        )

    def make_steps(self, reader: RecordReader) -> StoredSteps:
        """The declared steps, by the log's names of types."""
        return StoredSteps(self.catalog, lambda: reader.types.latest)

    def _find_source(self, connection: Connection | None, *, whole: bool) -> LogSource:
        if connection is None:
            if self.archive is None:
                raise ConfigurationError(
                    "there is neither a connection nor an archive to read the log from",
                    hint="give a connection, or archive=open_archive(...) to read what was "
                    "published without a database",
                )
            return self._open_archive(self.archive, whole=whole)
        self.store.require_home(connection)
        if self.archive is not None:
            return join_log(connection, self.archive, store=self.store)
        if whole:
            PruningStore(self.store.schema).require_whole(connection)
        return TablesLog(self.store, connection)

    def _open_archive(self, archive: Archive, *, whole: bool) -> ArchivedLog:
        head = archive.read_head()
        if whole and head.first_sequence > 1:
            raise PrunedError(
                f"{archive.url} has given up the log before sequence {head.first_sequence}",
                hint="give the connection of a database that still has it; read() shows what is "
                "left without one",
            )
        return ArchivedLog(archive, head, schema=self.store.schema)


def check_keyring(source: LogSource, keyring: Keyring | None) -> Mapping[str, bytes]:
    """The check values of the log's keys; `KeyUnavailableError` if it has keys and none is given.

    That a key is the right one is checked against these values when a record is opened.
    """
    known = source.list_keys()
    if known and keyring is None:
        raise KeyUnavailableError(
            f"records of this log are sealed with {', '.join(sorted(known))}; no keyring is given",
            hint="give the keyring: Oplog(..., keyring=Keyring.from_env())",
        )
    return known
