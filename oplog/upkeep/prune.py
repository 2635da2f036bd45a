"""Records removed from a database after the archive was seen to have them.

Neither the row that says what was published nor the archive is trusted. What goes is read from the
archive in the same run, byte by byte, and compared with the rows about to be deleted. Deleting
them and moving the mark that says how far the log is pruned is one transaction; a run that was
interrupted goes on from the mark.

A partition of which every record goes is dropped, which spares the database the deletion of its
rows. Otherwise records go in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import Head
from oplog.archive.format.segment import extend_chain
from oplog.archive.history import read_chain_at
from oplog.backoff import Backoff
from oplog.errors import ConfigurationError
from oplog.postgres.sqlstate import may_run_again
from oplog.store.partition_store import Partition, PartitionStore
from oplog.store.removal import PruningStore, Watermark
from oplog.store.rows import write_microseconds
from oplog.upkeep.partition_drop import PartitionDrop, require_all
from oplog.upkeep.prune_batch import Batch, iterate_batches
from oplog.upkeep.prune_checks import PruneChecks
from oplog.upkeep.prune_plan import Stretch, StretchTally, plan_stretches

BATCH_ENTRIES = 5000
"""Entries removed by one transaction, unless one record has more, or a partition is dropped."""
DROP_PAUSES = Backoff(first_seconds=0.2, longest_seconds=1.0, jitter=0.5, deadline_seconds=8.0)
"""Between attempts to lock the log's tables for dropping a partition."""


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

    Of `kept` of the `entries` it is still known what is asked of their record: it used an
    idempotency key, or ended an adoption. All that is in the archive up to `through_sequence`,
    and up to `through_position` at most, is in the archive only; 0 for a log that was never
    pruned. `total_entries` are gone since the beginning. `dropped` are the tables that went as a
    whole.
    """

    entries: int
    kept: int
    through_sequence: int
    through_position: int
    total_entries: int
    dropped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def prune_log(
    engine: Engine,
    archive: Archive,
    *,
    keep: timedelta,
    schema: str,
    force: Collection[str] = (),
    dry_run: bool = False,
    batch_entries: int = BATCH_ENTRIES,
    pauses: Backoff = DROP_PAUSES,
    reach: Callable[[PruneStep], None] = lambda _: None,
) -> PruneReport:
    """Remove records older than `keep` that are in `archive`, oldest first.

    Runs on a connection without a transaction of its own, which a batch gets each. Ends before
    the first record that is younger, by the database's clock, or not archived. `dry_run` checks
    the same and removes nothing. `force` names consumers that need not have seen what goes. A
    partition that cannot be locked between `pauses` is emptied in batches. Raises
    `ConflictError` for a consumer that has not seen what goes, and while another process prunes;
    `ConfigurationError` for a role that does not own the log, on a standby, and for an archive
    that this database was not published to; `LogForkedError`; and what a damaged archive raises.
    """
    if keep < timedelta(0):
        raise ConfigurationError(f"{keep} cannot be kept", hint="give keep=timedelta(days=90)")
    with engine.connect() as connection:
        work = _Work(
            connection,
            archive,
            schema=schema,
            checks=PruneChecks(connection, archive, schema=schema, force=force),
            drop=PartitionDrop(connection, schema=schema, pauses=pauses),
            reach=reach,
        )
        return work.run(keep, dry_run=dry_run, batch_entries=batch_entries)


class _Work:
    """One run, on one connection."""

    def __init__(
        self,
        connection: Connection,
        archive: Archive,
        *,
        schema: str,
        checks: PruneChecks,
        drop: PartitionDrop,
        reach: Callable[[PruneStep], None],
    ) -> None:
        self._connection = connection
        self._archive = archive
        self._schema = schema
        self._checks = checks
        self._drop = drop
        self._reach = reach
        self._store = PruningStore(schema)
        self._report = PruneReport(0, 0, 0, 0, total_entries=0)
        self._chain = b""
        """The archive's, after what has gone."""

    def run(self, keep: timedelta, *, dry_run: bool, batch_entries: int) -> PruneReport:
        """All batches."""
        archive, head = self._archive, self._checks.head
        through, cutoff = self._begin(keep)
        source = ArchivedLog(archive, head, schema=self._schema, through=through)

        def iterate(last: int) -> Iterator[Batch]:
            after = self._report.through_sequence
            batches = iterate_batches(
                source, after, through=last, cutoff=cutoff, most=batch_entries
            )
            for batch in batches:
                batch.check()
                yield batch

        for stretch in () if dry_run else self._plan(through, cutoff):
            if not self._drop_stretch(stretch, iterate(stretch.through)):
                for batch in iterate(stretch.through):
                    self._remove(batch, dry_run=False)
        for batch in iterate(through):
            self._remove(batch, dry_run=dry_run)
        if not dry_run:
            self._add_dropped(self._drop.drop_empty(self._report.through_position))
        return self._report

    def _begin(self, keep: timedelta) -> tuple[int, datetime]:
        """The last sequence that may go, and the moment before which records may."""
        connection, archive, head = self._connection, self._archive, self._checks.head
        with connection.begin():
            self._checks.check_database()
            through = self._checks.check_archive(head)
            pruned = self._store.read_watermark(connection)
            cutoff = self._store.read_cutoff(connection, keep)
        if pruned is not None:
            self._report = replace(
                self._report,
                through_sequence=pruned.sequence,
                through_position=pruned.position,
                total_entries=pruned.entries,
            )
        start = self._report.through_sequence
        if start < head.first_sequence - 1:
            raise ConfigurationError(
                f"{archive.url} has the log from sequence {head.first_sequence} only",
                hint="what it has given up is in this database alone: archive it anew, under "
                "another prefix, and prune with that",
            )
        self._chain = read_chain_at(archive, head, start)
        return through, cutoff

    def _plan(self, through: int, cutoff: datetime) -> list[Stretch]:
        with self._connection.begin():
            partitions = PartitionStore(self._schema).list_partitions(self._connection)
        head, report = self._checks.head, self._report
        return plan_stretches(
            self._archive.iterate_items(head.levels, after=report.through_sequence),
            partitions,
            through=through,
            cutoff=write_microseconds(cutoff),
            position=report.through_position,
        )

    # -- one batch ------------------------------------------------------------------------

    def _remove(self, batch: Batch, *, dry_run: bool) -> None:
        report, chain = self._add(batch, self._report, self._chain)
        head = self._checks.check_newest(batch.last, chain=chain)
        with self._connection.begin():
            self._checks.enter(head, after=None if dry_run else batch.after, last=batch.last)
            self._checks.compare(batch)
            self._reach(PruneStep.COMPARED)
            if not dry_run:
                self._declare(head, report, chain)
                kept = [record.position for record in batch.list_kept()]
                removed = self._store.remove(self._connection, batch.positions, kept=kept)
                require_all(removed, len(batch.records))
                self._reach(PruneStep.REMOVED)
        if not dry_run:
            self._reach(PruneStep.COMMITTED)
        self._report, self._chain = report, chain

    @staticmethod
    def _add(batch: Batch, report: PruneReport, chain: bytes) -> tuple[PruneReport, bytes]:
        added = replace(
            report,
            entries=report.entries + batch.entries,
            kept=report.kept + sum(len(record.aggregates) for record in batch.list_kept()),
            through_sequence=batch.last,
            through_position=max(report.through_position, *batch.positions),
            total_entries=report.total_entries + batch.entries,
        )
        return added, extend_chain(chain, batch.records, first=batch.after + 1)

    def _declare(self, head: Head, report: PruneReport, chain: bytes) -> None:
        mark = Watermark(
            archive_id=head.archive_id,
            url=self._archive.url,
            generation=head.generation,
            sequence=report.through_sequence,
            chain=chain,
            position=report.through_position,
            entries=report.total_entries,
        )
        self._store.write_watermark(self._connection, mark)
        self._reach(PruneStep.DECLARED)

    # -- whole partitions -----------------------------------------------------------------

    def _drop_stretch(self, stretch: Stretch, batches: Iterator[Batch]) -> bool:
        """Remove a stretch, its partitions as a whole; False if that cannot be done now."""
        after = self._report.through_sequence
        report, chain = self._report, self._chain
        tally = StretchTally(stretch)
        for batch in batches:
            with self._connection.begin():
                self._checks.enter(self._checks.head, after=after, last=batch.last)
                self._checks.compare(batch)
            report, chain = self._add(batch, report, chain)
            tally.add(batch)
        if report.through_sequence != stretch.through:
            return False
        head = self._checks.check_newest(stretch.through, chain=chain)
        try:
            with self._connection.begin() as transaction:
                self._checks.enter(head, after=after, last=stretch.through)
                if not self._drop.claim(tally):
                    return False
                behind = self._drop.list_behind(tally, archive_id=head.archive_id)
                self._checks.require_seen(behind, after=after, last=stretch.through)
                self._reach(PruneStep.COMPARED)
                self._declare(head, report, chain)
                if not self._drop.remove(tally):
                    transaction.rollback()
                    return False
                self._reach(PruneStep.REMOVED)
        except DBAPIError as error:
            # Somebody works with what would go: batch by batch he is waited for.
            if may_run_again(error):
                return False
            raise
        self._reach(PruneStep.COMMITTED)
        self._report, self._chain = report, chain
        self._add_dropped(stretch.partitions)
        return True

    def _add_dropped(self, partitions: Iterable[Partition]) -> None:
        names = [name for partition in partitions for name in partition.tables]
        self._report = replace(self._report, dropped=(*self._report.dropped, *names))
