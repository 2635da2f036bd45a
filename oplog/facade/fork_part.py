"""The part of `Oplog` that finds records which a failover lost, and writes them again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import Branch
from oplog.errors import ConfigurationError, ReplayError
from oplog.facade.entries_part import EntryReading
from oplog.facade.given_target import take_engine
from oplog.facade.log_parts import LogParts
from oplog.facade.publishing_part import Publishing
from oplog.facade.reading_part import Reading
from oplog.facade.writing_part import Writing
from oplog.postgres.quoting import (
    qualify,
)
from oplog.postgres.suspension import find_oids
from oplog.receipt import Receipt
from oplog.recovery.lost import (
    REPLAYED,
    LostTransaction,
    RefusedTransaction,
    ReplayLostReport,
    Succession,
    apply_lost,
    check_extent,
    find_branch,
    find_conflicts,
    iterate_lost,
    open_branch,
)
from oplog.store import StoredRecord
from oplog.store.export import ExportStore
from oplog.store.guard_state import count_images
from oplog.store.intake import RestorationStore
from oplog.sync.divergence import LostEntry
from oplog.upkeep.branch_retirement import RetirementReport, retire_branches


@dataclass(frozen=True, slots=True)
class ForkReport:
    """How a database and its archive differ.

    `lost` describes published records that the database does not have (the first ones; they are
    `lost_count` in all), which follow `common_sequence`. `branches` are those that the archive
    keeps from forks before.
    """

    forked: bool
    generation: int
    sequence: int
    common_sequence: int
    lost_count: int
    lost: list[LostEntry]
    branches: list[Branch]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "forked": self.forked,
            "generation": self.generation,
            "sequence": self.sequence,
            "common_sequence": self.common_sequence,
            "lost_count": self.lost_count,
            "lost": [one.to_json() for one in self.lost],
            "branches": [
                {
                    "generation": branch.generation,
                    "common_sequence": branch.sequence,
                    "last_sequence": branch.last,
                    "head": branch.head,
                }
                for branch in self.branches
            ],
        }


class Forks:
    """What an operator does when the database forgot what was published."""

    def __init__(
        self,
        log: LogParts,
        *,
        reading: Reading,
        entries: EntryReading,
        writing: Writing,
        publishing: Publishing,
    ) -> None:
        self._log = log
        self._reading = reading
        self._entries = entries
        self._writing = writing
        self._publishing = publishing

    def inspect_fork(self, engine: Engine, archive: Archive) -> ForkReport:
        """Compare the database with the newest head; writes nothing."""
        with take_engine(engine).connect() as connection, connection.begin():
            context = self._publishing.make_exporter(archive).find_context(connection, seize=True)
        head, divergence = context.head, context.divergence
        return ForkReport(
            forked=divergence.lost > 0,
            generation=head.generation,
            sequence=head.sequence,
            common_sequence=divergence.sequence,
            lost_count=divergence.lost,
            lost=list(divergence.first_lost),
            branches=list(head.branches),
        )

    def open_branch(self, archive: Archive, *, generation: int | None = None) -> ArchivedLog:
        """The records that a generation lost (the newest, unless it is given), as a log."""
        head = archive.read_head()
        return open_branch(archive, head, find_branch(head, generation), schema=self._log.schema)

    def replay_lost(
        self,
        engine: Engine,
        archive: Archive,
        *,
        generation: int | None = None,
        dry_run: bool = False,
        overwrite: Collection[int] = (),
    ) -> ReplayLostReport:
        """Do again, as new transactions, what a failover forgot.

        A fork that is not published yet is published first, as by `sync(fork="fork")`. Each lost
        transaction is one of its own, logged with the metadata it had and `oplog.replayed`, and
        done at most once, however often this is called. One whose aggregates are not as it found
        them, since something was written there after the failover or since what it goes on from
        was not done again, is left alone and reported, with what was written there since, when
        and by whom. Those whose sequences are in `overwrite` are done all the same: the columns
        that they wrote get their values again. Needs the keys.
        """
        take_engine(engine)
        if not dry_run and self.inspect_fork(engine, archive).forked:
            self._publishing.sync(engine, archive, fork="fork")
        source = self.open_branch(archive, generation=generation)
        lost = self._list_lost(engine, source)
        _check_named(lost, overwrite)
        if dry_run:
            return self._foresee(engine, source.generation, lost, overwrite=overwrite)
        sessions = sessionmaker(engine)
        self._log.attachments.attach(sessions)
        refused: list[RefusedTransaction] = []
        succession = Succession()
        try:
            for transaction in lost:
                try:
                    receipts = self._redo(
                        sessions,
                        transaction,
                        succession,
                        overwrite=transaction.sequence in overwrite,
                    )
                except ReplayError as error:
                    refused.append(self._describe(engine, transaction, error))
                    succession.add_refused(transaction)
                else:
                    succession.add_done(transaction, receipts)
        finally:
            self._log.attachments.detach(sessions)
        return ReplayLostReport(source.generation, len(lost) - len(refused), refused)

    def retire_branches(
        self, engine: Engine, archive: Archive, *, through: int, dry_run: bool = False
    ) -> RetirementReport:
        """Let go of the lost branches of generations up to `through`, which then cannot be read.

        A head names at most 100. `collect` deletes later what only they had. With `dry_run`,
        nothing is written. Raises `ConfigurationError` if there are none.
        """
        return retire_branches(
            self._publishing.make_exporter(archive),
            take_engine(engine),
            through=through,
            dry_run=dry_run,
        )

    def _foresee(
        self,
        engine: Engine,
        generation: int,
        lost: Sequence[LostTransaction],
        *,
        overwrite: Collection[int],
    ) -> ReplayLostReport:
        """What doing them again would come to, as far as versions tell."""
        refused: list[RefusedTransaction] = []
        succession = Succession()
        with engine.connect() as connection:
            names = {name for transaction in lost for name in transaction.aggregates}
            heads = RestorationStore(self._log.schema).read_heads(connection, sorted(names))
            for transaction in lost:
                found = self._log.outcomes.find_request(connection, transaction.key)
                if found is not None:
                    succession.add_done(transaction, found.receipts)
                    continue
                try:
                    succession.check(
                        transaction, heads, overwrite=transaction.sequence in overwrite
                    )
                except ReplayError as error:
                    refused.append(self._describe(engine, transaction, error))
                    succession.add_refused(transaction)
                else:
                    heads |= {
                        link.aggregate: (link.version, link.record_hash)
                        for link in transaction.links
                    }
        return ReplayLostReport(generation, len(lost) - len(refused), refused)

    def _list_lost(self, engine: Engine, source: ArchivedLog) -> list[LostTransaction]:
        store = ExportStore(self._log.schema)
        with engine.connect() as connection:
            reader = self._reading.open_reader(connection, source=source)

            def is_lost(stored: StoredRecord) -> bool:
                found = store.find_hashes(connection, [stored.position])
                return found.get(stored.position) != stored.record_hash

            return list(iterate_lost(source, reader, is_lost=is_lost))

    def _redo(
        self,
        sessions: sessionmaker[Session],
        transaction: LostTransaction,
        succession: Succession,
        *,
        overwrite: bool,
    ) -> list[Receipt]:
        """Do it again, or find that it was; the receipts of its entries."""
        metadata: dict[str, Any] = dict(transaction.metadata)
        metadata[REPLAYED] = [f"{transaction.generation}/{transaction.sequence}"]

        def work(session: Session) -> None:
            self._writing.annotate(session, **metadata)
            # A transaction that writes one of them after this makes the commit a conflict, and
            # the next attempt finds it written since.
            for aggregate in transaction.aggregates:
                self._writing.take_ticket(session, aggregate)
            connection = session.connection()
            heads = RestorationStore(self._log.schema).read_heads(
                connection, transaction.aggregates
            )
            succession.check(transaction, heads, overwrite=overwrite)
            apply_lost(session, transaction, self._log.catalog)
            check_extent(
                transaction,
                count_images(connection, self._log.schema),
                oids=self._find_oids(connection, transaction),
            )

        receipts = self._writing.run(
            sessions,
            work,
            idempotency_key=transaction.key,
            idempotency_request=[transaction.generation, transaction.sequence],
        )
        return receipts or []

    def _find_oids(self, connection: Connection, transaction: LostTransaction) -> dict[str, int]:
        names = {operation.type_name for operation in transaction.operations}
        tables = {name: self._log.catalog.types[name].table for name in names}
        return {
            name: find_oids(connection, qualify([table.name], table.schema))[0]
            for name, table in tables.items()
        }

    def _describe(
        self, engine: Engine, transaction: LostTransaction, error: ReplayError
    ) -> RefusedTransaction:
        reason = str(error).split("\n", 1)[0]
        with engine.connect() as connection:
            conflicts = find_conflicts(
                transaction, lambda name: self._entries.read(connection, aggregate=name)
            )
        return RefusedTransaction(transaction.sequence, reason, conflicts)


def _check_named(lost: Sequence[LostTransaction], overwrite: Collection[int]) -> None:
    unknown = sorted(set(overwrite) - {transaction.sequence for transaction in lost})
    if unknown:
        raise ConfigurationError(
            f"sequence {unknown[0]} is not among the {len(lost)} that were lost",
            hint="name sequences that were refused, as the report has them",
        )
