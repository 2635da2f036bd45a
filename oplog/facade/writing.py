"""The half of `Oplog` that writes: transactions, runs, outcomes, adoption.

Every method is one call into the module that does the work.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, overload

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog.adoption import CHUNK_ROWS, AdoptionReport, Target, adopt_tables
from oplog.capture.claiming import begin_run, claim_key, lock_aggregates
from oplog.capture.request import check_key, fingerprint_request, fingerprint_work
from oplog.capture.retry import RETRIES, Beginning, Course, run_async_work, run_work
from oplog.capture.session_target import find_blocking, find_session
from oplog.entry import (
    Entry,
    Ticket,
    check_aggregate_name,
    check_metadata,
    check_metadata_count,
)
from oplog.errors import TicketConflictError
from oplog.events import OutcomeResolved
from oplog.facade.foundation import Foundation
from oplog.outcome import Outcome, Resolution
from oplog.reading.resolution import WAIT_SECONDS, read_question, resolve_on
from oplog.receipt import Receipt

T = TypeVar("T")


class WritingOplog(Foundation):
    """What an application does to a log."""

    def annotate(
        self,
        session: Any,
        *,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
        **metadata: str | Iterable[str],
    ) -> list[Receipt]:
        """Describe the session's transaction: who, why, which request.

        Values are str or lists of str. A key given again replaces its values. Raises
        `InvalidMetadataError` before anything is written.

        With `idempotency_key`, given before the first write, the transaction has its effect at
        most once, for ever: waits for another one under the key, and returns the receipts of
        the one that has committed. Return then: writing raises `IdempotencyConflictError` at
        commit. An empty list says that this is the first. `idempotency_request` (bytes, or what
        JSON can hold) tells requests under one key apart: another one raises
        `IdempotencyConflictError` at once.
        """
        checked = {key: check_metadata(key, value) for key, value in metadata.items()}
        check_metadata_count(sum(len(values) for values in checked.values()))
        self._attachments.annotate(find_session(session), checked)
        if idempotency_key is None:
            return []
        known = idempotency_request is not None
        fingerprint = fingerprint_request(idempotency_request) if known else None
        return self._claim(find_blocking(session), idempotency_key, fingerprint)

    def _claim(
        self,
        session: Session | Connection,
        key: str,
        fingerprint: str | None,
        *,
        wait_seconds: float | None = None,
    ) -> list[Receipt]:
        check_key(key)
        one = self._attachments.enlist(session)
        return claim_key(
            one.connection,
            one.recorder,
            store=self._outcomes,
            key=key,
            fingerprint=fingerprint,
            wait_seconds=wait_seconds,
        )

    def lock(self, session: Any, aggregates: str | Iterable[str]) -> None:
        """Wait in line for an aggregate, or several, instead of running into conflicts.

        Called before the transaction's first read: at most one transaction holds the lock of an
        aggregate, until it ends. It keeps out others that lock as well, and no one else;
        tickets still decide. Several are locked in one order. Raises `ConfigurationError` after
        the first write. Under REPEATABLE READ and SERIALIZABLE, whoever had to wait works on
        what was there before, and conflicts: `run` tries again.
        """
        one = self._attachments.enlist(find_blocking(session))
        lock_aggregates(one.connection, one.recorder, store=self._outcomes, aggregates=aggregates)

    def receipts(self, session: Any) -> list[Receipt]:
        """Receipts of the session's last commit, sorted by aggregate."""
        return self._attachments.list_receipts(find_session(session))

    def take_ticket(self, session: Any, aggregate: str) -> Ticket:
        """The aggregate's version now; take it before reading what the change depends on.

        If anybody else commits an entry for the aggregate after this, this transaction's
        commit raises `TicketConflictError`. Version 0 means never written.
        """
        check_aggregate_name(aggregate)
        connection, recorder = self._attachments.find_recorder(find_blocking(session))
        held = recorder.find_ticket(aggregate)
        if held is not None:
            return held
        version = self.store.read_tickets(connection, [aggregate]).get(aggregate, 0)
        ticket = Ticket(aggregate, version)
        recorder.add_ticket(ticket)
        return ticket

    def append(self, session: Any, entry: Entry, ticket: Ticket | None = None) -> None:
        """Record an entry built by hand; it is written when the session commits.

        The ticket must have been taken for the entry's aggregate in this transaction, else
        `TicketConflictError`. Unknown types or columns raise before anything is written.
        """
        if ticket is None:
            error = TicketConflictError(
                f"no ticket for aggregate {entry.aggregate!r}",
                hint="ticket = log.take_ticket(session, aggregate) before reading, then append",
            )
            error.retryable = False
            raise error
        _, recorder = self._attachments.find_recorder(find_blocking(session))
        self._writer.check_entry(recorder, entry)
        recorder.add_entry(entry, ticket)

    @overload
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = ...,
        idempotency_key: None = ...,
        idempotency_request: None = ...,
    ) -> T: ...
    @overload
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = ...,
        idempotency_key: str | None,
        idempotency_request: Any = ...,
    ) -> T | list[Receipt]: ...
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """Run `work(session)` in a transaction, again after conflicts, and commit.

        Conflicts, serialization failures and deadlocks are retried up to `retries` times
        after short random pauses; after several conflicts in a row the run waits in line for
        the aggregates, as with `lock`. `work` must be re-runnable. Other errors pass through.

        With `idempotency_key` the work has its effect at most once, for ever, whoever runs it
        how often; a COMMIT whose answer was lost is asked about and, if need be, retried, too.
        Returns what `work` returned. If that was None, or an earlier run had the effect, the
        receipts of the one effect. Another request under the key is an
        `IdempotencyConflictError`: two requests are the same if their `idempotency_request`
        is, or, without one, if the works have one name and the same plain values in their
        arguments and closures.
        """
        course: Course[T] = Course(retries, idempotency_key is not None, self._on_event)
        beginning = self._begin_run(work, idempotency_key, idempotency_request)
        return run_work(sessions, work, course=course, beginning=beginning)

    @overload
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = ...,
        idempotency_key: None = ...,
        idempotency_request: None = ...,
    ) -> T: ...
    @overload
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = ...,
        idempotency_key: str | None,
        idempotency_request: Any = ...,
    ) -> T | list[Receipt]: ...
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """`run` for an async_sessionmaker; cancelling it cancels the pause as well."""
        course: Course[T] = Course(retries, idempotency_key is not None, self._on_event)
        beginning = self._begin_run(work, idempotency_key, idempotency_request)
        return await run_async_work(sessions, work, course=course, beginning=beginning)

    def _begin_run(self, work: Callable[..., Any], key: str | None, request: Any) -> Beginning:
        fingerprint: str | None = None
        if key is not None:
            check_key(key)
            known = request is not None
            fingerprint = fingerprint_request(request) if known else fingerprint_work(work)
        return begin_run(self._attachments, self._outcomes, key=key, fingerprint=fingerprint)

    def resolve(
        self, question: Any, engine: Engine, *, wait_seconds: float = WAIT_SECONDS
    ) -> Outcome:
        """What became of a transaction whose answer was lost.

        `question` is a `CommitOutcomeUnknownError`, a receipt, the receipts of one transaction,
        or an idempotency key. COMMITTED and ABORTED stay true: a COMMIT that was declared
        aborted by its receipt is refused if it arrives later. (By key, ABORTED says that no
        transaction under the key has committed or is under way; a new one may begin.) PENDING
        is the answer when the lost session, or whoever has its ticket, does not end within
        `wait_seconds`; `inquire` tells who that is. Raises `ConfigurationError` on a standby.
        """
        return self.inquire(question, engine, wait_seconds=wait_seconds).outcome

    def inquire(
        self, question: Any, engine: Engine, *, wait_seconds: float = WAIT_SECONDS
    ) -> Resolution:
        """`resolve` with its evidence: all receipts of the transaction, or who is waited for."""
        asked = read_question(question)
        with engine.connect() as connection:
            return self._resolve_on(connection, asked, wait_seconds)

    async def resolve_async(
        self, question: Any, engine: Any, *, wait_seconds: float = WAIT_SECONDS
    ) -> Outcome:
        """`resolve` for an AsyncEngine."""
        return (await self.inquire_async(question, engine, wait_seconds=wait_seconds)).outcome

    async def inquire_async(
        self, question: Any, engine: Any, *, wait_seconds: float = WAIT_SECONDS
    ) -> Resolution:
        """`inquire` for an AsyncEngine."""
        asked = read_question(question)
        async with engine.connect() as connection:
            found: Resolution = await connection.run_sync(self._resolve_on, asked, wait_seconds)
            return found

    def _resolve_on(
        self, connection: Connection, asked: list[Receipt] | str, wait_seconds: float
    ) -> Resolution:
        began = time.monotonic()
        found = resolve_on(connection, asked, store=self._outcomes, wait_seconds=wait_seconds)
        self._on_event(OutcomeResolved(found.outcome.value, time.monotonic() - began))
        return found

    def adopt(
        self,
        connection: Connection,
        tables: Iterable[Any] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        chunk_rows: int = CHUNK_ROWS,
        dry_run: bool = False,
        again: bool = False,
    ) -> AdoptionReport:
        """Log the rows that exist, of `tables` (names, `Table`s, mapped classes) or of all.

        On a connection that is in no transaction each chunk of at most `chunk_rows` commits by
        itself; in an open one everything is in that, and **writers wait until it ends**. What
        was adopted before is passed over, unless `again` asks for every row as it is now, which
        puts right what slipped past; interrupted, it goes on where it stopped. `progress`
        gets rows done and estimated. Raises `UnknownTypeError`, `ConflictError` where a lock is
        not to be had, `EntryTooLargeError` for a row wider than an entry.
        """
        self._attachments.check_clean(connection)
        target = Target(self.store, self.keyring, self._sealer, self._codec, self._on_event)
        return adopt_tables(
            connection,
            self.catalog,
            tables=tables,
            target=target,
            chunk_rows=chunk_rows,
            dry_run=dry_run,
            again=again,
            progress=progress,
        )
