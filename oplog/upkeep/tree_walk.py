"""The tree of segments walked although parts of it are damaged.

What is below a missing node cannot be reached by name. The node itself is returned in the place
of its segments, so that the caller knows what was passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from oplog.archive.archive import Archive
from oplog.archive.format.index import MAX_NODE_BYTES, Item, Levels, decode_node
from oplog.errors import ArchiveError
from oplog.upkeep.problem import ArchiveProblem, describe_error


class Place(NamedTuple):
    """A segment at level 0; or, higher up, a node that is damaged and hides its segments."""

    item: Item
    level: int


def walk_tree(
    archive: Archive,
    levels: Levels,
    *,
    after: int = 0,
    note: Callable[[ArchiveProblem], None],
    on_node: Callable[[Item, int], None] = lambda _, __: None,
) -> Iterator[Place]:
    """What has a sequence over `after`, oldest first; `on_node` is called with nodes and levels.

    Nothing is taken from a cache: what is walked is what is stored.
    """

    def descend(item: Item, level: int) -> Iterator[Place]:
        if item.last <= after:
            return
        if level == 0:
            yield Place(item, 0)
            return
        on_node(item, level)
        try:
            data = archive.read_content(item.path, most=MAX_NODE_BYTES)
            children = decode_node(data, item, level=level)
        except ArchiveError as error:
            note(describe_error(error, item.path, sequence=item.first))
            yield Place(item, level)
            return
        for child in children:
            yield from descend(child, level - 1)

    for level in range(len(levels) - 1, -1, -1):
        for item in levels[level]:
            yield from descend(item, level)
