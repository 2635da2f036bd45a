"""The asynchronous client of the soak: several sessions at once, some of them cancelled.

Must not judge. The hard thing is where a cancellation strikes: it is sent when the entries are
drafted, a moment before or after they leave, so that it meets the append, the COMMIT, its answer
or nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from oplog import EntriesDrafted, Event, Receipt
from oplog.errors import OplogError
from tests.fault.client import AWAY_SECONDS, LANES, Client, Plan, is_away
from tests.fault.operations import AbandonedError

DELAYS = (0.0, 0.0, 0.0005, 0.001, 0.003)


class AsyncClient(Client):
    """Several lanes of operations in one event loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.doomed: dict[Any, float] = {}
        """Tasks to be cancelled, and how long after the draft."""

    async def run(self) -> None:
        """Operations, then the last questions."""
        engine = create_async_engine(self.job.url, pool_size=LANES)
        self.asking_async = create_async_engine(self.job.direct_url, pool_pre_ping=True)
        self.sessions: dict[str, async_sessionmaker[AsyncSession]] = {}
        for level, at_level in self.open_engine(engine).items():
            self.sessions[level] = async_sessionmaker(at_level)
            self.log.attach(self.sessions[level])
        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(self.go())
        while self.lost:
            await self.ask()
        await engine.dispose()
        await self.asking_async.dispose()

    async def go(self) -> None:
        """One lane."""
        while self.goes_on:
            await self.try_once(self.draw_plan())
            if self.must_ask():
                await self.ask()

    def on_event(self, event: Event) -> None:
        """Cancel the doomed once their entries are drafted."""
        super().on_event(event)
        if isinstance(event, EntriesDrafted):
            task = asyncio.current_task()
            delay = self.doomed.pop(task, None)
            if task is not None and delay is not None:
                asyncio.get_running_loop().call_later(delay, task.cancel)

    async def try_once(self, plan: Plan) -> None:
        """One operation in a task of its own, and what became of it."""
        self.begin(plan)
        held: list[AsyncSession] = []
        task = asyncio.create_task(self.execute(plan, held))
        if self.draw.random() < 0.1:
            self.doomed[task] = self.draw.choice(DELAYS)
        try:
            receipts = await task
        except (AbandonedError, OplogError, DBAPIError, asyncio.CancelledError) as error:
            if plan.receipts:
                # Cancelled while its session was closed, when it had its answer already.
                self.journal.note("cancelled after commit")
                self.acknowledge(plan, plan.receipts, worked=bool(held))
            else:
                self.conclude(plan, error)
            if getattr(error, "connection_invalidated", False) or is_away(error):
                await asyncio.sleep(AWAY_SECONDS)
        else:
            self.acknowledge(plan, receipts, worked=bool(held))
        finally:
            self.doomed.pop(task, None)

    async def execute(self, plan: Plan, held: list[AsyncSession]) -> list[Receipt]:
        """Do it; `held` gets the session if the work was begun."""
        sessions = self.sessions[plan.kind.isolation]

        async def work(session: AsyncSession) -> None:
            held[:] = [session]
            await session.run_sync(self.work, plan)

        if plan.runs:
            found = await self.log.run_async(
                sessions,
                work,
                retries=8,
                idempotency_key=plan.key,
                idempotency_request=plan.request,
            )
            return list(found) if plan.key is not None and found else self.log.receipts(held[0])
        # Not `sessions.begin()`: it commits in a task of its own, which a cancellation of this
        # one does not reach, so that nobody would be told what became of it.
        async with sessions() as session:
            async with session.begin():
                first = await session.run_sync(self.claim, plan)
                if not first:
                    await work(session)
            plan.receipts = first or self.log.receipts(session)
        return plan.receipts

    async def ask(self) -> None:
        """Put every open question. Another lane may be at the same ones."""
        for lost in list(self.lost):
            question = self.draw_question(lost)
            try:
                outcome = await self.log.resolve_async(
                    question, self.asking_async, wait_seconds=2.0
                )
            except DBAPIError:
                await asyncio.sleep(AWAY_SECONDS)
                return
            if lost in self.lost:
                self.note_verdict(lost, question, outcome)
