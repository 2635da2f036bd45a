"""New generations: going on after the database lost what was published.

The new head leaves the lost branch behind, pinned and readable; the operator's policy decides
whether one is made. The cut may lie inside a segment. Then what is before it is published again,
as a segment of its own, and the old segment stays with the branch.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_BRANCHES, Branch, Head
from oplog.archive.format.index import Item, Levels, add_item, cut_after, make_item
from oplog.archive.format.segment import encode_segment
from oplog.archive.step import Step
from oplog.errors import ConfigurationError, ManifestInvalidError
from oplog.sync.divergence import Divergence
from oplog.sync.publisher import Publisher


class ForkPolicy(StrEnum):
    """What a worker does when the database lost records that were published."""

    STOP = "stop"
    """Raise `LogForkedError` and write nothing."""
    FORK = "fork"
    """Begin a new generation at the last common record; the lost branch stays readable."""


def make_fork(
    archive: Archive, publisher: Publisher, head: Head, *, divergence: Divergence
) -> Head:
    """The draft of the head that begins a new generation where `divergence` says.

    Raises `ConfigurationError` when the archive keeps as many lost branches as a head can name.
    """
    _check_room(archive, head)
    if divergence.sequence + 1 < head.first_sequence:
        raise ManifestInvalidError(
            f"the database goes on from sequence {divergence.sequence}, and the archive only keeps "
            f"what is after {head.first_sequence - 1}",
            hint="begin a new archive under another prefix; this one stays readable",
        )

    def put(path: str, data: bytes) -> None:
        publisher.put_content(path, data, step=Step.PUT_INDEX)

    lost: Levels = ((),)
    for item in archive.iterate_items(head.levels, after=divergence.sequence):
        lost = add_item(lost, item, put=put)
    kept, straddling = cut_after(head.levels, divergence.sequence, archive.read_node)
    if straddling is not None:
        kept = _split(archive, publisher, kept, straddling, head=head, divergence=divergence)
    branch = Branch(
        generation=head.generation,
        sequence=divergence.sequence,
        chain=divergence.chain,
        last=head.sequence,
        head=head.number,
        levels=lost,
    )
    items = [item for row in kept for item in row]
    return replace(
        head,
        generation=head.generation + 1,
        sequence=divergence.sequence,
        chain=divergence.chain,
        levels=kept,
        position=max((item.last_position for item in items), default=0),
        recorded_at=max((item.last_recorded for item in items), default=0),
        snapshots=tuple(one for one in head.snapshots if one.sequence <= divergence.sequence),
        branches=(*head.branches, branch),
    )


def _check_room(archive: Archive, head: Head) -> None:
    if len(head.branches) < MAX_BRANCHES:
        return
    first, last = head.branches[0].generation, head.branches[-1].generation
    raise ConfigurationError(
        f"{archive.url} keeps {len(head.branches)} lost branches, of generations {first} to "
        f"{last}, and no head names more: this fork was not published",
        hint="let go of those that nobody needs: oplog fork retire --through GENERATION. If "
        "they came one after the other, two databases publish here in turn: stop one",
    )


def _split(
    archive: Archive,
    publisher: Publisher,
    kept: Levels,
    item: Item,
    *,
    head: Head,
    divergence: Divergence,
) -> Levels:
    """The part of a segment that lies before the cut, published as one of its own."""
    segment = archive.read_segment(item)
    data, header = encode_segment(
        segment.records[: divergence.sequence - item.first + 1],
        log_id=head.log_id,
        generation=head.generation + 1,
        first=item.first,
        chain_before=segment.header.chain_before,
    )
    publisher.put_content(make_item(header, data).path, data, step=Step.PUT_SEGMENT)
    return add_item(
        kept,
        make_item(header, data),
        put=lambda path, node: publisher.put_content(path, node, step=Step.PUT_INDEX),
    )
