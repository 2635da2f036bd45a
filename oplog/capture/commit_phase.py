"""How far the end of one connection's transaction has come.

From the moment that COMMIT is announced until it is sent, listeners of the application may still
write rows. What is written after the entries were built makes a further record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from oplog.capture.frame import Frame
from oplog.capture.request import Claim


@dataclass(slots=True)
class CommitPhase:
    """The end of a transaction, as a recorder keeps it."""

    write_others: Callable[[Connection], None] | None = None
    """Its session commits: writes the entries of the session's other connections."""
    closed: bool = False
    """The entries are built."""
    final_claim: Claim | None = None
    """The claim that the transaction held when it was closed."""
    announced: bool = False
    """SQLAlchemy has announced COMMIT."""
    awaited: bool = False
    """It has, and listeners after the log's may write rows until it is sent."""
    ending: bool = False
    """COMMIT was sent: an error from now on leaves open whether it happened."""
    process_id: int = 0
    """The server process that COMMIT was sent to; 0 where the driver does not know it."""
    _told: dict[str, list[str]] = field(default_factory=dict)
    """What was said of the transaction before it was closed."""
    _depth: int = 1

    def close(self, frames: Sequence[Frame], claim: Claim | None) -> list[Frame]:
        """The entries are built of these frames; returns the frames of what comes late."""
        self.final_claim = claim or self.final_claim
        for frame in frames:
            self._told.update(frame.metadata)
        self._depth, self.closed = len(frames), True
        return [Frame(frame.name, receipts=frame.receipts) for frame in frames]

    def reopen(self, frames: Sequence[Frame]) -> None:
        """A row is written late: what was said of the transaction is true of it as well."""
        if self.closed:
            self.closed = False
            frames[0].metadata = {**self._told, **frames[0].metadata}

    def is_late(self, frames: Sequence[Frame]) -> bool:
        """Rows may have been written since COMMIT was announced, and not in an open savepoint."""
        return self.awaited and not self.closed and len(frames) <= self._depth
