"""Batches of new entries cut into segments, and segments put behind a head.

A transaction larger than a segment goes on in the next one, and no head is published that ends
inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from oplog.archive.format.body import Pairs
from oplog.archive.format.head import Head
from oplog.archive.format.index import Levels, add_item, make_item
from oplog.archive.format.segment import SegmentHeader, encode_segment
from oplog.archive.step import Step
from oplog.errors import ChainBrokenError
from oplog.store import StoredEntry
from oplog.store.export import Novelty
from oplog.sync.publisher import Publisher


def cut_entries(entries: Sequence[Novelty], most_bytes: int) -> Iterator[tuple[list[int], int]]:
    """Positions for each segment, and how many entries its last transaction lacks then.

    Transactions stay whole where they fit.
    """
    positions: list[int] = []
    size = 0
    for start, end, group_bytes in _iterate_groups(entries):
        if positions and size + group_bytes > most_bytes:
            yield positions, 0
            positions, size = [], 0
        for place in range(start, end):
            if positions and size + entries[place].sealed_bytes > most_bytes:
                yield positions, end - place
                positions, size = [], 0
            positions.append(entries[place].position)
            size += entries[place].sealed_bytes
    if positions:
        yield positions, 0


def _iterate_groups(entries: Sequence[Novelty]) -> Iterator[tuple[int, int, int]]:
    """Transactions: where each begins and ends, and its bytes."""
    start = 0
    while start < len(entries):
        end, size = start, 0
        while (
            end < len(entries)
            and entries[end].transaction_position == entries[start].transaction_position
        ):
            size += entries[end].sealed_bytes
            end += 1
        yield start, end, size
        start = end


def check_whole(entries: Sequence[Novelty]) -> None:
    """Raise `ChainBrokenError` if the database lacks entries of a transaction."""
    for start, end, _ in _iterate_groups(entries):
        first = entries[start]
        if end - start != first.transaction_size:
            raise ChainBrokenError(
                f"the transaction at position {first.transaction_position} has {end - start} of "
                f"{first.transaction_size} entries",
                hint="rows of oplog_entry are missing; nothing was published. Compare with a "
                "backup before anything else is written",
            )


def put_segment(
    publisher: Publisher,
    head: Head,
    entries: Sequence[StoredEntry],
    *,
    metadata: Mapping[int, Pairs],
    missing: int,
) -> Head:
    """Put a segment of the entries after `head`'s last one; the head with it."""
    data, header = encode_segment(
        entries,
        metadata,
        log_id=head.log_id,
        generation=head.generation,
        first=head.sequence + 1,
        chain_before=head.chain,
        missing=missing,
    )
    item = make_item(header, data)
    publisher.put_content(item.path, data, step=Step.PUT_SEGMENT)
    levels = add_item(
        head.levels,
        item,
        put=lambda path, node: publisher.put_content(path, node, step=Step.PUT_INDEX),
    )
    return extend_head(head, header, levels)


def extend_head(head: Head, header: SegmentHeader, levels: Levels) -> Head:
    """The head with one more segment."""
    return replace(
        head,
        levels=levels,
        sequence=header.last,
        chain=header.chain,
        position=max(head.position, header.last_position),
        recorded_at=max(head.recorded_at, header.last_recorded)
        if head.sequence
        else header.last_recorded,
    )
