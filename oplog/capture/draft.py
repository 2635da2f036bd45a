"""What a transaction appends, as the build step hands it to the send step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oplog.capture.request import Claim
from oplog.receipt import Receipt
from oplog.store.rows import CREATED, NewRecord


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction's record, ready to be sent.

    Without a record it only tells the guards that what they counted came to nothing.
    """

    record: NewRecord | None
    claim: Claim | None = None
    tally: int | None = None
    """What the guards must have counted; None if they must have counted nothing."""
    named: Sequence[tuple[str, int]] = ()
    """Quoted names of tables, each with the oid that it has to mean when the record is
    appended."""

    @property
    def aggregates(self) -> list[str]:
        """The aggregates whose tickets the append redeems, in lock order."""
        return [] if self.record is None else list(self.record.aggregates)

    def guess_receipts(self, process_id: int) -> list[Receipt]:
        """Receipts as far as they are known when the answer was lost.

        A version that no ticket tells is 0.
        """
        if self.record is None:
            return []
        # The belief that an aggregate is created may be wrong, so it tells no version either.
        versions = [
            0 if expected is None or expected == CREATED else expected + 1
            for expected in self.record.expected
        ]
        return _list_receipts(self.record, versions, b"", process_id=process_id)

    def make_receipts(self, versions: Sequence[int], record_hash: bytes) -> list[Receipt]:
        """The receipts that the application gets, from the append's answer.

        `versions` has one for each of the record's aggregates.
        """
        if self.record is None:
            return []
        return _list_receipts(self.record, versions, bytes(record_hash))


def _list_receipts(
    record: NewRecord, versions: Sequence[int], record_hash: bytes, *, process_id: int = 0
) -> list[Receipt]:
    known = dict(zip(record.aggregates, versions, strict=True))
    return [
        Receipt(record.record_id, name, version, record_hash, process_id=process_id, versions=known)
        for name, version in known.items()
    ]
