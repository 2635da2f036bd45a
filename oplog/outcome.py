"""Outcome of a transaction whose COMMIT got no answer, as `Oplog.resolve` reports it."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from oplog.receipt import Receipt


class Outcome(enum.Enum):
    """COMMITTED and ABORTED are true for ever; PENDING says that nobody can know yet."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A server process that may still decide the outcome.

    `process_id` 0 is a prepared transaction, which no process holds. What the server hides from
    the role that asks is empty.
    """

    process_id: int
    state: str
    application_name: str
    client: str
    transaction_seconds: float


@dataclass(frozen=True, slots=True)
class Resolution:
    """An outcome with its evidence.

    `receipts`: of all the transaction's entries, as the log has them, if it is COMMITTED.
    `blockers`: who is waited for, if it is PENDING.
    """

    outcome: Outcome
    receipts: tuple[Receipt, ...] = ()
    blockers: tuple[Blocker, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The outcome and its evidence as one JSON object."""
        return {
            "outcome": self.outcome.value,
            "receipts": [receipt.to_json() for receipt in self.receipts],
            "blockers": [asdict(blocker) for blocker in self.blockers],
        }
