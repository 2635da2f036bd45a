"""Which partitions a run of pruning may drop as a whole, as far as the archive's index tells.

Whether nothing else is in a partition only the database knows, when the time has come.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oplog.archive.format.index import Item
from oplog.store import StoredRecord
from oplog.store.partition_store import Contents, Partition
from oplog.upkeep.prune_batch import Batch


@dataclass(frozen=True, slots=True)
class Stretch:
    """Partitions whose archived records all have sequences up to `through`."""

    partitions: list[Partition]
    through: int


def plan_stretches(
    items: Iterable[Item],
    partitions: Sequence[Partition],
    *,
    through: int,
    cutoff: int,
    position: int,
) -> list[Stretch]:
    """Partitions that are wholly below what can go, in the order in which they go.

    `items` are segments that were not pruned yet, oldest first. Those up to sequence `through`
    that were recorded before `cutoff`, in microseconds, can go. `position` is the highest that
    has gone before.
    """
    ends: dict[Partition, int] = {}
    highest = position
    for item in items:
        if item.last > through or item.last_recorded >= cutoff:
            break
        highest = max(highest, item.last_position)
        for partition in partitions:
            if item.first_position <= partition.last and item.last_position >= partition.first:
                ends[partition] = item.last
    stretches: list[Stretch] = []
    for partition in partitions:
        # In the one of the highest position others may follow, and appending needs it.
        if partition not in ends or partition.last > highest:
            continue
        if not stretches or ends[partition] > stretches[-1].through:
            stretches.append(Stretch([], ends[partition]))
        stretches[-1].partitions.append(partition)
    return stretches


@dataclass(slots=True)
class StretchTally:
    """What the archive has of a stretch, and was compared: counts, and positions."""

    stretch: Stretch
    others: array[int] = field(default_factory=lambda: array("q"))
    """Positions of records in other partitions."""
    kept: array[int] = field(default_factory=lambda: array("q"))
    """Positions of records that something has to be known of."""
    contents: dict[Partition, Contents] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """One more batch."""
        self.kept.extend(record.position for record in batch.list_kept())
        for record in batch.records:
            self._add_record(record)

    def _add_record(self, record: StoredRecord) -> None:
        for partition in self.stretch.partitions:
            if partition.first <= record.position <= partition.last:
                before = self.contents.get(partition, Contents())
                self.contents[partition] = Contents(
                    before.records + 1,
                    before.parts + len(record.parts) - 1,
                    before.tokens + len(record.metadata),
                )
                return
        self.others.append(record.position)
