"""The next head, and the content that has to be in the store before it.

Pure, apart from minting names. Must not decide whether to publish. The hard thing is a fork: what
was published above it stays reachable as lost, and nothing above it may be built upon.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from oplog.archive.step import Step
from tests.model.comparison import Base
from tests.model.postgres import Record
from tests.model.rules import Rules
from tests.model.values import (
    CHUNKS,
    FAN,
    Head,
    Item,
    Manifest,
    Path,
    Segment,
    Snapshot,
    Table,
    fold,
)

Put = tuple[Step, Path]
Levels = tuple[tuple[Item, ...], ...]
LAYERS = 2
"""Delta layers before a snapshot is written in full again."""


@dataclass(slots=True)
class Mint:
    """Names that were never used: the epoch, then a counter."""

    epoch: int
    counter: int = 0

    @property
    def following(self) -> int:
        return self.epoch * 1000 + self.counter + 1

    def draw(self) -> int:
        self.counter += 1
        return self.epoch * 1000 + self.counter


@dataclass(slots=True)
class Pending:
    """A snapshot whose objects are being put while the log goes on being published."""

    snapshot: Snapshot
    base: Snapshot | None
    generation: int
    first_mint: int
    puts: list[Put]


@dataclass(slots=True)
class Builder:
    """Puts together what one pass publishes."""

    table: Table
    rules: Rules
    mint: Mint
    puts: list[Put] = field(default_factory=list)

    def _put(self, step: Step, kind: str, *, order: int, content: object) -> Path:
        path = Path(kind, order, self.table.digest(content))
        self.puts.append((step, path))
        return path

    def grow(self, levels: Levels, base: Base, *, news: tuple[Record, ...]) -> Levels:
        """Append a segment; close nodes that are full."""
        first = base.sequence + 1
        segment = Segment(first, tuple(record.uid for record in news), base.generation)
        path = self._put(Step.PUT_SEGMENT, "LOG", order=first, content=segment)
        edge = [list(level) for level in levels] or [[]]
        edge[0].append(Item(first, base.sequence + len(news), path))
        height = 0
        while len(edge[height]) >= FAN:
            items = tuple(edge[height])
            edge[height] = []
            order = items[-1].last if self.rules.index_by_last else items[0].first
            path = self._put(Step.PUT_INDEX, "INDEX", order=order, content=items)
            height += 1
            if height == len(edge):
                edge.append([])
            edge[height].append(Item(items[0].first, items[-1].last, path))
        return tuple(tuple(level) for level in edge)

    def put_types(self, head: Head | None, *, sequence: int) -> Path:
        """Descriptors that the log needs; they change now and then."""
        content = ("types", sequence // 5)
        if head and head.types and self.table.content(head.types.digest) == content:
            return head.types
        return self._put(Step.PUT_TYPES, "BLOB", order=self.mint.draw(), content=content)

    def cut(self, head: Head, base: Base) -> tuple[Levels, tuple[Path, ...]]:
        """The log through the fork, and what was published above it.

        A segment that reaches across the fork is written anew, shorter. That needs it to begin
        at or after the first sequence that is kept, which it does because retention drops whole
        segments.
        """
        kept: list[Item] = []
        lost: list[Path] = []
        for leaf in self.table.list_leaves(head):
            if leaf.last <= base.sequence:
                kept.append(leaf)
                continue
            lost.append(leaf.path)
            if leaf.first <= base.sequence:
                whole: Segment = self.table.content(leaf.path.digest)
                records = whole.records[: base.sequence - leaf.first + 1]
                shorter = Segment(leaf.first, records, base.generation)
                path = self._put(Step.PUT_SEGMENT, "LOG", order=leaf.first, content=shorter)
                kept.append(Item(leaf.first, base.sequence, path))
        # Nodes are not rebuilt: the items wait at the edge, and the next one closes them all.
        return (tuple(kept),), tuple(lost)

    def begin_snapshot(self, snapshots: tuple[Snapshot, ...], base: Base) -> Pending:
        """Chunks for the tables after `base`, or a layer over the newest snapshot's."""
        first_mint = self.mint.following
        history = self.table.history(base.chain)
        state = fold(history)
        puts: list[Put] = []

        def put(step: Step, content: object) -> Path:
            path = Path("BLOB", self.mint.draw(), self.table.digest(content))
            puts.append((step, path))
            return path

        below = snapshots[-1] if snapshots else None
        manifest: Manifest | None = self.table.content(below.path.digest) if below else None
        if below and manifest and len(manifest.layers) < LAYERS:
            changed = fold(history[below.sequence :])
            chunks = manifest.base
            layers = (*manifest.layers, put(Step.PUT_CHUNK, ("layer", tuple(changed.items()))))
        else:
            below, layers = None, ()
            chunks = tuple(
                put(
                    Step.PUT_CHUNK,
                    (part, tuple((k, v) for k, v in sorted(state.items()) if k % CHUNKS == part)),
                )
                for part in range(CHUNKS)
            )
        made = Manifest(base.sequence, base.chain, self.mint.draw(), chunks, layers)
        path = Path("SNAPSHOT", base.sequence, self.table.digest(made))
        puts.append((Step.PUT_MANIFEST, path))
        snapshot = Snapshot(base.sequence, base.chain, path)
        return Pending(snapshot, below, base.generation, first_mint, puts)


def retain(head: Head, dropped: int, *, table: Table) -> Head:
    """Drop one of several snapshots, and whole segments below the oldest that is kept."""
    snapshots = (*head.snapshots[:dropped], *head.snapshots[dropped + 1 :])
    if not snapshots:
        return head
    needed = snapshots[0].sequence + 1
    first = next(
        (leaf.first for leaf in table.list_leaves(head) if leaf.last >= needed),
        head.sequence + 1,
    )
    first = max(first, head.first_sequence)
    levels = tuple(tuple(item for item in level if item.last >= first) for level in head.levels)
    return head._replace(snapshots=snapshots, first_sequence=first, levels=levels)
