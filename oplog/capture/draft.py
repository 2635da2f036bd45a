"""What a transaction appends, ready to be sent with its COMMIT.

Plain data. Must not know how entries are built or sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oplog.capture.request import Claim
from oplog.postgres.namesake import Named
from oplog.receipt import Receipt
from oplog.store import NewEntry


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction's entries, ready to be sent."""

    entries: Sequence[NewEntry]
    statement: str
    parameters: tuple[object, ...]
    claim: Claim | None = None
    named: Named = ()
    """Names that the append compares with the tables that they have to mean."""

    @property
    def aggregates(self) -> list[str]:
        """What it redeems, in lock order."""
        return [entry.aggregate for entry in self.entries]

    def guess_receipts(self, process_id: int) -> list[Receipt]:
        """Receipts as far as they are known when the answer was lost."""
        return [
            Receipt(
                entry.entry_id,
                entry.aggregate,
                0 if entry.expected is None else entry.expected + 1,
                b"",
                process_id=process_id,
            )
            for entry in self.entries
        ]

    def make_receipts(self, versions: Sequence[int], hashes: Sequence[bytes]) -> list[Receipt]:
        """What the application gets to keep."""
        return [
            Receipt(entry.entry_id, entry.aggregate, version, bytes(entry_hash))
            for entry, version, entry_hash in zip(self.entries, versions, hashes, strict=True)
        ]
