"""Entries removed from a database after the archive was seen to have them.

Neither the row that says what was published nor the archive is trusted. What goes is read from the
archive in the same run, byte by byte, and compared with the rows about to be deleted. Deleting
them and moving the mark that says how far the log is pruned is one transaction; a run that was
interrupted goes on from the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import Head
from oplog.archive.format.segment import extend_chain
from oplog.archive.history import check_pruned, check_superseded, is_on_history, read_chain_at
from oplog.archive.ownership import check_owner, identify, read_origin
from oplog.crypto.hashing import hash_metadata
from oplog.errors import ChainBrokenError, ConfigurationError, ConflictError, LogForkedError
from oplog.postgres.standby import require_primary
from oplog.reading.joined_log import check_row
from oplog.reading.reader import check_hashes, describe
from oplog.schema.guard import ADOPTION_PREFIX, RETIRED
from oplog.store import Store, StoredEntry
from oplog.store.adopted import ADOPTED_ROWS
from oplog.store.export import ExportStore
from oplog.store.removal import PruningStore, Watermark
from oplog.store.whole_transactions import TransactionGroups

BATCH_ENTRIES = 5000
"""Entries removed by one transaction, unless one of theirs has more."""


class PruneStep(StrEnum):
    """How far a batch has come; each is reached after what its name says."""

    COMPARED = "compared"
    """Archive and rows agree, and everybody has seen them."""
    DECLARED = "declared"
    """The mark is written."""
    REMOVED = "removed"
    """The rows are gone; COMMIT is to come."""
    COMMITTED = "committed"
    """The batch is done."""


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a run removed, or would remove.

    Of the `entries`, `kept` left a row without payload behind: an idempotency key was used by
    their transaction, or an adoption ended with it. All that is in the archive up to
    `through_sequence`, and up to `through_position` at most, is in the archive only; 0 for a log
    that was never pruned. `total_entries` are gone since the beginning.
    """

    entries: int
    kept: int
    through_sequence: int
    through_position: int
    total_entries: int

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


@dataclass(slots=True)
class _Batch:
    """Whole transactions that follow one another, and the chain before them."""

    after: int
    entries: list[StoredEntry] = field(default_factory=list)
    metadata: dict[int, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The last sequence in it."""
        return self.after + len(self.entries)

    @property
    def positions(self) -> list[int]:
        """Of its entries."""
        return [entry.position for entry in self.entries]

    def list_kept(self) -> list[int]:
        """Positions of transactions that something has to be known of for ever."""
        return sorted(
            {
                entry.transaction_position
                for entry in self.entries
                if entry.idempotency_key is not None
                or (
                    entry.aggregate.startswith(ADOPTION_PREFIX)
                    and any(
                        key in (ADOPTED_ROWS, RETIRED)
                        for key, _ in self.metadata.get(entry.transaction_position, ())
                    )
                )
            }
        )


def prune_log(
    engine: Engine,
    archive: Archive,
    *,
    keep: timedelta,
    schema: str,
    force: Collection[str] = (),
    dry_run: bool = False,
    batch_entries: int = BATCH_ENTRIES,
    reach: Callable[[PruneStep], None] = lambda _: None,
) -> PruneReport:
    """Remove entries older than `keep` that are in `archive`, whole transactions, oldest first.

    Runs on a connection without a transaction of its own, which a batch gets each. Ends before
    the first transaction that is younger, by the database's clock, or not archived. `dry_run`
    checks the same and removes nothing. `force` names consumers that need not have seen what
    goes. Raises `ConflictError` for one that has not, and while another process prunes;
    `ConfigurationError` for a role that does not own the log, on a standby, and for an archive
    that this database was not published to; `LogForkedError`; and what a damaged archive raises.
    """
    if keep < timedelta(0):
        raise ConfigurationError(f"{keep} cannot be kept", hint="give keep=timedelta(days=90)")
    with engine.connect() as connection:
        work = _Work(connection, archive, schema=schema, force=force, reach=reach)
        return work.run(keep, dry_run=dry_run, batch_entries=batch_entries)


class _Work:
    """One run, on one connection."""

    def __init__(
        self,
        connection: Connection,
        archive: Archive,
        *,
        schema: str,
        force: Collection[str],
        reach: Callable[[PruneStep], None],
    ) -> None:
        self._connection = connection
        self._archive = archive
        self._schema = schema
        self._force = force
        self._reach = reach
        self._store = PruningStore(schema)
        self._exports = ExportStore(schema)
        self._head = archive.read_head()

    def run(self, keep: timedelta, *, dry_run: bool, batch_entries: int) -> PruneReport:
        """All batches."""
        with self._connection.begin():
            self._check_database()
            through = self._check_archive(self._head)
            pruned = self._store.read_watermark(self._connection)
            cutoff = self._store.read_cutoff(self._connection, keep)
        start = pruned.sequence if pruned else 0
        if start < self._head.first_sequence - 1:
            raise ConfigurationError(
                f"{self._archive.url} has the log from sequence {self._head.first_sequence} only",
                hint="what it has given up is in this database alone: archive it anew, under "
                "another prefix, and prune with that",
            )
        report = PruneReport(
            entries=0,
            kept=0,
            through_sequence=start,
            through_position=pruned.position if pruned else 0,
            total_entries=pruned.entries if pruned else 0,
        )
        chain = read_chain_at(self._archive, self._head, start)
        source = ArchivedLog(self._archive, self._head, schema=self._schema, through=through)
        for batch in _iterate_batches(source, start, cutoff=cutoff, most=batch_entries):
            check_batch(batch)
            chain = extend_chain(chain, batch.entries, first=batch.after + 1)
            report = self._add(report, batch)
            self._remove(batch, report, chain=chain, dry_run=dry_run)
        return report

    # -- what must be so ------------------------------------------------------------------

    def _check_database(self) -> None:
        Store(self._schema).require_home(self._connection)
        require_primary(self._connection, "pruning")
        if not self._store.is_owner(self._connection):
            raise ConfigurationError(
                "only the owner of the log's tables, or a member of that role, may prune",
                hint="prune as the role that runs the migrations, not as the application",
            )

    def _check_archive(self, head: Head) -> int:
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

    def _check_newest(self, batch: _Batch, chain: bytes) -> Head:
        """The newest head there is now, which still has the batch."""
        head = self._archive.read_head()
        if head.number != self._head.number and not is_on_history(
            self._archive, head, sequence=batch.last, chain=chain
        ):
            raise LogForkedError(
                f"{self._archive.url} went on without sequence {batch.last} while it was pruned",
                hint="another server was promoted: see oplog fork inspect",
                sequence=batch.last,
            )
        return head

    def _compare(self, batch: _Batch) -> None:
        """Raise unless the rows about to go are what the archive has, and were seen by all."""
        found = self._store.find_hashes(self._connection, batch.positions)
        for sequence, entry in enumerate(batch.entries, batch.after + 1):
            if found.get(entry.position) != entry.entry_hash:
                state = "is not" if entry.position not in found else "is another one than"
                raise ChainBrokenError(
                    f"sequence {sequence} of the archive (position {entry.position}, "
                    f"{describe(entry)}) {state} in the database",
                    hint="rows of oplog_entry were altered or removed: run oplog sync, which "
                    "finds a fork, and oplog verify with the archive",
                )
        behind = self._store.list_behind(
            self._connection, batch.positions, archive_id=self._head.archive_id
        )
        held = [one for one in behind if one.name not in self._force]
        if held:
            names = ", ".join(repr(one.name) for one in held)
            raise ConflictError(
                f"not every consumer has seen what would go (sequences {batch.after + 1} to "
                f"{batch.last}): {names}",
                hint="let it catch up; or, if it is given up, delete its row in oplog_consumer "
                "(of an archive, in oplog_archive), or name it with --force",
            )

    # -- one batch ------------------------------------------------------------------------

    def _add(self, report: PruneReport, batch: _Batch) -> PruneReport:
        kept = set(batch.list_kept())
        return PruneReport(
            entries=report.entries + len(batch.entries),
            kept=report.kept + sum(entry.transaction_position in kept for entry in batch.entries),
            through_sequence=batch.last,
            through_position=max(report.through_position, *batch.positions),
            total_entries=report.total_entries + len(batch.entries),
        )

    def _remove(self, batch: _Batch, report: PruneReport, *, chain: bytes, dry_run: bool) -> None:
        head = self._check_newest(batch, chain)
        connection = self._connection
        with connection.begin():
            if not self._store.begin(connection):
                raise ConflictError("another process is pruning this log", hint="wait for its end")
            if self._check_archive(head) < batch.last:
                raise LogForkedError(
                    "the database was set back while it was pruned",
                    hint="run oplog sync, which says what it lacks",
                    sequence=batch.last,
                )
            pruned = self._store.read_watermark(connection)
            if not dry_run and batch.after != (pruned.sequence if pruned else 0):
                raise ConflictError("another process has pruned this log", hint="run it again")
            self._compare(batch)
            self._reach(PruneStep.COMPARED)
            if dry_run:
                return
            mark = Watermark(
                archive_id=head.archive_id,
                url=self._archive.url,
                generation=head.generation,
                sequence=batch.last,
                chain=chain,
                position=report.through_position,
                entries=report.total_entries,
            )
            self._store.write_watermark(connection, mark)
            self._reach(PruneStep.DECLARED)
            self._delete(batch)
            self._reach(PruneStep.REMOVED)
        self._reach(PruneStep.COMMITTED)

    def _delete(self, batch: _Batch) -> None:
        transactions = sorted({entry.transaction_position for entry in batch.entries})
        removed = self._store.remove(
            self._connection, batch.positions, transactions=transactions, kept=batch.list_kept()
        )
        if removed != len(batch.entries):
            raise ConflictError(
                f"{removed} of {len(batch.entries)} entries could be removed",
                hint="another process changed the log's tables at the same time: run it again",
            )


def _iterate_batches(
    source: ArchivedLog, after: int, *, cutoff: datetime, most: int
) -> Iterator[_Batch]:
    """Whole transactions recorded before `cutoff`, in order, up to the first that was not."""
    batch = _Batch(after)
    for entries, metadata in _iterate_transactions(source, after):
        if max(entry.recorded_at for entry in entries) >= cutoff:
            break
        if batch.entries and len(batch.entries) + len(entries) > most:
            yield batch
            batch = _Batch(batch.last)
        batch.entries += entries
        batch.metadata[entries[0].transaction_position] = metadata
    if batch.entries:
        yield batch


def _iterate_transactions(
    source: ArchivedLog, after: int
) -> Iterator[tuple[list[StoredEntry], Sequence[tuple[str, str]]]]:
    groups = TransactionGroups[StoredEntry]()
    pairs: Sequence[tuple[str, str]] = ()
    for page in source.iterate_sequence(after=after):
        for entry in page.entries:
            if not groups:
                pairs = page.metadata.get(entry.transaction_position, ())
            whole = groups.add(entry, entry)
            if whole is not None:
                yield whole, pairs


def check_batch(batch: _Batch) -> None:
    """Raise `ChainBrokenError` unless archived entries and metadata are what was written.

    An archive keeps an entry that was altered before it was published as it was found.
    """
    metadata: Mapping[int, Sequence[tuple[str, str]]] = batch.metadata
    hashes = {position: hash_metadata(list(pairs)) for position, pairs in metadata.items()}
    for entry in batch.entries:
        check_hashes(entry)
        if hashes[entry.transaction_position] != entry.metadata_hash:
            raise ChainBrokenError(
                f"the metadata of position {entry.position} ({describe(entry)}) is not what was "
                "written",
                hint="it was altered before it was archived: compare with a backup",
            )
