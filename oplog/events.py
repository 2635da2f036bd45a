"""Events that the library reports to the callable given as `Oplog(on_event=...)`.

Operators count them; tests interrupt the process at them. Events hold ids, counts, bytes and
seconds, never the contents of rows. The callable runs inside the transaction: it must be quick
and must not use the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class EntriesDrafted:
    """Rows are flushed and a record is built; nothing of it has been sent to the server yet."""

    entries: int
    operations: int
    sealed_bytes: int


@dataclass(frozen=True, slots=True)
class EntriesAppended:
    """Tickets are redeemed and a record is written; durable once COMMIT has returned.

    `committed`: COMMIT was sent with it and has returned.
    """

    record_id: UUID
    committed: bool


@dataclass(frozen=True, slots=True)
class WorkRetried:
    """`run` starts the work again after a conflict."""

    attempt: int
    pause_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class OutcomeLost:
    """The answer to a COMMIT was lost; the application gets `CommitOutcomeUnknownError`.

    The records of all logs that the transaction wrote to.
    """

    record_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class OutcomeResolved:
    """`resolve` found the outcome of a transaction: "committed", "aborted" or "pending"."""

    outcome: str
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class ArchiveStepDone:
    """A step of publishing is done: `step` is its name, `path` and `bytes` the object's.

    It is reported outside the application's transactions, between two requests to the store.
    """

    step: str
    path: str
    bytes: int


Event = (
    EntriesDrafted | EntriesAppended | WorkRetried | OutcomeLost | OutcomeResolved | ArchiveStepDone
)
EventSink = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing: the sink of a log without `on_event`."""
