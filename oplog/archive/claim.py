"""A segment compared with the item that names it, and with the segment before it.

Both may be sound by themselves and not belong together, so ranges, hashes and sizes are compared
one by one.
"""

from __future__ import annotations

from oplog.archive.format.index import Item
from oplog.archive.format.segment import Segment, SegmentHeader, decode_segment
from oplog.errors import ManifestInvalidError


def decode_item(data: bytes, item: Item) -> Segment:
    """The segment in `data`; `ManifestInvalidError` unless it is what `item` says."""
    segment = decode_segment(data, what=item.path)
    header = segment.header
    said = (item.first, item.last, item.chain, item.adopted)
    found = (header.first, header.last, header.chain, header.adopted)
    said_range = (item.first_position, item.last_position, item.first_recorded, item.last_recorded)
    found_range = (
        header.first_position,
        header.last_position,
        header.first_recorded,
        header.last_recorded,
    )
    if (found, found_range, len(data)) != (said, said_range, item.size_bytes):
        raise ManifestInvalidError(
            f"{item.path} holds sequences {header.first} to {header.last}, and what names it "
            f"claims {item.first} to {item.last}, or other positions, times or chains",
            hint="the head or the index was altered: run oplog check, then oplog resync",
        )
    return segment


def check_follows(before: SegmentHeader, segment: Segment, path: str) -> None:
    """Raise `ManifestInvalidError` unless a segment continues the one before it."""
    header = segment.header
    if (header.log_id, header.chain_before) != (before.log_id, before.chain):
        raise ManifestInvalidError(
            f"{path} does not continue the chain of the segment that ends at {before.last}",
            hint="one of both belongs to another log or branch: run oplog check, then oplog resync",
        )
