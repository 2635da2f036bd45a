"""What one connection's transaction did so far, as a stack of savepoint frames.

Executes no SQL. Rolling back a savepoint drops exactly the changes, tickets and metadata of its
own frame and of those nested in it. A failure to capture a statement stays recorded until the
frame in which it happened is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.commit_phase import CommitPhase
from oplog.capture.control import match_control
from oplog.capture.frame import (
    Frame,
    NamedTable,
    find_frame,
    list_metadata,
    roll_back_frames,
    settle_frames,
)
from oplog.capture.grouping import find_aggregate, has_own_aggregate, order_aggregates
from oplog.capture.notices import NoticeState
from oplog.capture.record import RecordedWork
from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange
from oplog.entry import Entry, OpType, Ticket
from oplog.errors import (
    ConfigurationError,
    OplogError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.receipt import Receipt
from oplog.store.commit_lookup import REQUEST


@dataclass(frozen=True, slots=True)
class LiveTables:
    """How a migration's transaction knows its tables, which it alters itself."""

    bind: Callable[[Connection], Binding]
    """The binding as the tables are now, made in the connection's own transaction."""
    note: Callable[[Connection], object]
    """Says in the log what became of the tables; does nothing where there is no log."""


class Recorder:
    """The frames of one transaction on one connection."""

    def __init__(self) -> None:
        self._binding: Binding | None = None
        self.frames = [Frame("")]
        self.sent: list[Receipt] = []
        """Receipts of the record that COMMIT follows."""
        self.end = CommitPhase()
        self.sessions = 0
        """Sessions that are in this transaction."""
        self.owned = False
        """A session ends this transaction, and writes its entries before it does."""
        self.wrote = False
        """A statement was sent that may write, tracked or not."""
        self.checking_names = False
        """Names of tables are being compared: statements executed for that must not start
        another comparison."""
        self.busy = False
        """Statements are the log's own, and say nothing of what the transaction does."""
        self.attached = False
        """The engine is attached, or a session that takes part."""
        self.owned_outside = False
        """What `owned` was before a migration joined the transaction."""
        self.altered = False
        """Tables were altered since the binding was made, or may have been."""
        self.alters = False
        """The same at any time in the transaction."""
        self.live: LiveTables | None = None
        """In a migration, where the guards capture everything and no plan is asked for."""
        self.apart = False
        """A statement runs in a transaction of its own, on a connection in AUTOCOMMIT."""
        self.autocommit: bool | None = None
        """The connection is in AUTOCOMMIT; None before anything was executed."""
        self.repeats = False
        """The transaction may be run again from its start."""
        self.imaged = False
        """No statement is captured by the application, only what guards record."""
        self.notices: NoticeState | None = None
        """What notices said since the transaction began; looked up when it is first asked for."""
        self.routes: dict[str | None, Mapping[str, int | None]] = {}
        """What names of tenants' tables mean, by the search path; None where it is not known."""

    @property
    def binding(self) -> Binding:
        """What the transaction knows of its database; set by its first write."""
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
    def has_binding(self) -> bool:
        """The database was looked at, which the first write to a tracked table does."""
        return self._binding is not None

    def forget_binding(self) -> None:
        """Look at the database anew before the next write."""
        self._binding = None

    def alter(self) -> None:
        """A statement altered tables, or may have."""
        self._binding = None
        self.altered = self.alters = True

    def join_migration(self, live: LiveTables) -> None:
        """From here on this is a migration's transaction; what it wrote before is not known."""
        self._binding = None
        self.live, self.wrote = live, True
        self.owned, self.owned_outside = False, self.owned

    def leave_migration(self) -> None:
        """From here on the transaction is captured as others are."""
        self.alter()
        self.live, self.owned = None, self.owned_outside

    @property
    def receipts(self) -> list[Receipt]:
        """Of every record of the transaction, those that were settled first."""
        return [*(r for frame in self.frames for r in frame.receipts), *self.sent]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, statements are the log's own."""
        busy, wrote = self.busy, self.wrote
        self.busy = True
        try:
            yield
        finally:
            self.busy, self.wrote = busy, wrote

    def leave(self, *, explicit: bool, goes_on: bool) -> bool:
        """A session's transaction ended; whether something is recorded in that of the connection.

        That may go on: with other sessions, in a migration, or because it was not the session's
        own. Then what was flushed without a commit is still in it.
        """
        self.sessions -= 1
        if self.live is not None:
            return True
        self.end, self.owned = CommitPhase(), self.sessions > 0
        if self.notices is not None:
            self.notices.in_session = self.owned
        return self.owned or (goes_on and (explicit or self.dirty))

    # -- savepoints -----------------------------------------------------------------------

    def push(self, name: str) -> None:
        """SAVEPOINT."""
        self.frames.append(Frame(name))

    def roll_back(self, name: str) -> None:
        """ROLLBACK TO SAVEPOINT: what happened since is gone, the savepoint itself stays."""
        self.routes.clear()
        place = find_frame(self.frames, name)
        if place is None:
            # A savepoint from before the session joined the transaction: all of this is gone.
            self.frames = [Frame("")]
        else:
            self.frames = roll_back_frames(self.frames, place)

    def release(self, name: str) -> None:
        """RELEASE SAVEPOINT: what happened since belongs to the enclosing frame."""
        place = find_frame(self.frames, name)
        if place is None:
            return
        outer = self.frames[place - 1]
        for frame in self.frames[place:]:
            outer.absorb(frame, place=place - 1)
        del self.frames[place:]

    # -- recording ------------------------------------------------------------------------

    def record(self, changes: list[RowChange], *, tally: int = 0) -> None:
        """Add changes to the innermost frame; `tally` is what guards count of them."""
        self.frames[-1].changes += changes
        self.frames[-1].tally += tally

    @property
    def is_late(self) -> bool:
        """Listeners wrote rows since COMMIT was announced, and no savepoint of theirs is open."""
        return not self.busy and self.end.is_late(self.frames)

    def note_write(self, statement: str) -> None:
        """A statement that may write is about to be sent."""
        self.wrote = True
        if not self.busy and match_control(statement) is None:
            self.end.reopen(self.frames)

    # -- names of tables ------------------------------------------------------------------

    def note_names(self, tables: Iterable[NamedTable], path: str | None) -> None:
        """These tables are about to be written by name, under the search path `path`."""
        for table in tables:
            self.frames[-1].unchecked[table] = path

    @property
    def has_unchecked(self) -> bool:
        """Names of tables have to be compared before they may mean something else."""
        return any(frame.unchecked for frame in self.frames)

    @property
    def unchecked(self) -> dict[NamedTable, str | None]:
        """The tables whose names have to be compared, each with its search path."""
        unchecked: dict[NamedTable, str | None] = {}
        for frame in self.frames:
            unchecked.update(frame.unchecked)
        return unchecked

    def mark_checked(self) -> None:
        """All names were compared."""
        for frame in self.frames:
            frame.unchecked.clear()

    # -- statements -----------------------------------------------------------------------

    def begin_statement(self, statement: object) -> None:
        """A statement on a tracked table is about to be sent."""
        self.frames[-1].statements.add(statement)

    def end_statement(self, statement: object) -> None:
        """The statement's effect was observed, or it had none."""
        for frame in self.frames:
            frame.statements.discard(statement)

    def fail(self, failure: OplogError) -> None:
        """Remember that a change was not captured: this frame cannot be committed any more."""
        frame = self.frames[-1]
        frame.failure = frame.failure or failure

    # -- entries, tickets, metadata, keys -------------------------------------------------

    def add_entry(self, entry: Entry, ticket: Ticket) -> None:
        """Add an explicit entry; its ticket must have been taken in this transaction."""
        self.check_ticket(entry.aggregate, ticket)
        self.frames[-1].entries.append(entry)

    def check_ticket(self, aggregate: str, ticket: Ticket) -> None:
        """Raise `TicketConflictError` unless the ticket is this transaction's for `aggregate`."""
        held = self.find_ticket(aggregate)
        if held is not ticket:
            raise TicketConflictError(
                f"the ticket for {getattr(ticket, 'aggregate', ticket)!r} was not taken for "
                f"{aggregate!r} in this transaction",
                hint="call take_ticket in the transaction that appends; a ticket does not "
                "outlive its transaction or savepoint",
                # The same work would make the same mistake again.
                retryable=False,
            )

    def add_ticket(self, ticket: Ticket) -> None:
        """Hold a ticket until the frame ends."""
        self.frames[-1].tickets[ticket.aggregate] = ticket

    def list_unticketed(self) -> dict[str, Frame]:
        """Aggregates written since the last call that hold no ticket yet, in lock order.

        Each with the outermost frame that wrote it, because rolling back a savepoint inside
        that frame must not take the ticket away. A change whose aggregate is not known yet is
        left out: its ticket is redeemed at whatever version it has then. So is an aggregate
        that this transaction creates: there is nothing that could have been read of it.
        """
        names: dict[str, Frame] = {}
        for frame in self.frames:
            for change in frame.changes[frame.ticketed :]:
                group = change.group or change.values
                name = find_aggregate(change.bound, change.key, group)
                if name is None or name in names or self.find_ticket(name) is not None:
                    continue
                if change.kind is OpType.CREATE and has_own_aggregate(change.bound):
                    frame.created.add(name)
                elif not any(name in one.created for one in self.frames):
                    names[name] = frame
            frame.ticketed = len(frame.changes)
        return {name: names[name] for name in order_aggregates(names)}

    def find_ticket(self, aggregate: str) -> Ticket | None:
        """The ticket held for an aggregate: the first one taken protects the longest."""
        for frame in self.frames:
            found = frame.tickets.get(aggregate) or frame.redeemed.get(aggregate)
            if found is not None:
                return found
        return None

    def annotate(self, metadata: Mapping[str, list[str]]) -> None:
        """Describe the transaction; the later value of a key replaces the earlier one."""
        self.frames[-1].metadata.update(metadata)

    @property
    def claim(self) -> Claim | None:
        """The idempotency key that the transaction holds."""
        for frame in self.frames:
            if frame.claim is not None:
                return frame.claim
        return None

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

    # -- commit ---------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """There is something to write, or a failure to report."""
        for frame in self.frames:
            if frame.changes or frame.entries or frame.failure or frame.statements:
                return True
        # A key that was not used before has to be used up, even if nothing else happens.
        claim = self.claim
        return claim is not None and not claim.receipts

    def freeze(self) -> RecordedWork:
        """Everything that survived, as one value; what is recorded later is not in it.

        Raises the first failure to capture a statement that was not rolled back.
        """
        self.raise_failure()
        claim, metadata = self.claim, list_metadata(self.frames)
        if claim is not None and claim.fingerprint is not None:
            metadata.append((REQUEST, claim.fingerprint))
        changes: list[RowChange] = []
        entries: list[Entry] = []
        tickets: dict[str, Ticket] = {}
        tally = 0
        for frame in self.frames:
            changes += frame.changes
            entries += frame.entries
            tally += frame.tally
            for aggregate, ticket in frame.tickets.items():
                # The first ticket taken protects the longest.
                tickets.setdefault(aggregate, ticket)
        return RecordedWork(
            log=self.binding,
            changes=changes,
            entries=entries,
            tickets=tickets,
            metadata=metadata,
            claim=claim,
            tally=tally,
        )

    def settle(self, receipts: list[Receipt]) -> None:
        """What is recorded so far was appended, and the transaction goes on."""
        settle_frames(self.frames, receipts)

    def end_apart(self) -> None:
        """The statement's own transaction ended; what follows is another one."""
        self.frames[-1].abandon()
        self.apart = self.wrote = False
        if self.notices is not None:
            self.notices.told = False
        self.forget_binding()

    def restart(self, *, committed: bool) -> None:
        """COMMIT or ROLLBACK was sent as a statement: the driver begins another transaction."""
        self.frames = [Frame("", receipts=self.receipts if committed else [])]

    def raise_failure(self) -> None:
        """Raise the first failure to capture a statement that was not rolled back."""
        for frame in self.frames:
            frame.raise_failure()

    def close(self) -> None:
        """The entries are built; they are sent before anything else is recorded."""
        self.frames = self.end.close(self.frames, self.claim)
