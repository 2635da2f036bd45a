"""Entries that a failover forgot, done again: the only copy of them is the archive's.

Reads a lost branch and applies what its entries did, through a session that is logged, so that
they are new entries like any other. Must not overwrite what happened since: an effect that does
not fit the row it meets stops its transaction, and is reported. The hard thing is to do nothing
twice: each lost transaction has an idempotency key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from oplog.archive.archive import Archive
from oplog.archive.head import Branch, Head
from oplog.archive.source import ArchivedLog
from oplog.catalog import TypeCatalog
from oplog.codec import effect_to_operation
from oplog.entry import Operation, OpType
from oplog.errors import ConfigurationError, ReplayError, UnknownTypeError
from oplog.reader import EntryReader
from oplog.store import StoredEntry

REPLAYED = "oplog.replayed"
"""Metadata key of what was done again: generation and sequence of its first entry."""


@dataclass(frozen=True, slots=True)
class LostTransaction:
    """A transaction of a lost branch: its first sequence, entries, metadata, operations."""

    generation: int
    sequence: int
    entries: int
    metadata: Mapping[str, list[str]]
    operations: tuple[Operation, ...]

    @property
    def key(self) -> str:
        """What it can be done again under, once."""
        return f"oplog/replayed/{self.generation}/{self.sequence}"


@dataclass(frozen=True, slots=True)
class RefusedTransaction:
    """A lost transaction that does not fit what is there now, and why."""

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReplayLostReport:
    """What became of a lost branch.

    `replayed` transactions were done again now or before, `refused` do not fit and were left
    alone, one by one, for somebody to decide.
    """

    generation: int
    replayed: int
    refused: list[RefusedTransaction] = field(default_factory=list)


def find_branch(head: Head, generation: int | None) -> Branch:
    """The branch that a generation lost, or the newest; `ConfigurationError` without one."""
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
    """The entries of a lost branch, as a log to read; its first segment may begin before."""
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
    source: ArchivedLog, reader: EntryReader, *, is_lost: Callable[[StoredEntry], bool]
) -> Iterator[LostTransaction]:
    """Transactions of a branch that the database does not have, in their order."""
    group: list[StoredEntry] = []
    first = 0
    for page in source.iterate_sequence(after=source.first_sequence - 1):
        for sequence, entry in enumerate(page.entries, page.first):
            first = first if group else sequence
            group.append(entry)
            if len(group) < entry.transaction_size:
                continue
            if any(is_lost(one) for one in group):
                yield _open(source, reader, group, first)
            group = []


def _open(
    source: ArchivedLog, reader: EntryReader, group: Sequence[StoredEntry], first: int
) -> LostTransaction:
    effects = [effect for one in group for effect in reader.open(one).effects]
    effects.sort(key=lambda effect: effect.ordinal)
    return LostTransaction(
        source.generation,
        first,
        len(group),
        next(iter(reader.read_metadata(group[:1]))),
        tuple(effect_to_operation(effect) for effect in effects),
    )


def apply_lost(session: Session, transaction: LostTransaction, catalog: TypeCatalog) -> None:
    """Do in a logged session what a lost transaction did; `ReplayError` where it does not fit."""
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
    return ReplayError(
        f"sequence {transaction.sequence} of generation {transaction.generation} cannot be done "
        f"again: {operation.kind.name} {operation.type_name} {dict(operation.key)}: {why}",
        hint="what happened since stands in its way: decide by hand",
    )
