"""What a transaction appends, as the build step hands it to the send step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oplog.capture.request import Claim
from oplog.receipt import Receipt
from oplog.store.rows import NewEntry


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction's entries, ready to be sent.

    Without entries it only tells the guards that what they counted came to nothing.
    """

    entries: Sequence[NewEntry]
    format: int = 0
    key_id: str = ""
    metadata: Sequence[tuple[str, str]] = ()
    metadata_hash: bytes = b""
    claim: Claim | None = None
    tally: int | None = None
    """What the guards must have counted; None if they must have counted nothing."""
    named: Sequence[tuple[str, int]] = ()
    """Quoted names of tables, each with the oid that it has to mean when the entries are
    appended."""

    @property
    def aggregates(self) -> list[str]:
        """The aggregates whose tickets the append redeems, in lock order."""
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
        """The receipts that the application gets, from the append's answer."""
        return [
            Receipt(entry.entry_id, entry.aggregate, version, bytes(entry_hash))
            for entry, version, entry_hash in zip(self.entries, versions, hashes, strict=True)
        ]
