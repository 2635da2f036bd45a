"""Whether the entries of each aggregate follow one another: versions by one, and hashes.

The one place in Python that says so; `oplog.store.links` says it in SQL. Whether an entry's hash
is that of its bytes is another question, which `hashing` answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from oplog.crypto.hashing import ZERO_HASH
from oplog.errors import ChainBrokenError


class ChainHead(NamedTuple):
    """The newest entry of an aggregate, as far as the next one depends on it."""

    version: int
    entry_hash: bytes


BEGINNING = ChainHead(0, ZERO_HASH)
"""What the first entry of an aggregate follows."""


class LinkedEntry(Protocol):
    """An entry as a link of its aggregate's chain."""

    @property
    def position(self) -> int:
        """Its place in the log's tables, by which an error names it."""
        ...

    @property
    def aggregate(self) -> str:
        """The aggregate's name."""
        ...

    @property
    def version(self) -> int:
        """Counts the aggregate's entries, from 1."""
        ...

    @property
    def prev_hash(self) -> bytes:
        """The hash of the aggregate's entry before."""
        ...

    @property
    def entry_hash(self) -> bytes:
        """The entry's own hash."""
        ...


def follows(before: ChainHead, *, version: int, prev_hash: bytes) -> bool:
    """Whether an entry with this version and link comes right after `before`."""
    return version == before.version + 1 and prev_hash == before.entry_hash


class ChainCheck:
    """Holds the entries that it is fed to the ones before, aggregate by aggregate.

    With `whole`, the first entry of an aggregate must be its version 1; else it may be any, as in
    a log whose beginning is not kept. `heads` are entries that are known to come before.
    """

    def __init__(self, *, whole: bool = True, heads: Mapping[str, ChainHead] | None = None) -> None:
        self._whole = whole
        self._heads = dict(heads or {})

    def find_break(self, entry: LinkedEntry) -> ChainHead | None:
        """Take the next entry; what it should have followed, None if it does.

        Either way the entry is what the next one of its aggregate has to follow.
        """
        before = self._heads.get(entry.aggregate)
        self._heads[entry.aggregate] = ChainHead(entry.version, entry.entry_hash)
        if before is None:
            if not self._whole:
                return None
            before = BEGINNING
        fits = follows(before, version=entry.version, prev_hash=entry.prev_hash)
        return None if fits else before

    def require(self, entry: LinkedEntry, *, hint: str) -> None:
        """`find_break`, and `ChainBrokenError` if the entry does not follow."""
        before = self.find_break(entry)
        if before is not None:
            raise ChainBrokenError(
                f"position {entry.position} (aggregate {entry.aggregate!r} version "
                f"{entry.version}) does not follow version {before.version}",
                hint=hint,
            )
