"""Logs rows again after DDL that rewrote them: some columns of each, or all rows as adopted ones.

Other sessions go on writing between chunks, in the new revision. The position of a chunk's record
is drawn while the table is locked: every earlier change of its rows has a lower position, every
later one a higher, and what is inserted meanwhile is logged whole. So a row that is read twice, or
by two sessions at once, does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlalchemy.engine import Connection

from oplog.adoption.chunk_record import (
    CHUNK_ROWS,
    AdoptionTarget,
    ChunkWriter,
    advance,
    check_chunk_rows,
    check_table,
    describe_adoption,
    estimate_rows,
    fit_rows,
)
from oplog.adoption.locking import LockWait, check_isolation, lock_tables, open_inside, open_own
from oplog.adoption.report import RefillReport
from oplog.adoption.table_rows import Chunk, read_chunk, read_key_order
from oplog.errors import SchemaDriftError
from oplog.payload.block import order_columns
from oplog.payload.schema_change import SchemaChange
from oplog.postgres.work import Driver
from oplog.store.adopted import (
    ADOPTION,
    REFILL,
    REFILLED,
    REFILLED_REVISION,
    AdoptionStore,
    Reached,
    Turns,
)
from oplog.type_binding import BoundType

RefillProgress: TypeAlias = Callable[[int, int], None]
"""Called after each chunk with the number of logged rows and the estimated total."""


def log_rewritten(
    connection: Connection,
    bound: BoundType,
    *,
    change: SchemaChange,
    target: AdoptionTarget,
    own: bool,
    keep_progress: bool = True,
    lock_wait: LockWait = LockWait(),  # noqa: B008 - frozen
    chunk_rows: int = CHUNK_ROWS,
    progress: RefillProgress | None = None,
) -> RefillReport:
    """Log the rows of a table again, as far as `change` says that DDL rewrote them.

    `bound` has the revision of after the change, which the log knows, as it knows the current key
    of the keyring. With `own`, `connection` is in no transaction, and each chunk has one: what was
    interrupted continues where it stopped, what was finished is not done again. Otherwise all is
    done in the caller's transaction, which must be READ COMMITTED. Progress is written by the
    owner of the log alone: without `keep_progress` all is done in one transaction.

    Raises a retryable `ConflictError` when the table's lock is not granted, `SchemaDriftError`
    where the table has another shape by now, `EntryTooLargeError`, `KeyRetiredError`, and
    `ConfigurationError` for another driver or isolation level.
    """
    check_chunk_rows(chunk_rows)
    Driver(connection, doing="logging rows again")
    report = _plan_refill(bound, change)
    if not report.columns and not report.whole:
        return report
    if not own:
        check_isolation(connection, doing="logging rows again")
    key_id = "" if target.keyring is None else target.keyring.current_key_id
    with connection.begin() if own else nullcontext():
        log_id = target.store.read_log_id(connection)
        expected = estimate_rows(connection, bound.live) or 0
    refill = _Refill(
        connection,
        bound,
        AdoptionStore(target.store.schema),
        writer=ChunkWriter(connection, target, log_id, key_id, remedy="run it again"),
        report=report,
        lock_wait=lock_wait,
        keep_progress=keep_progress,
        most_rows=chunk_rows,
        telling=_Telling(progress, expected),
    )
    return refill.run_apart() if own and keep_progress else refill.run_at_once(own=own)


def _plan_refill(bound: BoundType, change: SchemaChange) -> RefillReport:
    """What is to be logged again: columns beside the key, or whole rows."""
    others = [c for c in order_columns(bound.shape) if not c.primary_key]
    return RefillReport(
        bound.shape.type_name,
        f"{bound.live.schema}.{bound.live.name}",
        bound.shape.revision,
        columns=tuple(c.name for c in others if change.readopted or c.number in change.rewritten),
        whole=change.readopted,
    )


@dataclass(frozen=True, slots=True)
class _Telling:
    """Tells the caller how far it is."""

    progress: RefillProgress | None
    expected: int

    def tell(self, rows: int) -> None:
        if self.progress is not None:
            self.progress(rows, max(rows, self.expected))


@dataclass(slots=True)
class _Refill:
    """Logging the rows of one table again, on one connection."""

    connection: Connection
    bound: BoundType
    store: AdoptionStore
    writer: ChunkWriter
    report: RefillReport
    lock_wait: LockWait
    keep_progress: bool
    most_rows: int
    telling: _Telling
    reached: Reached = Reached()  # noqa: RUF009 - frozen

    def run_apart(self) -> RefillReport:
        """Each chunk in a transaction of its own; between them others write."""
        limit = self.most_rows
        while not self.reached.done:
            with open_own(self.connection):
                self._begin()
                chunk = None
                if not self.reached.done:
                    self._lock()
                    chunk = self._log_next(limit)
                self._save()
            limit = self._note(chunk, limit)
        return self.report

    def run_at_once(self, *, own: bool) -> RefillReport:
        """All chunks in one transaction: the caller's, or one of its own."""
        limit = self.most_rows
        with open_own(self.connection) if own else open_inside(self.connection):
            self._begin()
            if not self.reached.done:
                self._lock()
            while not self.reached.done:
                limit = self._note(self._log_next(limit), limit)
            self._save()
        return self.report

    def _begin(self) -> None:
        """Find out where to continue; another session that logs the same rows is waited for."""
        revision = self.report.revision
        if self.keep_progress:
            saved = self.store.lock_progress(
                self.connection, self.report.type_name, work=self._name_work()
            )
            self.reached = saved or Reached()
        if self.reached.revision != revision:
            # Of an earlier revision, or of none.
            self.reached = Reached(revision=revision)
        if self.report.whole and not self.reached.done and self._is_adopted():
            self.reached = replace(self.reached, done=True)
        self.report = replace(
            self.report, earlier_rows=max(0, self.reached.rows - self.report.rows)
        )

    def _lock(self) -> None:
        # Two sessions that both log these rows, and then write some, must not hold it together.
        lock_tables(self.connection, [self.bound.live], wait=self.lock_wait, alone=True)
        check_table(self.connection, self.bound)
        newest = self.store.find_newest_revision(self.connection, self.report.type_name)
        if newest != self.report.revision:
            raise SchemaDriftError(
                f"rows of type {self.report.type_name!r} cannot be logged again in revision "
                f"{self.report.revision}: the newest is {newest}",
                hint="run it again: it begins with the newest revision",
            )

    def _log_next(self, limit: int) -> Chunk:
        """Append the next chunk; nothing where no rows are left."""
        patched = None if self.report.whole else self.report.columns
        chunk = read_chunk(
            self.connection,
            self.bound,
            order=read_key_order(self.connection, self.bound),
            after=self.reached.after,
            limit=limit,
            columns=patched,
        )
        if not chunk.count and patched is not None:
            self.reached = replace(self.reached, done=True)
            return chunk
        self.reached = advance(self.reached, chunk)
        if patched is None:
            metadata = describe_adoption(self.report.type_name, self.reached)
        else:
            metadata = [
                (REFILLED, self.report.type_name),
                (REFILLED_REVISION, str(self.report.revision)),
            ]
        self.writer.append(self.bound, chunk, metadata, columns=patched)
        self.report = replace(
            self.report, rows=self.report.rows + chunk.count, entries=self.report.entries + 1
        )
        return chunk

    def _save(self) -> None:
        if self.keep_progress:
            self.store.write_progress(
                self.connection,
                self.report.type_name,
                reached=self.reached,
                work=self._name_work(),
            )

    def _note(self, chunk: Chunk | None, limit: int) -> int:
        """Say how far it is; how many rows the next chunk may have."""
        self.telling.tell(self.reached.rows)
        return limit if chunk is None else fit_rows(chunk, most=self.most_rows)

    def _name_work(self) -> str:
        """An adoption continues, and ends, under its own name."""
        return ADOPTION if self.report.whole else REFILL

    def _is_adopted(self) -> bool:
        """Whether the log holds a finished adoption in this very revision."""
        store, name = self.writer.target.store, self.report.type_name
        snapshot = store.read_snapshot(self.connection)
        turns = self.store.find_adoptions(self.connection, [name], snapshot=snapshot)
        return turns.get(name, Turns()).revision == self.report.revision
