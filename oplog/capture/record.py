"""What one transaction did, as values that are handed from step to step of COMMIT.

The recorder hands over `RecordedWork`. The gather step adds what the database knows and hands
over `GatheredWork`, from which the build step makes the record. Both are frozen: nothing is
recorded for them after they were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from oplog.capture.bulk import BulkRows, ReadBulk
from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange, TrackedType
from oplog.entry import Entry, Ticket
from oplog.payload.effect import Effect
from oplog.store.rows import NOTHING_KNOWN, KnownTables


class WritableLog(Protocol):
    """The log that a transaction writes to; implemented by `oplog.binding.Binding`."""

    @property
    def log_id(self) -> UUID:
        """The id of the log, which its records are sealed for."""
        ...

    @property
    def key_id(self) -> str:
        """The key that the transaction seals with; empty for plaintext."""
        ...

    @property
    def secret_types(self) -> frozenset[str]:
        """Types with columns that the sizes of sealed bytes must not tell."""
        ...

    @property
    def searchable(self) -> Mapping[str, frozenset[str]]:
        """By type, the columns whose values are found by tokens."""
        ...

    def find_type(self, type_name: str) -> TrackedType:
        """The tracked type; `UnknownTypeError` if the catalog does not have it."""
        ...


@dataclass(frozen=True, slots=True)
class RecordedWork:
    """What survived of a transaction's savepoints, in the order it happened."""

    log: WritableLog
    changes: Sequence[RowChange] = ()
    entries: Sequence[Entry] = ()
    """Entries that the application built by hand."""
    tickets: Mapping[str, Ticket] = field(default_factory=dict)
    """By aggregate; of several taken for one aggregate the first."""
    metadata: Sequence[tuple[str, str]] = ()
    """Pairs in the order in which their keys were first given."""
    claim: Claim | None = None
    """The idempotency key that the transaction holds."""
    tally: int = 0
    """What the guards must have counted of the statements announced to them."""


@dataclass(frozen=True, slots=True)
class GatheredWork:
    """A transaction's effects by aggregate, with everything that the database had to be asked."""

    work: RecordedWork
    effects: Mapping[str, Sequence[Effect]]
    created: frozenset[str] = frozenset()
    """Aggregates that the transaction believes to create. The append finds out."""
    tally: int | None = None
    """What the guards must have counted of the whole transaction; None if it is nothing."""
    known: KnownTables = NOTHING_KNOWN
    """What the transaction took the written tables for."""
    named: Sequence[tuple[str, int]] = ()
    """Quoted names of written tables with the oid that each has to mean when the entries are
    appended."""
    bulk: Sequence[BulkRows] = ()
    """Rows that are effects as well, after all others, and whose values were not read yet."""
    read_bulk: ReadBulk | None = None
    """Reads them, in the transaction that was gathered."""

    @property
    def operations(self) -> int:
        """How many effects there are."""
        return sum(map(len, self.effects.values())) + sum(map(len, self.bulk))
