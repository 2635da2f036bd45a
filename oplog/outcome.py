"""Outcome of a transaction whose COMMIT got no answer, as `Oplog.resolve` reports it."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from oplog.receipt import Receipt


class Outcome(enum.Enum):
    """COMMITTED and ABORTED are final; PENDING means that the outcome is not decided yet."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A server process, or a prepared transaction, that may still decide the outcome.

    `process_id` is 0 for a prepared transaction. Fields that the role may not see are empty.
    """

    process_id: int
    state: str
    application_name: str
    client: str
    transaction_seconds: float


@dataclass(frozen=True, slots=True)
class Resolution:
    """An outcome with its evidence.

    `receipts`: those of all entries of the transaction, from the log, if it is COMMITTED.
    `blockers`: the processes that may still decide it, if it is PENDING.
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
