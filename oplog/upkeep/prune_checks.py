"""What must be so before anything is pruned: of the database, the archive, and each consumer."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.history import check_pruned, check_superseded, is_on_history
from oplog.archive.ownership import check_owner, identify, read_origin
from oplog.errors import ChainBrokenError, ConfigurationError, ConflictError, LogForkedError
from oplog.postgres.standby import require_primary
from oplog.reading.joined_log import check_row
from oplog.reading.reader import describe
from oplog.store import Store
from oplog.store.export import ExportStore
from oplog.store.removal import PruningStore
from oplog.upkeep.prune_batch import Batch


class PruneChecks:
    """The checks of one run, on one connection. `head` is the archive's newest when it began."""

    def __init__(
        self, connection: Connection, archive: Archive, *, schema: str, force: Collection[str]
    ) -> None:
        self.head = archive.read_head()
        self._connection = connection
        self._archive = archive
        self._schema = schema
        self._force = force
        self._store = PruningStore(schema)
        self._exports = ExportStore(schema)

    def check_database(self) -> None:
        """Raise `ConfigurationError` on a standby, and for a role that does not own the log."""
        Store(self._schema).require_home(self._connection)
        require_primary(self._connection, "pruning")
        if not self._store.is_owner(self._connection):
            raise ConfigurationError(
                "only the owner of the log's tables, or a member of that role, may prune",
                hint="prune as the role that runs the migrations, not as the application",
            )

    def check_archive(self, head: Head) -> int:
        """The last sequence that this database has published; raises unless it is all there."""
        connection = self._connection
        row = self._exports.read_row(connection, head.archive_id)
        log_id = Store(self._schema).read_log_id(connection)
        if row is None or head.log_id != log_id:
            raise ConfigurationError(
                f"this database was not published to {self._archive.url}",
                hint="give the archive that oplog sync writes for this database",
            )
        origin = read_origin(connection, self._schema)
        check_owner(self._archive, head, row, here=identify(origin))
        check_superseded(head, origin)
        check_row(self._archive, head, row)
        check_pruned(self._archive, head, self._store.read_watermark(connection))
        return row.sequence

    def check_newest(self, last: int, *, chain: bytes) -> Head:
        """The newest head there is now, which still has sequence `last` after this chain."""
        head = self._archive.read_head()
        if head.number != self.head.number and not is_on_history(
            self._archive, head, sequence=last, chain=chain
        ):
            raise LogForkedError(
                f"{self._archive.url} went on without sequence {last} while it was pruned",
                hint="another server was promoted: see oplog fork inspect",
                sequence=last,
            )
        return head

    def enter(self, head: Head, *, after: int | None, last: int) -> None:
        """Prepare the transaction just begun: nobody else prunes until it ends.

        Raises `ConflictError` unless the log is pruned up to sequence `after`, None for any, and
        `LogForkedError` unless it has published sequence `last`.
        """
        if not self._store.begin(self._connection):
            raise ConflictError("another process is pruning this log", hint="wait for its end")
        if self.check_archive(head) < last:
            raise LogForkedError(
                "the database was set back while it was pruned",
                hint="run oplog sync, which says what it lacks",
                sequence=last,
            )
        pruned = self._store.read_watermark(self._connection)
        if after is not None and after != (pruned.sequence if pruned else 0):
            raise ConflictError("another process has pruned this log", hint="run it again")

    def compare(self, batch: Batch) -> None:
        """Raise unless the rows of a batch are what the archive has, and were seen by all."""
        positions = batch.positions
        found = self._exports.find_hashes(self._connection, positions)
        for sequence, record in enumerate(batch.records, batch.after + 1):
            if found.get(record.position) != record.record_hash:
                state = "is not" if record.position not in found else "is another one than"
                raise ChainBrokenError(
                    f"sequence {sequence} of the archive (position {record.position}, "
                    f"{describe(record)}) {state} in the database",
                    hint="rows of oplog_record were altered or removed: run oplog sync, which "
                    "finds a fork, and oplog verify with the archive",
                )
        archive_id = self.head.archive_id
        self.require_seen(
            self._store.list_behind(self._connection, positions, archive_id=archive_id),
            after=batch.after,
            last=batch.last,
        )

    def require_seen(self, behind: Iterable[str], *, after: int, last: int) -> None:
        """Raise `ConflictError` if anybody is `behind` who was not given up."""
        held = sorted(set(behind).difference(self._force))
        if held:
            raise ConflictError(
                f"not every consumer has seen what would go (sequences {after + 1} to {last}): "
                f"{', '.join(map(repr, held))}",
                hint="let it catch up; or, if it is given up, delete its row in oplog_consumer "
                "(of an archive, in oplog_archive), or name it with --force",
            )
