"""What the model's objects hold: heads, segments, manifests, and digests in place of bytes.

Knows nothing of stores and processes. The hard thing is speed: equal content has one digest, a
small number, so that "the same bytes" is a comparison of integers, and what an object holds is
looked up by digest. A reference is a `Path` with the digest that the object must have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

FAN = 3
"""Items of an index node; sixteen in the product."""
ROWS = 5
CHUNKS = 2


class Path(NamedTuple):
    """A name in the store: kind, the number it sorts by, and the digest of the bytes."""

    kind: str
    order: int
    digest: int = 0


HINT = Path("LATEST", 0)
ROOT = Path("ROOT", 0)
MARKER = Path("COLLECTED", 0)


class Cursor(NamedTuple):
    """A snapshot: transactions below `xmax` were finished, except those still in progress."""

    xmax: int = 0
    xip: frozenset[int] = frozenset()

    def shows(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.xip


class Item(NamedTuple):
    """A segment, or an index node of several, as heads and nodes refer to it."""

    first: int
    last: int
    path: Path


class Segment(NamedTuple):
    first: int
    records: tuple[int, ...]
    generation: int


class Manifest(NamedTuple):
    sequence: int
    chain: int
    mint: int
    base: tuple[Path, ...]
    layers: tuple[Path, ...]


class Snapshot(NamedTuple):
    sequence: int
    chain: int
    path: Path


class Head(NamedTuple):
    number: int
    nonce: int
    previous: int
    generation: int
    forked_from: int
    lost: tuple[Path, ...]
    epoch: int
    writer: str
    timeline: int
    cursor: Cursor
    sequence: int
    chain: int
    levels: tuple[tuple[Item, ...], ...]
    types: Path | None
    snapshots: tuple[Snapshot, ...]
    first_sequence: int
    horizon: int
    key: int = 1
    """Whose signature it has; 0 for anybody's but the publisher's."""
    replaced: tuple[int, ...] = ()


class Row(NamedTuple):
    """The acknowledgement in Postgres. It travels with the database."""

    epoch: int
    number: int
    generation: int
    sequence: int
    chain: int
    cursor: Cursor


class Table:
    """Digests and what they stand for."""

    def __init__(self) -> None:
        self._digests: dict[Hashable, int] = {}
        self._contents: list[Any] = [None]
        self._reached: dict[int, frozenset[Path]] = {}
        self.empty_chain = self.digest(())

    def digest(self, content: Hashable) -> int:
        found = self._digests.get(content)
        if found is None:
            found = self._digests[content] = len(self._contents)
            self._contents.append(content)
        return found

    def content(self, digest: int) -> Any:
        return self._contents[digest]

    def history(self, chain: int) -> tuple[int, ...]:
        """The records that a chain value stands for, oldest first."""
        records: tuple[int, ...] = self._contents[chain]
        return records

    def list_leaves(self, head: Head) -> Iterator[Item]:
        """The segments of the log that is kept, in order."""
        for level in reversed(head.levels):
            for item in level:
                yield from self._list_below(item, oldest=head.first_sequence)

    def _list_below(self, item: Item, *, oldest: int) -> Iterator[Item]:
        if item.last < oldest:
            return
        if item.path.kind == "LOG":
            yield item
            return
        for child in self._contents[item.path.digest]:
            yield from self._list_below(child, oldest=oldest)

    def reach(self, head: Head) -> frozenset[Path]:
        """Everything that somebody who has this head may ask for."""
        digest = self.digest(head)
        found = self._reached.get(digest)
        if found is None:
            found = self._reached[digest] = frozenset(self._list_reached(head))
        return found

    def _list_reached(self, head: Head) -> Iterator[Path]:
        yield from head.lost
        if head.types is not None:
            yield head.types
        for snapshot in head.snapshots:
            yield snapshot.path
            manifest: Manifest = self._contents[snapshot.path.digest]
            yield from manifest.base
            yield from manifest.layers
        waiting = [item for level in head.levels for item in level]
        while waiting:
            item = waiting.pop()
            if item.last < head.first_sequence:
                continue
            yield item.path
            if item.path.kind == "INDEX":
                waiting += self._contents[item.path.digest]

    def restore(self, manifest: Manifest) -> dict[int, int]:
        """The tables that a snapshot's chunks and layers make."""
        state: dict[int, int] = {}
        for path in (*manifest.base, *manifest.layers):
            state.update(self._contents[path.digest][1])
        return state


def fold(records: tuple[int, ...]) -> dict[int, int]:
    """The tables after these records: who wrote each row last."""
    return {record % ROWS: record for record in records}
