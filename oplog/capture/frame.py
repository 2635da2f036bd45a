"""What one savepoint of a transaction holds: changes, tickets, metadata, and records settled in it.

Before a statement that alters tables, what the transaction did so far is appended as a record
(`settled`). Rolling back the savepoint in which that happened takes the record away again, and
what it told of outer savepoints waits to be logged once more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sqlalchemy as sa

from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange
from oplog.entry import Entry, Ticket
from oplog.errors import OplogError
from oplog.receipt import Receipt


class NamedTable(NamedTuple):
    """A declared table, and the quoted name by which statements write it."""

    table: sa.Table
    name: str


@dataclass(slots=True)
class Frame:
    """Changes, tickets and metadata of one savepoint (the root's name is empty)."""

    name: str
    changes: list[RowChange] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    metadata: dict[str, list[str]] = field(default_factory=dict)
    failure: OplogError | None = None
    claim: Claim | None = None
    ticketed: int = 0
    """How many of the changes `list_unticketed` has looked at already."""
    created: set[str] = field(default_factory=set)
    """Aggregates that `list_unticketed` found to begin with the create of their only row."""
    statements: set[object] = field(default_factory=set)
    """Statements that were sent and whose effect was not observed yet."""
    tally: int = 0
    """What the guards must have counted of the statements announced to them."""
    unchecked: dict[NamedTable, str | None] = field(default_factory=dict)
    """Tables written by a name that was not compared yet with the table it means. Each with
    the search path at that time; None where the driver does not know it."""
    receipts: list[Receipt] = field(default_factory=list)
    """Of the records that were settled in this savepoint."""
    redeemed: dict[str, Ticket] = field(default_factory=dict)
    """Tickets that those records redeemed: the aggregates are this transaction's until it ends."""
    before: list[Frame] | None = None
    """The enclosing frames as they were before the first of those records."""

    def settle(self, aggregates: Collection[str]) -> None:
        """What is here was appended, in a record with these aggregates."""
        # New objects: `before` of an inner frame may hold the old ones.
        self.changes, self.entries, self.ticketed, self.tally = [], [], 0, 0
        self.unchecked = {}
        held = self.tickets
        self.redeemed = {
            **self.redeemed,
            **{name: ticket for name, ticket in held.items() if name in aggregates},
        }
        self.tickets = {name: t for name, t in held.items() if name not in aggregates}

    def absorb(self, inner: Frame, *, place: int) -> None:
        """RELEASE SAVEPOINT: all of `inner` happened here; `place` is this frame's own."""
        self.changes += inner.changes
        self.entries += inner.entries
        for aggregate, ticket in inner.tickets.items():
            self.tickets.setdefault(aggregate, ticket)
        self.created |= inner.created
        self.metadata.update(inner.metadata)
        self.failure = self.failure or inner.failure
        self.claim = self.claim or inner.claim
        self.statements |= inner.statements
        self.tally += inner.tally
        self.unchecked.update(inner.unchecked)
        self.receipts += inner.receipts
        self.redeemed.update(inner.redeemed)
        if self.before is None and inner.before is not None:
            self.before = inner.before[:place]


def settle_frames(frames: list[Frame], receipts: list[Receipt]) -> None:
    """What all frames hold was appended inside the innermost one."""
    inner = frames[-1]
    if inner.before is None:
        inner.before = [replace(frame) for frame in frames[:-1]]
    aggregates = {receipt.aggregate for receipt in receipts}
    for frame in frames:
        frame.settle(aggregates)
    inner.receipts = inner.receipts + receipts


def roll_back_frames(frames: list[Frame], place: int) -> list[Frame]:
    """ROLLBACK TO SAVEPOINT: frames from `place` on are gone, and records settled in them."""
    outer = frames[:place]
    for frame in reversed(frames[place:]):
        if frame.before is not None:
            outer = frame.before[:place]
    return [*outer, Frame(frames[place].name)]
