"""The part of `Oplog` that writes: transactions, runs, adoption."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from oplog.adoption import CHUNK_ROWS, AdoptionReport, adopt_tables
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
from oplog.facade.first_write import make_target
from oplog.facade.given_target import Inside, check_factory, take_connection
from oplog.facade.log_parts import LogParts
from oplog.receipt import Receipt

T = TypeVar("T")


class Writing:
    """What an application does to a log."""

    def __init__(self, log: LogParts) -> None:
        self._log = log

    def annotate(
        self,
        /,
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
        self._log.attachments.annotate(find_session(session), checked)
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
        one = self._log.attachments.enlist(session)
        return claim_key(
            one.connection,
            one.recorder,
            store=self._log.outcomes,
            key=key,
            fingerprint=fingerprint,
            wait_seconds=wait_seconds,
        )

    def lock(self, session: Any, aggregates: str | Iterable[str]) -> None:
        """Wait in line for an aggregate, or several, instead of running into conflicts.

        Called before the transaction's first read: at most one transaction holds the lock of an
        aggregate, until it ends. It keeps out others that lock as well, and no one else;
        tickets still decide. Several are locked in one order. Raises `ConfigurationError` after
        the first write. Under REPEATABLE READ and SERIALIZABLE a transaction that had to
        wait reads the older state, and conflicts: `run` tries again.
        """
        one = self._log.attachments.enlist(find_blocking(session))
        lock_aggregates(
            one.connection, one.recorder, store=self._log.outcomes, aggregates=aggregates
        )

    def receipts(self, session: Any) -> list[Receipt]:
        """Receipts of the session's last commit, record by record, sorted by aggregate."""
        return self._log.attachments.list_receipts(find_session(session))

    def take_ticket(self, session: Any, aggregate: str) -> Ticket:
        """The aggregate's version now; take it before reading what the change depends on.

        If anybody else commits an entry for the aggregate after this, this transaction's
        commit raises `TicketConflictError`. Version 0 means never written.
        """
        check_aggregate_name(aggregate)
        connection, recorder = self._log.attachments.find_recorder(find_blocking(session))
        held = recorder.find_ticket(aggregate)
        if held is not None:
            return held
        version = self._log.store.read_tickets(connection, [aggregate]).get(aggregate, 0)
        ticket = Ticket(aggregate, version)
        recorder.add_ticket(ticket)
        return ticket

    def append(self, session: Any, entry: Entry, ticket: Ticket | None = None) -> None:
        """Record an entry built by hand; it is written when the session commits.

        The ticket must have been taken for the entry's aggregate in this transaction, else
        `TicketConflictError`. Unknown types or columns raise before anything is written.
        """
        if ticket is None:
            raise TicketConflictError(
                f"no ticket for aggregate {entry.aggregate!r}",
                hint="ticket = log.take_ticket(session, aggregate) before reading, then append",
                retryable=False,
            )
        _, recorder = self._log.attachments.find_recorder(find_blocking(session))
        self._log.writer.check_entry(recorder, entry)
        recorder.add_entry(entry, ticket)

    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """See `Oplog.run`."""
        course: Course[T] = Course(retries, idempotency_key is not None, self._log.on_event)
        beginning = self._begin_run(work, idempotency_key, idempotency_request)
        check_factory(sessions, asynchronous=False)
        return run_work(sessions, work, course=course, beginning=beginning)

    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """See `Oplog.run_async`."""
        course: Course[T] = Course(retries, idempotency_key is not None, self._log.on_event)
        beginning = self._begin_run(work, idempotency_key, idempotency_request)
        check_factory(sessions, asynchronous=True)
        return await run_async_work(sessions, work, course=course, beginning=beginning)

    def _begin_run(self, work: Callable[..., Any], key: str | None, request: Any) -> Beginning:
        fingerprint: str | None = None
        if key is not None:
            check_key(key)
            known = request is not None
            fingerprint = fingerprint_request(request) if known else fingerprint_work(work)
        return begin_run(
            self._log.attachments, self._log.outcomes, key=key, fingerprint=fingerprint
        )

    def adopt(
        self,
        connection: Inside,
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
        attachments = self._log.attachments
        connection = take_connection(connection, self._log.catalog)
        # In a migration what it changed before is logged before.
        inside = attachments.is_migrating(connection)
        if not inside:
            attachments.check_clean(connection)
        target = make_target(self._log)
        with attachments.at_work(connection) if inside else nullcontext():
            return adopt_tables(
                connection,
                self._log.catalog,
                tables=tables,
                target=target,
                chunk_rows=chunk_rows,
                dry_run=dry_run,
                again=again,
                progress=progress,
            )
