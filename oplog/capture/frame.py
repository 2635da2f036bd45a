"""What one savepoint of a transaction holds: changes, tickets, metadata, and records settled in it.

Before a statement that alters tables, what the transaction did so far is appended as a record
(`settled`). Rolling back the savepoint in which that happened takes the record away again, and
what it told of outer savepoints waits to be logged once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sqlalchemy as sa

from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange
from oplog.entry import Entry, Ticket
from oplog.errors import NotCapturableError, OplogError
from oplog.receipt import Receipt

_MOST_RECEIPTS = 1000
"""Of a session in AUTOCOMMIT."""


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

    def raise_failure(self) -> None:
        """Raise the failure to capture a statement, if there is one."""
        if self.failure is not None:
            raise self.failure
        if self.statements:
            raise NotCapturableError(
                "a statement on a tracked table was sent and its effect was never seen",
                hint="another engine event hook raised in between and the error was "
                "swallowed; let it end the transaction",
            )

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

    def settle_apart(self, count: int, *, owned: bool) -> None:
        """The last `count` receipts are those of a transaction of its own, in AUTOCOMMIT.

        A session has what it wrote before as well, but not all of it: it may go on for ever.
        """
        kept = max(count, _MOST_RECEIPTS) if owned else count
        self.receipts = self.receipts[len(self.receipts) - min(kept, len(self.receipts)) :]

    def abandon(self) -> None:
        """The statement that was under way has not happened; what is said of others stays."""
        self.changes, self.ticketed, self.tally, self.failure = [], 0, 0, None
        self.unchecked, self.statements, self.created, self.redeemed = {}, set(), set(), {}

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


def find_frame(frames: Sequence[Frame], name: str) -> int | None:
    """The place of the innermost savepoint of this name; None if there is none."""
    for place in range(len(frames) - 1, 0, -1):
        if frames[place].name == name:
            return place
    return None


def list_metadata(frames: Iterable[Frame]) -> list[tuple[str, str]]:
    """What all frames say of the transaction, in pairs; inner frames replace a key's values."""
    merged: dict[str, list[str]] = {}
    for frame in frames:
        merged.update(frame.metadata)
    return [(key, value) for key, values in merged.items() for value in values]


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
