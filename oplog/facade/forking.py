"""The part of `Oplog` for the day after a failover: what was lost, and what to do about it.

Every method is one call, or a loop of calls, into the module that does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog.archive.archive import Archive
from oplog.archive.head import Branch
from oplog.archive.source import ArchivedLog
from oplog.archive.standing import LostEntry
from oplog.errors import ReplayError
from oplog.facade.archiving import ArchivingOplog
from oplog.facade.writing import WritingOplog
from oplog.recovery.lost import (
    REPLAYED,
    LostTransaction,
    RefusedTransaction,
    ReplayLostReport,
    apply_lost,
    find_branch,
    iterate_lost,
    open_branch,
)
from oplog.store import StoredEntry
from oplog.store.export import ExportStore


@dataclass(frozen=True, slots=True)
class ForkReport:
    """How a database and its archive differ.

    `lost` describes published entries that the database does not have (the first ones; they are
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


class ForkingOplog(WritingOplog, ArchivingOplog):
    """What an operator does when the database forgot what was published."""

    def inspect_fork(self, engine: Engine, archive: Archive) -> ForkReport:
        """Compare the database with the newest head; writes nothing."""
        with engine.connect() as connection, connection.begin():
            footing = self.make_exporter(archive).find_footing(connection, seize=True)
        head, standing = footing.head, footing.standing
        return ForkReport(
            forked=standing.lost > 0,
            generation=head.generation,
            sequence=head.sequence,
            common_sequence=standing.sequence,
            lost_count=standing.lost,
            lost=list(standing.first_lost),
            branches=list(head.branches),
        )

    def open_branch(self, archive: Archive, *, generation: int | None = None) -> ArchivedLog:
        """The entries that a generation lost (the newest, unless it is given), as a log."""
        head = archive.read_head()
        return open_branch(archive, head, find_branch(head, generation), schema=self.schema)

    def replay_lost(
        self,
        engine: Engine,
        archive: Archive,
        *,
        generation: int | None = None,
        dry_run: bool = False,
    ) -> ReplayLostReport:
        """Do again, as new transactions, what a failover forgot.

        A fork that is not published yet is published first, as by `sync(fork="fork")`. Each lost
        transaction is one of its own, logged with the metadata it had and `oplog.replayed`, and
        done at most once, however often this is called. One that does not fit what is there now
        is left alone and reported. Needs the keys.
        """
        if not dry_run and self.inspect_fork(engine, archive).forked:
            self.sync(engine, archive, fork="fork")
        source = self.open_branch(archive, generation=generation)
        lost = self._list_lost(engine, source)
        if dry_run:
            return ReplayLostReport(source.generation, len(lost))
        sessions = sessionmaker(engine)
        self.attach(sessions)
        refused: list[RefusedTransaction] = []
        try:
            for transaction in lost:
                try:
                    self._redo(sessions, transaction)
                except ReplayError as error:
                    reason = str(error).split("\n", 1)[0]
                    refused.append(RefusedTransaction(transaction.sequence, reason))
        finally:
            self.detach(sessions)
        return ReplayLostReport(source.generation, len(lost) - len(refused), refused)

    def _list_lost(self, engine: Engine, source: ArchivedLog) -> list[LostTransaction]:
        store = ExportStore(self.schema)
        with engine.connect() as connection:
            reader = self.open_reader(connection, source=source)

            def is_lost(entry: StoredEntry) -> bool:
                found = store.find_hashes(connection, [entry.position])
                return found.get(entry.position) != entry.entry_hash

            return list(iterate_lost(source, reader, is_lost=is_lost))

    def _redo(self, sessions: sessionmaker[Session], transaction: LostTransaction) -> None:
        metadata: dict[str, Any] = dict(transaction.metadata)
        metadata[REPLAYED] = [f"{transaction.generation}/{transaction.sequence}"]

        def work(session: Session) -> None:
            self.annotate(session, **metadata)
            apply_lost(session, transaction, self.catalog)

        self.run(
            sessions,
            work,
            idempotency_key=transaction.key,
            idempotency_request=[transaction.generation, transaction.sequence],
        )
