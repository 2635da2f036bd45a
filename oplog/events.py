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
    """The rows are flushed and the entries are built; nothing of the log is sent yet."""

    entries: int
    operations: int
    sealed_bytes: int


@dataclass(frozen=True, slots=True)
class EntriesAppended:
    """Tickets are redeemed and entries are written; durable once COMMIT has returned.

    `committed` says that COMMIT went out with them and has returned.
    """

    entry_ids: tuple[UUID, ...]
    committed: bool


@dataclass(frozen=True, slots=True)
class WorkRetried:
    """`run` starts the work again after a conflict."""

    attempt: int
    pause_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class OutcomeLost:
    """The answer to a COMMIT was lost; the application gets `CommitOutcomeUnknownError`."""

    entry_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class OutcomeResolved:
    """Somebody asked what became of a transaction: "committed", "aborted" or "pending"."""

    outcome: str
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class ArchiveStepDone:
    """A step of publishing is done: `step` is its name, `path` and `bytes` the object's.

    Not inside a transaction of the application; a worker that dies here is one that died
    between two requests.
    """

    step: str
    path: str
    bytes: int


Event = (
    EntriesDrafted | EntriesAppended | WorkRetried | OutcomeLost | OutcomeResolved | ArchiveStepDone
)
EventSink = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """The sink of whoever did not ask."""
