"""Applies the transactions of a lost branch again, as new records; only the archive has them.

Changes go through a session that is logged. A transaction is applied only if each of its
aggregates is still as the transaction found it; otherwise it is skipped and reported. Each has an
idempotency key of its own, so that none is applied twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import Branch, Head
from oplog.catalog import TypeCatalog
from oplog.crypto.hashing import ZERO_HASH
from oplog.entry import LoggedEntry, Operation, OpType
from oplog.errors import ConfigurationError, ReplayError, UnknownTypeError
from oplog.reading.reader import RecordReader, group_pairs
from oplog.receipt import Receipt
from oplog.store import StoredRecord
from oplog.store.guard_state import ImageCount
from oplog.store.rows import Link

REPLAYED = "oplog.replayed"
"""Metadata key of a reapplied transaction: generation and sequence of the lost one."""
_OWN_PREFIX = "oplog/"
"""Prefix of the aggregates in which the log writes its own marks, which belong to no row."""
MOST_CONFLICTS = 10
"""Entries of one aggregate that a refusal names."""
Heads = Mapping[str, tuple[int, bytes]]
"""Version and hash of the newest record of each aggregate that the database has."""


@dataclass(frozen=True, slots=True)
class LostTransaction:
    """A transaction of a lost branch: the sequence of its record, and what that says.

    `entries` is how many aggregates the record has; `links` are those that belong to rows. What a
    quarantined record did is not known: `quarantined` names it.
    """

    generation: int
    sequence: int
    entries: int
    metadata: Mapping[str, list[str]]
    operations: tuple[Operation, ...]
    links: tuple[Link, ...] = ()
    quarantined: str | None = None

    @property
    def aggregates(self) -> list[str]:
        """The aggregates of its links."""
        return [link.aggregate for link in self.links]

    @property
    def key(self) -> str:
        """The idempotency key under which it is applied again."""
        return f"oplog/replayed/{self.generation}/{self.sequence}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """What was written, since the failover, where a lost transaction wrote.

    Entry `version` of `aggregate`: when it was recorded, the metadata that says who wrote it, and
    which columns of which type it wrote.
    """

    aggregate: str
    version: int
    recorded_at: datetime
    metadata: Mapping[str, list[str]]
    columns: Mapping[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """The conflict as one JSON object."""
        return {**asdict(self), "recorded_at": self.recorded_at.isoformat()}


@dataclass(frozen=True, slots=True)
class RefusedTransaction:
    """A lost transaction that was not applied again, why, and what was written there since."""

    sequence: int
    reason: str
    conflicts: tuple[Conflict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The transaction as one JSON object."""
        return {
            "sequence": self.sequence,
            "reason": self.reason,
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
        }


@dataclass(frozen=True, slots=True)
class ReplayLostReport:
    """What became of a lost branch.

    `replayed` is the number of transactions applied again, now or before. Those in `refused`
    conflict with the database and were skipped, for an operator to decide.
    """

    generation: int
    replayed: int
    refused: list[RefusedTransaction] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "generation": self.generation,
            "replayed": self.replayed,
            "refused": [one.to_json() for one in self.refused],
        }


def find_branch(head: Head, generation: int | None) -> Branch:
    """The lost branch of a generation, or the newest; `ConfigurationError` if there is none."""
    found = [b for b in head.branches if generation is None or b.generation == generation]
    if not found:
        raise ConfigurationError(
            "the archive has no lost branch"
            + ("" if generation is None else f" of generation {generation}"),
            hint="oplog fork inspect lists them; a fork that is not published yet has none: "
            "oplog fork abandon makes it one",
        )
    return found[-1]


def open_branch(archive: Archive, head: Head, branch: Branch, *, schema: str) -> ArchivedLog:
    """A lost branch as a log to read; its first segment may have earlier records too."""
    items = [item for row in reversed(branch.levels) for item in row]
    lost = replace(
        head,
        generation=branch.generation,
        sequence=branch.last,
        chain=items[-1].chain,
        levels=branch.levels,
        first_sequence=branch.sequence + 1,
        snapshots=(),
        branches=(),
        cursor=None,
    )
    return ArchivedLog(archive, lost, schema=schema)


def iterate_lost(
    source: ArchivedLog, reader: RecordReader, *, is_lost: Callable[[StoredRecord], bool]
) -> Iterator[LostTransaction]:
    """Transactions of a branch whose record `is_lost`, in the branch's order."""
    for page in source.iterate_sequence(after=source.first_sequence - 1):
        for sequence, stored in enumerate(page.records, page.first):
            if is_lost(stored):
                yield _open(source, reader, stored, sequence)


def _open(
    source: ArchivedLog, reader: RecordReader, stored: StoredRecord, sequence: int
) -> LostTransaction:
    opened = reader.open(stored)
    return LostTransaction(
        generation=source.generation,
        sequence=sequence,
        entries=len(stored.aggregates),
        metadata=group_pairs(stored.metadata),
        operations=tuple(operation for _, operation in reader.list_operations(opened)),
        quarantined=None if opened.skipped is None else opened.skipped.describe(),
        links=tuple(
            link for link in stored.list_links() if not link.aggregate.startswith(_OWN_PREFIX)
        ),
    )


class Succession:
    """The new record for each lost record whose transaction was applied again.

    A lost transaction that follows an earlier lost one is applied only on top of that one's new
    record.
    """

    def __init__(self) -> None:
        # By aggregate and hash: one record is a link of several aggregates, and which of them the
        # new record has is a question of its own.
        self._renewed: dict[tuple[str, bytes], bytes] = {}
        self._refused: dict[tuple[str, bytes], int] = {}

    def check(self, transaction: LostTransaction, heads: Heads, *, overwrite: bool = False) -> None:
        """Raise `ReplayError` unless all its aggregates are as the transaction found them.

        With `overwrite`, only if nothing is known of what it did.
        """
        if transaction.quarantined is not None:
            raise ReplayError(
                f"what it did cannot be read: {transaction.quarantined}",
                hint="write by hand what is known of it",
            )
        if overwrite:
            return
        for link in transaction.links:
            version, found = heads.get(link.aggregate, (0, ZERO_HASH))
            expected = link.aggregate, link.prev_hash
            if link.version == 1:
                fits = version == 0
            else:
                fits = found == self._renewed.get(expected, link.prev_hash)
            if fits:
                continue
            before = self._refused.get(expected)
            if before is not None:
                why = f"it goes on from sequence {before}, which was not done again"
            elif version < link.version - 1:
                why = f"what it goes on from is not there: version {version} is the newest"
            else:
                why = f"version {version} was written since"
            raise _refuse(transaction, f"aggregate {link.aggregate!r}: {why}")

    def add_done(self, transaction: LostTransaction, receipts: Iterable[Receipt]) -> None:
        """Note that the transaction was applied again, now or before, with these receipts."""
        written = {one.aggregate: one.entry_hash for one in receipts}
        for link in transaction.links:
            if written.get(link.aggregate):
                self._renewed[link.aggregate, link.record_hash] = written[link.aggregate]

    def add_refused(self, transaction: LostTransaction) -> None:
        """Note that the transaction was skipped; those that follow it are refused."""
        for link in transaction.links:
            self._refused[link.aggregate, link.record_hash] = transaction.sequence


def find_conflicts(
    transaction: LostTransaction, entries: Callable[[str], Iterable[LoggedEntry]]
) -> tuple[Conflict, ...]:
    """What was written since to the aggregates of a lost transaction, the first few of each.

    `entries` gives those of an aggregate that the database has.
    """
    return tuple(
        Conflict(
            aggregate=link.aggregate,
            version=entry.version,
            recorded_at=entry.recorded_at,
            metadata=entry.metadata,
            columns=_list_columns(entry.operations),
        )
        for link in transaction.links
        for entry in islice(
            (one for one in entries(link.aggregate) if one.version >= link.version),
            MOST_CONFLICTS,
        )
    )


def _list_columns(operations: Iterable[Operation]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for operation in operations:
        written = found.setdefault(operation.type_name, set())
        written.update(name for name in operation.fields if name not in operation.key)
    return {name: sorted(columns) for name, columns in found.items()}


def check_extent(
    transaction: LostTransaction, counts: Iterable[ImageCount], *, oids: Mapping[str, int]
) -> None:
    """Raise `ReplayError` if applying it again changed rows that the transaction did not change.

    A cascade or a trigger may change rows that were written since. `counts` are the rows that
    guards counted of unannounced statements, `oids` the tables of types.
    """
    own = Counter((oids[one.type_name], one.kind) for one in transaction.operations)
    kinds = {"I": OpType.CREATE, "U": OpType.UPDATE, "D": OpType.DELETE}
    for count in counts:
        if count.rows > own[count.relation, kinds[count.operation]]:
            raise _refuse(
                transaction,
                f"it would also change rows of {count.table} that it did not change before",
            )


def apply_lost(session: Session, transaction: LostTransaction, catalog: TypeCatalog) -> None:
    """Apply a lost transaction's operations in a logged session.

    `ReplayError` if one meets no row or breaks a constraint; `UnknownTypeError` for a type that
    the catalog does not have.
    """
    for operation in transaction.operations:
        declared = catalog.types.get(operation.type_name)
        if declared is None:
            raise UnknownTypeError(
                f"the catalog has no type {operation.type_name!r}, which sequence "
                f"{transaction.sequence} changed",
                hint="register it, or do by hand what it did",
            )
        statement, values = _state(declared.table, operation)
        try:
            done = session.connection().execute(statement, values)
        except IntegrityError as cause:
            raise _misfit(transaction, operation, str(cause.orig).split("\n", 1)[0]) from cause
        if operation.kind is not OpType.CREATE and done.rowcount != 1:
            raise _misfit(transaction, operation, "the row is not there")


def _state(table: sa.Table, operation: Operation) -> tuple[Any, dict[str, Any]]:
    if operation.kind is OpType.CREATE:
        return table.insert(), {name: operation.fields[name] for name in operation.fields}
    where = sa.and_(*(table.c[name] == value for name, value in operation.key.items()))
    if operation.kind is OpType.DELETE:
        return table.delete().where(where), {}
    changed = {name: v for name, v in operation.fields.items() if name not in operation.key}
    return table.update().where(where).values(changed), {}


def _misfit(transaction: LostTransaction, operation: Operation, why: str) -> ReplayError:
    what = f"{operation.kind.name} {operation.type_name} {dict(operation.key)}"
    return _refuse(transaction, f"{what}: {why}")


def _refuse(transaction: LostTransaction, why: str) -> ReplayError:
    return ReplayError(
        f"sequence {transaction.sequence} of generation {transaction.generation} cannot be done "
        f"again: {why}",
        hint="what happened since stands in its way: decide by hand, or overwrite it",
    )
