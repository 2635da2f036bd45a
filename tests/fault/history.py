"""What clients of a faulty run say happened, and the laws that the database must agree with.

Holds events, the final state and one function per law. Must not know the database, the product
or the workload: it judges plain values, so that each law can be shown to bite. The hard thing is
what may be concluded from silence: an operation whose answer was lost, or whose client died, may
have happened or not, and only what was said about it (a receipt, a verdict) binds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

INVOKED = "invoked"
ACKNOWLEDGED = "acknowledged"
FAILED = "failed"
UNKNOWN = "unknown"
RESOLVED = "resolved"

COMMITTED = "COMMITTED"
ABORTED = "ABORTED"
PENDING = "PENDING"

NO_HASH = "00" * 32
"""What the first record of an aggregate follows."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A receipt as a client holds it; version 0 and no hash where the answer was lost."""

    record_id: str
    aggregate: str
    version: int
    record_hash: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a client's journal. `at` is the machine's monotonic clock, for all clients.

    Of an operation with an idempotency key, `INVOKED` carries `key` and `request`. A verdict
    is about the receipts of the event, or about the operation's key where it has none.
    """

    what: str
    operation: str
    at: int
    receipts: tuple[Promise, ...] = ()
    key: str | None = None
    request: str | None = None
    verdict: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """An entry as the database holds it in the end, with what it shares with its record.

    `digest` stands for the record's sealed bytes; `position` is that of the transaction;
    `operation` is the metadata that its writer gave it; `seen` and `value` are what it read of
    its counter and what it wrote.
    """

    record_id: str
    aggregate: str
    version: int
    record_hash: str
    prev_hash: str
    digest: str
    position: int
    operation: str
    key: str | None
    seen: int
    value: int


def locate(one: Promise | KeptEntry) -> tuple[str, str]:
    """The record that an entry is in, and its aggregate."""
    return one.record_id, one.aggregate


@dataclass(frozen=True)
class State:
    """The database at the end; `earlier` are entries as they were read on the way."""

    entries: list[KeptEntry]
    tickets: Mapping[str, int]
    """Version by aggregate; one that was created and not changed after has none."""
    rows: Mapping[str, int]
    """What the application's own tables count, by aggregate."""
    complaints: list[str] = field(default_factory=list)
    """What `log.verify` and the product's own check of links found."""
    earlier: Mapping[tuple[str, str], KeptEntry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Violation:
    """A law that does not hold, and where."""

    law: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.law}: {self.where}: {self.text}"


@dataclass(slots=True)
class Account:
    """All that was said about one operation."""

    invoked: Event
    end: Event | None = None
    """Acknowledged, failed or unknown; None when the client died."""
    verdicts: list[Event] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        """The client was told that it is committed."""
        return self.end is not None and self.end.what == ACKNOWLEDGED


class History:
    """The journals of all clients, by operation. Refuses what no honest client would write."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.accounts: dict[str, Account] = {}
        for event in sorted(events, key=lambda e: (e.at, e.what != INVOKED)):
            account = self.accounts.get(event.operation)
            if event.what == INVOKED:
                if account is not None:
                    raise ValueError(f"{event.operation} was invoked twice")
                self.accounts[event.operation] = Account(event)
            elif account is None:
                raise ValueError(f"{event.operation} was {event.what} and never invoked")
            elif event.what == RESOLVED:
                account.verdicts.append(event)
            elif account.end is not None:
                raise ValueError(f"{event.operation} ended twice")
            else:
                account.end = event


@dataclass(frozen=True)
class Case:
    """History and state, with the indexes that several laws use."""

    history: History
    state: State
    by_id: Mapping[tuple[str, str], KeptEntry]
    by_operation: Mapping[str, list[KeptEntry]]
    by_aggregate: Mapping[str, list[KeptEntry]]
    """In the order of versions."""

    def is_promised(self, promise: Promise) -> bool:
        """The database holds what the receipt says, as far as it says anything."""
        kept = self.by_id.get(locate(promise))
        return kept is not None and (
            (not promise.version or kept.version == promise.version)
            and (not promise.record_hash or kept.record_hash == promise.record_hash)
        )


def open_case(history: History, state: State) -> Case:
    """Index both for the laws."""
    by_operation: defaultdict[str, list[KeptEntry]] = defaultdict(list)
    by_aggregate: defaultdict[str, list[KeptEntry]] = defaultdict(list)
    for entry in sorted(state.entries, key=lambda e: e.version):
        by_operation[entry.operation].append(entry)
        by_aggregate[entry.aggregate].append(entry)
    by_id = {locate(entry): entry for entry in state.entries}
    return Case(history, state, by_id, by_operation, by_aggregate)


# -- the log by itself --------------------------------------------------------------------------


def check_versions(case: Case) -> Iterator[Violation]:
    """Versions of an aggregate are 1, 2, 3, and so on: none twice, none left out."""
    for aggregate, entries in case.by_aggregate.items():
        found = [entry.version for entry in entries]
        if found != list(range(1, len(found) + 1)):
            at = next(n for n, version in enumerate(found, 1) if version != n)
            yield Violation("versions", aggregate, f"where {at} belongs is {found[at - 1]}")


def check_tickets(case: Case) -> Iterator[Violation]:
    """A ticket's version is the number of entries; from the second one on there is a ticket."""
    for aggregate in case.by_aggregate.keys() | case.state.tickets.keys():
        entries = case.by_aggregate.get(aggregate, [])
        version = case.state.tickets.get(aggregate, min(1, len(entries)))
        if version != len(entries):
            text = f"the ticket is at {version}, there are {len(entries)} entries"
            yield Violation("tickets", aggregate, text)


def check_links(case: Case) -> Iterator[Violation]:
    """Each entry follows the hash of the one before it."""
    for aggregate, entries in case.by_aggregate.items():
        before = NO_HASH
        for entry in entries:
            if entry.prev_hash != before:
                text = f"version {entry.version} does not follow the one before it"
                yield Violation("links", aggregate, text)
            before = entry.record_hash


def check_records(case: Case) -> Iterator[Violation]:
    """Entries with one record id have one record: one position, hash, content and key."""
    records: defaultdict[str, set[tuple[object, ...]]] = defaultdict(set)
    for one in case.state.entries:
        records[one.record_id].add((one.position, one.record_hash, one.digest, one.key))
    for record_id, found in records.items():
        if len(found) > 1:
            yield Violation("records", record_id, f"is {len(found)} records")


def check_whole(case: Case) -> Iterator[Violation]:
    """An operation happens once: its entries are those of one record, which is its own."""
    owners: dict[int, str] = {}
    for operation, entries in case.by_operation.items():
        if operation not in case.history.accounts:
            yield Violation("whole", operation, "is in the log and nobody invoked it")
        positions = sorted({entry.position for entry in entries})
        if len(positions) > 1:
            yield Violation("whole", operation, f"happened at positions {positions}")
        for position in positions:
            other = owners.setdefault(position, operation)
            if other != operation:
                yield Violation("whole", operation, f"shares a record with {other}")


def check_stable(case: Case) -> Iterator[Violation]:
    """What was read once is there for ever, byte for byte."""
    for place, earlier in case.state.earlier.items():
        kept = case.by_id.get(place)
        if kept != earlier:
            fate = "is gone" if kept is None else "is another now"
            yield Violation("stable", earlier.aggregate, f"version {earlier.version} {fate}")


def check_complaints(case: Case) -> Iterator[Violation]:
    """The product's own checks find nothing."""
    for complaint in case.state.complaints:
        yield Violation("verify", "log", complaint)


# -- the log and what clients were told ---------------------------------------------------------


def check_acknowledged(case: Case) -> Iterator[Violation]:
    """An acknowledged entry is there with the same version and hash, and there are no others."""
    for operation, account in case.history.accounts.items():
        if account.end is None or not account.acknowledged:
            continue
        receipts = account.end.receipts
        if not receipts:
            yield Violation("acknowledged", operation, "was acknowledged without a receipt")
        for promise in receipts:
            if not case.is_promised(promise):
                text = f"version {promise.version} of {promise.aggregate} is not what was promised"
                yield Violation("acknowledged", operation, text)
        promised = {locate(promise) for promise in receipts}
        for entry in case.by_operation.get(operation, []):
            if locate(entry) not in promised:
                yield Violation("acknowledged", operation, f"no receipt for {entry.aggregate}")


def check_failed(case: Case) -> Iterator[Violation]:
    """What definitely failed is not there."""
    for operation, account in case.history.accounts.items():
        if account.end is None or account.end.what != FAILED:
            continue
        for entry in case.by_operation.get(operation, []):
            text = f"failed ({account.end.why}) and is version {entry.version} of {entry.aggregate}"
            yield Violation("failed", operation, text)


def check_verdicts(case: Case) -> Iterator[Violation]:
    """A verdict is the truth, for ever; every unknown outcome gets one.

    About receipts: COMMITTED means that all are there, ABORTED that none is. About a key:
    COMMITTED means that the key has an effect, ABORTED that this operation never has one; the
    key may be used again after that, by another.
    """
    keys = {entry.key for entry in case.state.entries if entry.key is not None}
    for operation, account in case.history.accounts.items():
        final = [event for event in account.verdicts if event.verdict != PENDING]
        if account.end is not None and account.end.what == UNKNOWN and not final:
            yield Violation("verdicts", operation, "nobody could say what became of it")
        for event in final:
            if event.receipts:
                there = [case.is_promised(promise) for promise in event.receipts]
            elif event.verdict == COMMITTED:
                there = [account.invoked.key in keys]
            else:
                there = [bool(case.by_operation.get(operation))]
            if event.verdict not in {COMMITTED, ABORTED}:
                yield Violation("verdicts", operation, f"{event.verdict} is no verdict")
            elif any(one != (event.verdict == COMMITTED) for one in there):
                text = f"{event.verdict}, and {sum(there)} of {len(there)} are there"
                yield Violation("verdicts", operation, text)


def check_keys(case: Case) -> Iterator[Violation]:
    """A key has one effect, and every acknowledged use of it got that effect's receipts.

    A key goes with one request: no two requests under one key are both acknowledged.
    """
    positions: defaultdict[str, set[int]] = defaultdict(set)
    for entry in case.state.entries:
        if entry.key is not None:
            positions[entry.key].add(entry.position)
    for key, found in positions.items():
        if len(found) > 1:
            yield Violation("keys", key, f"has effects at positions {sorted(found)}")
    uses: defaultdict[str, list[Account]] = defaultdict(list)
    for account in case.history.accounts.values():
        if account.invoked.key is not None and account.acknowledged:
            uses[account.invoked.key].append(account)
    for key, accounts in uses.items():
        ends = [account.end for account in accounts if account.end is not None]
        if len({tuple(sorted(locate(p) for p in end.receipts)) for end in ends}) > 1:
            yield Violation("keys", key, "was acknowledged with different receipts")
        if len({account.invoked.request for account in accounts}) > 1:
            yield Violation("keys", key, "was acknowledged for different requests")


def check_order(case: Case) -> Iterator[Violation]:
    """Real time: known to be committed before another began means the lower version.

    Exactly: for entries a and b of one aggregate, where some client knew a to be committed (an
    acknowledgement with its receipt, or a verdict) at a time before the operation of b was
    invoked, a's version is lower than b's.
    """
    known: dict[str, int] = {}
    for account in case.history.accounts.values():
        for event in (account.end, *account.verdicts):
            if event is not None and (event.what == ACKNOWLEDGED or event.verdict == COMMITTED):
                for promise in event.receipts:
                    known[promise.record_id] = min(event.at, known.get(promise.record_id, event.at))
    for aggregate, entries in case.by_aggregate.items():
        earliest: tuple[int, int] | None = None  # of all higher versions, and which one it is
        for entry in reversed(entries):
            writer = case.history.accounts.get(entry.operation)
            if earliest is not None and writer is not None and earliest[0] < writer.invoked.at:
                text = f"version {earliest[1]} was known before version {entry.version} began"
                yield Violation("order", aggregate, text)
            at = known.get(entry.record_id)
            if at is not None and (earliest is None or at < earliest[0]):
                earliest = (at, entry.version)


# -- the log and the application's rows ---------------------------------------------------------


def check_updates(case: Case) -> Iterator[Violation]:
    """No lost update: each entry saw exactly what the one before it wrote, and added one."""
    for aggregate, entries in case.by_aggregate.items():
        for entry in entries:
            if entry.value != entry.seen + 1:
                text = f"version {entry.version} saw {entry.seen} and wrote {entry.value}"
                yield Violation("updates", aggregate, text)
        if entries and entries[0].seen != 0:
            yield Violation("updates", aggregate, f"the first one saw {entries[0].seen}, not 0")
        for before, entry in pairwise(entries):
            if entry.seen != before.value:
                text = f"version {entry.version} saw {entry.seen}, written was {before.value}"
                yield Violation("updates", aggregate, text)


def check_rows(case: Case) -> Iterator[Violation]:
    """The rows count as many operations as the log holds entries."""
    for aggregate in case.by_aggregate.keys() | case.state.rows.keys():
        entries = len(case.by_aggregate.get(aggregate, []))
        counted = case.state.rows.get(aggregate, 0)
        if counted != entries:
            yield Violation("rows", aggregate, f"count {counted}, there are {entries} entries")


LAWS: tuple[Callable[[Case], Iterator[Violation]], ...] = (
    check_versions,
    check_tickets,
    check_links,
    check_records,
    check_whole,
    check_stable,
    check_complaints,
    check_acknowledged,
    check_failed,
    check_verdicts,
    check_keys,
    check_order,
    check_updates,
    check_rows,
)


def judge(events: Iterable[Event], state: State) -> list[Violation]:
    """Every violation of every law."""
    case = open_case(History(events), state)
    return [violation for law in LAWS for violation in law(case)]
