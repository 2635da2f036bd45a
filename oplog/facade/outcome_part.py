"""The part of `Oplog` that finds out what became of a transaction whose answer was lost."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.events import OutcomeResolved
from oplog.facade.given_target import take_async_engine, take_engine
from oplog.facade.log_parts import LogParts
from oplog.outcome import Outcome, Resolution
from oplog.reading.resolution import WAIT_SECONDS, read_question, resolve_on
from oplog.receipt import Receipt


class Outcomes:
    """Outcomes of transactions, by error, receipt or idempotency key."""

    def __init__(self, log: LogParts) -> None:
        self._log = log

    def resolve(
        self, question: Any, engine: Engine, *, wait_seconds: float = WAIT_SECONDS
    ) -> Outcome:
        """What became of a transaction whose answer was lost.

        `question` is a `CommitOutcomeUnknownError`, a receipt, the receipts of one transaction,
        or an idempotency key. COMMITTED and ABORTED stay true: a COMMIT that was declared
        aborted by its receipt is refused if it arrives later. (By key, ABORTED says that no
        transaction under the key has committed or is under way; a new one may begin.) PENDING
        is the answer when the lost session, or the holder of the key, does not end within
        `wait_seconds`; `inquire` tells who that may be. Raises `ConfigurationError` on a standby,
        and for receipts of several records.
        """
        return self.inquire(question, engine, wait_seconds=wait_seconds).outcome

    def inquire(
        self, question: Any, engine: Engine, *, wait_seconds: float = WAIT_SECONDS
    ) -> Resolution:
        """`resolve` with its evidence: all receipts of the transaction, or who is waited for."""
        asked = read_question(question)
        with take_engine(engine).connect() as connection:
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
        async with take_async_engine(engine).connect() as connection:
            found: Resolution = await connection.run_sync(self._resolve_on, asked, wait_seconds)
            return found

    def _resolve_on(
        self, connection: Connection, asked: list[Receipt] | str, wait_seconds: float
    ) -> Resolution:
        # In a transaction of its own: the question sets the isolation level of those it opens.
        with connection.begin():
            self._log.store.require_current(connection)
        began = time.monotonic()
        found = resolve_on(connection, asked, store=self._log.outcomes, wait_seconds=wait_seconds)
        self._log.on_event(OutcomeResolved(found.outcome.value, time.monotonic() - began))
        return found
