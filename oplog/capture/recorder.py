"""What one connection's transaction did so far, as a stack of savepoint frames.

Plain data and rules, no SQL. The hard thing is savepoints: a rolled-back one takes exactly
its own changes, tickets and metadata with it, however deep it was nested, and a failure to
capture stays on record until the frame it happened in is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from oplog.binding import Binding, BoundType
from oplog.capture.request import Claim
from oplog.entry import (
    Entry,
    OpType,
    Ticket,
)
from oplog.errors import (
    ConfigurationError,
    NotCapturableError,
    OplogError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.receipt import Receipt
from oplog.value import Wire

Key = tuple[Wire | None, ...]


@dataclass(slots=True)
class RowChange:
    """One statement's effect on one row.

    `values` are written values that are certain, `unknown` written columns that only the
    database knows, `group` the row's template columns before the statement, where they are
    not part of the key. `moved_to` is the new key of an update that changes the key.
    """

    kind: OpType
    bound: BoundType
    key: Key
    values: dict[str, Wire | None]
    unknown: tuple[str, ...]
    group: Mapping[str, Wire | None] | None = None
    moved_to: Key | None = None


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
    seen: int = 0
    """Changes already looked at for tickets."""
    under_way: set[object] = field(default_factory=set)
    """Statements sent whose effect was not observed yet."""
    tally: int = 0
    """What the guards must have counted of announced statements."""
    owed: dict[sa.Table, str | None] = field(default_factory=dict)
    """Tables that were written, by a name that nobody has compared yet with what it means;
    each with the search path at that time, as far as the driver knows it."""


class Recorder:
    """The frames of one transaction on one connection."""

    def __init__(self) -> None:
        self._binding: Binding | None = None
        self.frames = [Frame("")]
        self.receipts: list[Receipt] = []
        self.drained = False
        self.owned = False
        """A session ends this transaction, and drains it before it does."""
        self.wrote = False
        """A statement was sent that may write, tracked or not."""
        self.paying = False
        """Names of tables are being compared: what is executed for it must not begin it anew."""
        self.spent: Claim | None = None
        """The claim it had when it was drained."""
        self.ending = False
        """COMMIT is under way: an error from now on leaves its outcome open."""
        self.process_id = 0
        """The server's process that was told to, where the driver knows it."""

    @property
    def binding(self) -> Binding:
        """What the transaction knows of its database; it is bound by its first write."""
        if self._binding is None:
            raise UnloggedWriteError(
                "a change was recorded before the log looked at the database",
                hint="report this with the statement that was executed first",
            )
        return self._binding

    def bind(self, binding: Binding) -> None:
        """Keep to one binding until the transaction ends."""
        self._binding = binding

    @property
    def bound(self) -> bool:
        """The transaction has written, or has begun to."""
        return self._binding is not None

    # -- savepoints -----------------------------------------------------------------------

    def push(self, name: str) -> None:
        """SAVEPOINT."""
        self.frames.append(Frame(name))

    def roll_back(self, name: str) -> None:
        """ROLLBACK TO SAVEPOINT: what happened since is gone, the savepoint itself stays."""
        place = self._find(name)
        if place is None:
            # A savepoint from before the session joined the transaction: all of this is gone.
            self.frames = [Frame("")]
        else:
            self.frames[place:] = [Frame(name)]

    def release(self, name: str) -> None:
        """RELEASE SAVEPOINT: what happened since belongs to the enclosing frame."""
        place = self._find(name)
        if place is None:
            return
        outer = self.frames[place - 1]
        for frame in self.frames[place:]:
            outer.changes += frame.changes
            outer.entries += frame.entries
            for aggregate, ticket in frame.tickets.items():
                outer.tickets.setdefault(aggregate, ticket)
            outer.metadata.update(frame.metadata)
            outer.failure = outer.failure or frame.failure
            outer.claim = outer.claim or frame.claim
            outer.under_way |= frame.under_way
            outer.tally += frame.tally
            outer.owed.update(frame.owed)
        del self.frames[place:]

    def _find(self, name: str) -> int | None:
        for place in range(len(self.frames) - 1, 0, -1):
            if self.frames[place].name == name:
                return place
        return None

    # -- recording ------------------------------------------------------------------------

    def record(self, changes: list[RowChange], *, tally: int = 0) -> None:
        """Add changes to the innermost frame, and what guards count of them."""
        self.frames[-1].changes += changes
        self.frames[-1].tally += tally

    @property
    def tally(self) -> int:
        """What guards must have counted of everything that survived."""
        return sum(frame.tally for frame in self.frames)

    def check_open(self, bound: BoundType) -> None:
        """Raise `UnloggedWriteError` once the entries of this transaction are written."""
        if self.drained:
            raise UnloggedWriteError(
                f"table {bound.live.qualified} is written after the transaction's log entry",
                hint="another before_commit listener or engine hook writes rows too late; "
                "write them before commit() is called",
            )

    def owe(self, tables: Iterable[sa.Table], path: str | None) -> None:
        """These are about to be written under the names that models give them."""
        for table in tables:
            self.frames[-1].owed[table] = path

    @property
    def owes(self) -> bool:
        """Names of tables have to be compared before they may mean something else."""
        return any(frame.owed for frame in self.frames)

    @property
    def owed(self) -> dict[sa.Table, str | None]:
        """The tables whose names have to be compared."""
        owed: dict[sa.Table, str | None] = {}
        for frame in self.frames:
            owed.update(frame.owed)
        return owed

    def pay(self) -> None:
        """The names were compared."""
        for frame in self.frames:
            frame.owed.clear()

    def announce(self, statement: object) -> None:
        """A tracked table is about to be written."""
        self.frames[-1].under_way.add(statement)

    def settle(self, statement: object) -> None:
        """The statement's effect was observed, or it had none."""
        for frame in self.frames:
            frame.under_way.discard(statement)

    def fail(self, failure: OplogError) -> None:
        """Remember that a change was not captured: this frame can no longer be committed."""
        frame = self.frames[-1]
        frame.failure = frame.failure or failure

    def add_entry(self, entry: Entry, ticket: Ticket) -> None:
        """Add an explicit entry; its ticket must have been taken in this transaction."""
        self.check_ticket(entry.aggregate, ticket)
        self.frames[-1].entries.append(entry)

    def check_ticket(self, aggregate: str, ticket: Ticket) -> None:
        """Raise `TicketConflictError` unless the ticket is this transaction's for `aggregate`."""
        held = self.find_ticket(aggregate)
        if held is not ticket:
            error = TicketConflictError(
                f"the ticket for {getattr(ticket, 'aggregate', ticket)!r} was not taken for "
                f"{aggregate!r} in this transaction",
                hint="call take_ticket in the transaction that appends; a ticket does not "
                "outlive its transaction or savepoint",
            )
            # The same work would make the same mistake again.
            error.retryable = False
            raise error

    def add_ticket(self, ticket: Ticket) -> None:
        """Hold a ticket until the frame ends."""
        self.frames[-1].tickets[ticket.aggregate] = ticket

    def iterate_new(self) -> Iterator[tuple[Frame, RowChange]]:
        """Changes that no earlier call has given, with the frame they belong to."""
        for frame in self.frames:
            for change in frame.changes[frame.seen :]:
                yield frame, change
            frame.seen = len(frame.changes)

    @property
    def has_tickets(self) -> bool:
        """Any ticket is held."""
        return any(frame.tickets for frame in self.frames)

    def find_ticket(self, aggregate: str) -> Ticket | None:
        """The ticket held for an aggregate: the first one taken protects the longest."""
        for frame in self.frames:
            if aggregate in frame.tickets:
                return frame.tickets[aggregate]
        return None

    def annotate(self, metadata: Mapping[str, list[str]]) -> None:
        """Describe the transaction; the later value of a key replaces the earlier one."""
        self.frames[-1].metadata.update(metadata)

    @property
    def claim(self) -> Claim | None:
        """The idempotency key that the transaction holds."""
        return next((frame.claim for frame in self.frames if frame.claim is not None), None)

    def add_claim(self, claim: Claim) -> None:
        """Hold a key until the frame ends."""
        self.frames[-1].claim = claim

    def find_claim(self, key: str) -> Claim | None:
        """The claim held for a key; `ConfigurationError` if another key is held."""
        held = self.claim
        if held is not None and held.key != key:
            raise ConfigurationError(
                f"this transaction has the idempotency key {held.key!r} and is given {key!r}",
                hint="one key for each transaction: it stands for all that commits together",
            )
        return held

    # -- draining -------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """There is something to write, or a failure to report."""
        return any(f.changes or f.entries or f.failure or f.under_way for f in self.frames) or (
            # A key that was not used before is to be used up, whatever else happens.
            (claim := self.claim) is not None and not claim.receipts
        )

    def iterate_changes(self) -> Iterator[RowChange]:
        """All surviving changes in the order they happened."""
        for frame in self.frames:
            yield from frame.changes

    def iterate_entries(self) -> Iterator[Entry]:
        """All surviving explicit entries in the order they were appended."""
        for frame in self.frames:
            yield from frame.entries

    def list_metadata(self) -> list[tuple[str, str]]:
        """Metadata pairs: keys in the order they were first given, values as given."""
        merged: dict[str, list[str]] = {}
        for frame in self.frames:
            merged.update(frame.metadata)
        return [(key, value) for key, values in merged.items() for value in values]

    def raise_failure(self) -> None:
        """Raise the first capture failure that has not been rolled back."""
        for frame in self.frames:
            if frame.failure is not None:
                raise frame.failure
            if frame.under_way:
                raise NotCapturableError(
                    "a statement on a tracked table was sent and its effect was never seen",
                    hint="another engine event hook raised in between and the error was "
                    "swallowed; let it end the transaction",
                )

    def mark_drained(self) -> None:
        """The entries are built: nothing may follow in this transaction."""
        claim = self.claim
        self.frames = [Frame(frame.name) for frame in self.frames]
        self.drained = True
        self.spent = claim
