"""Makes the log of a copied database that database's own; application tables stay untouched.

A copy takes over the archives of the original or forgets them; the archives themselves are not
written. Each consumer goes on from its place, without a gap or a repetition, or is refused
because its place belongs to another history.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.format.head import Origin
from oplog.errors import ConfigurationError
from oplog.postgres.standby import require_primary
from oplog.postgres.suspension import find_oids, resume_tables, suspend_switches
from oplog.postgres.work import Driver
from oplog.recovery.preconditions import take_lock
from oplog.recovery.restore import open_work
from oplog.store import Store
from oplog.store.cursor import Cursor
from oplog.store.export import ArchiveRow, ExportStore
from oplog.store.feed import Feed
from oplog.store.home import Home, Identity, read_homing, write_home
from oplog.store.intake import RestorationStore
from oplog.store.removal import PruningStore
from oplog.store.renumbering import IncarnationStore, Reader, rebase_cursor


@dataclass(frozen=True, slots=True)
class IncarnationReport:
    """What became of a copied log.

    It belongs to `database` (an oid) of `server` (a system identifier) now, and belonged to the
    `previous_` ones before: 0 and empty if none was recorded. The records of `entries` entries
    got other transaction ids. `consumers` go on from their places. The places of `strangers`
    belong to another history and stay unchanged: each is refused until somebody resets it.
    `archives` are the URLs that this database goes on with, or, for a copy, has forgotten.
    """

    replaces_original: bool
    server: str
    database: int
    previous_server: str
    previous_database: int
    entries: int
    consumers: tuple[str, ...]
    strangers: tuple[str, ...]
    archives: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def incarnate_log(
    connection: Connection, *, schema: str, replaces_original: bool
) -> IncarnationReport:
    """Make the log in `schema` that of this database, in one transaction.

    With `replaces_original` it takes over the archives that it knows from the database that
    published last; without, it forgets them. Writers and readers wait. On the server that it was
    written on, and after an upgrade of that, transaction ids stay; elsewhere every record
    gets an id lower than any that the server assigns. Raises
    `ConfigurationError` for a role that does not own the log, on a standby, and in a transaction;
    `ConflictError` while a restore is under way.
    """
    if connection.in_transaction():
        raise ConfigurationError(
            "a log is made this database's own in a transaction of its own, and the connection "
            "is in one",
            hint="commit or roll back first, or give another connection",
        )
    with open_work(connection):
        return _Incarnation(connection, schema).run(replaces_original=replaces_original)


class _Incarnation:
    """One run, in one transaction."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._store = IncarnationStore(schema)
        self._exports = ExportStore(schema)

    def run(self, *, replaces_original: bool) -> IncarnationReport:
        self._check()
        lock = RestorationStore(self._schema)
        take_lock(self._connection, lock)
        # Transactions that write records have ended or wait: all of them can be renumbered.
        lock.lock_tables(self._connection)
        found = read_homing(self._connection, self._schema)
        home = found.home or Home(found.here, "")
        origin = Origin(*Feed(self._schema).read_origin(self._connection), found.here.database)
        rows = self._exports.list_rows(self._connection)
        cursors, strangers = self._list_cursors(home, rows if replaces_original else [])
        entries = self._rebase(home, origin, cursors)
        if replaces_original:
            self._take_over(found.here, strangers)
        else:
            self._exports.forget_archives(self._connection)
        write_home(self._connection, self._schema)
        return IncarnationReport(
            replaces_original=replaces_original,
            server=found.here.system_identifier,
            database=found.here.database,
            previous_server=home.identity.system_identifier if found.home else "",
            previous_database=home.identity.database if found.home else 0,
            entries=entries,
            consumers=tuple(reader for reader in cursors if isinstance(reader, str)),
            strangers=tuple(reader for reader in strangers if isinstance(reader, str)),
            archives=tuple(row.url for row in rows),
        )

    def _take_over(self, here: Identity, strangers: Collection[Reader]) -> None:
        for row in self._exports.list_rows(self._connection):
            taken = replace(row, origin=here, owner=None)
            if row.archive_id in strangers:
                # Its content is then compared with the log, record by record.
                taken = replace(taken, sequence=0, chain="", cursor=None)
            self._exports.rewrite_row(self._connection, taken)

    def _check(self) -> None:
        require_primary(self._connection, "making the log this database's own")
        Store(self._schema).require_current(self._connection)
        if not PruningStore(self._schema).is_owner(self._connection):
            raise ConfigurationError(
                "only the owner of the log's tables, or a member of that role, may say whose log "
                "this is",
                hint="run it as the role that runs the migrations, not as the application",
            )

    def _list_cursors(
        self, home: Home, rows: list[ArchiveRow]
    ) -> tuple[dict[Reader, Cursor], list[Reader]]:
        """Cursors in the copied history by reader, and the readers whose cursor is in another."""
        known: dict[Reader, Cursor] = {}
        known.update(self._store.list_cursors(self._connection))
        for row in rows:
            if row.cursor is not None:
                known[row.archive_id] = Cursor.from_json(row.cursor)
        server = home.identity.system_identifier
        own = {name: one for name, one in known.items() if one.system_identifier == server}
        # A consumer's cursor from before a promotion was refused on the original too; an
        # archive's was not.
        newest = max((one.timeline for one in own.values()), default=0)
        cursors = {
            reader: one
            for reader, one in own.items()
            if one.timeline == newest or isinstance(reader, UUID)
        }
        return cursors, [reader for reader in known if reader not in cursors]

    def _rebase(self, home: Home, origin: Origin, cursors: Mapping[Reader, Cursor]) -> int:
        """Make records and cursors valid on this server; return how many entries changed."""
        if home.identity.system_identifier == origin.system_identifier:
            return 0
        if self._has_original_files(home):
            moved = {
                name: replace(
                    cursor,
                    system_identifier=origin.system_identifier,
                    timeline=origin.timeline,
                )
                for name, cursor in cursors.items()
            }
            self._write_cursors(moved)
            return 0
        driver = Driver(self._connection)
        oids = find_oids(self._connection, RestorationStore(self._schema).list_tables())
        suspended = suspend_switches(driver, oids)
        renumbered = self._store.renumber(self._connection, cursors)
        resume_tables(driver, suspended)
        self._write_cursors(
            {
                name: rebase_cursor(
                    cursor,
                    system_identifier=origin.system_identifier,
                    timeline=origin.timeline,
                    snapshot=renumbered.snapshots[name],
                )
                for name, cursor in cursors.items()
            }
        )
        return renumbered.entries

    def _has_original_files(self, home: Home) -> bool:
        """Whether this server has the files that the log was written in, after an upgrade.

        `ConfigurationError` if that cannot be found out.
        """
        found = self._store.find_evidence(self._connection)
        if home.row == found.row and not found.copied:
            return True
        if found.early:
            raise ConfigurationError(
                "whether this server goes on with the transaction ids of the one that the log was "
                "written on cannot be told: some rows say that it does, others that it does not",
                hint="restore the archive into a new database with oplog restore; nothing was "
                "changed here",
            )
        return False

    def _write_cursors(self, cursors: Mapping[Reader, Cursor]) -> None:
        rows = {row.archive_id: row for row in self._exports.list_rows(self._connection)}
        for reader, cursor in cursors.items():
            if isinstance(reader, UUID):
                row = replace(rows[reader], cursor=cursor.to_json())
                self._exports.rewrite_row(self._connection, row)
            else:
                self._store.write_cursor(self._connection, reader, cursor)
