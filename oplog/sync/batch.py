"""Batches of new records cut into segments, and segments put behind a head.

A record is a whole transaction, so that no head ends inside one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from oplog.archive.format.head import Head
from oplog.archive.format.index import Levels, add_item, make_item
from oplog.archive.format.segment import SegmentHeader, encode_segment
from oplog.archive.step import Step
from oplog.store import StoredRecord
from oplog.store.export import Novelty
from oplog.sync.publisher import Publisher


def cut_records(records: Sequence[Novelty], most_bytes: int) -> Iterator[list[int]]:
    """Positions for each segment: at most `most_bytes` bytes, or one record with more."""
    positions: list[int] = []
    size = 0
    for record in records:
        if positions and size + record.size_bytes > most_bytes:
            yield positions
            positions, size = [], 0
        positions.append(record.position)
        size += record.size_bytes
    if positions:
        yield positions


def put_segment(publisher: Publisher, head: Head, records: Sequence[StoredRecord]) -> Head:
    """Put a segment of the records after `head`'s last one; the head with it."""
    data, header = encode_segment(
        records,
        log_id=head.log_id,
        generation=head.generation,
        first=head.sequence + 1,
        chain_before=head.chain,
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
