"""Whole transactions out of entries: one is complete when it has `transaction_size` of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from oplog.errors import ChainBrokenError


class Member(Protocol):
    """An entry as a part of its transaction."""

    @property
    def transaction_position(self) -> int:
        """The position of the transaction's first entry, which no other transaction has."""
        ...

    @property
    def transaction_size(self) -> int:
        """How many entries the transaction has."""
        ...


Item = TypeVar("Item")


class TransactionGroups(Generic[Item]):
    """Holds what belongs to a transaction until all of it has come.

    Entries of several transactions may come in turns, as they do in the order of positions. What
    is held for an entry is the caller's: the entry itself, or what became of it.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[Item]] = {}
        self._sizes: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether a transaction has begun that is not complete."""
        return bool(self._held)

    def add(self, entry: Member, item: Item) -> list[Item] | None:
        """All items of the entry's transaction if this was the last of them, else None."""
        position = entry.transaction_position
        group = self._held.setdefault(position, [])
        group.append(item)
        if len(group) < entry.transaction_size:
            self._sizes[position] = entry.transaction_size
            return None
        self._sizes.pop(position, None)
        return self._held.pop(position)

    def require_complete(self, *, hint: str) -> None:
        """Raise `ChainBrokenError` if a transaction lacks entries; to be called at the end."""
        if not self._held:
            return
        position = min(self._held)
        raise ChainBrokenError(
            f"the transaction at position {position} has {len(self._held[position])} of "
            f"{self._sizes[position]} entries",
            hint=hint,
        )


def count_missing(entries: Iterable[Member]) -> dict[int, int]:
    """How many entries each transaction lacks that is not complete, by its position."""
    missing: dict[int, int] = {}
    for entry in entries:
        position = entry.transaction_position
        missing[position] = missing.get(position, entry.transaction_size) - 1
    return {position: count for position, count in missing.items() if count > 0}
