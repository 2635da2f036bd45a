"""Heads changed so that they no longer lead to what is damaged for good.

A segment under another name needs new nodes all the way up; every other object stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.index import Item, Levels, encode_node
from oplog.errors import ArchiveError


def replace_items(
    archive: Archive,
    levels: Levels,
    replaced: Mapping[str, Item],
    *,
    put: Callable[[str, bytes], None],
) -> Levels:
    """The levels with other segments in the place of those named; new nodes are handed to `put`."""

    def rewrite(item: Item, level: int) -> Item:
        if level == 0:
            return replaced.get(item.path, item)
        if not any(item.first <= one.first <= item.last for one in replaced.values()):
            return item
        children = list(archive.read_node(item, level))
        rewritten = [rewrite(child, level - 1) for child in children]
        if rewritten == children:
            return item
        data, node = encode_node(rewritten, level=level - 1)
        put(node.path, data)
        return node

    return tuple(tuple(rewrite(item, level) for item in row) for level, row in enumerate(levels))


def drop_snapshots(archive: Archive, head: Head, damaged: Collection[str]) -> Head:
    """The head without snapshots that are damaged, or need a chunk that is."""

    def is_sound(path: str) -> bool:
        if path in damaged:
            return False
        snapshot = next(one for one in head.snapshots if one.path == path)
        try:
            manifest = archive.read_manifest(snapshot)
        except ArchiveError:
            return False
        return not any(ref.path in damaged for ref in manifest.iterate_chunks())

    return replace(head, snapshots=tuple(one for one in head.snapshots if is_sound(one.path)))
