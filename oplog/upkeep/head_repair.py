"""A head published on top of one that is damaged, so that readers find a newest head again.

Overwrites nothing: the damaged head stays where it is, and the new one names it by the hash of
the bytes that it has now. That it was the newest one, and what it held, is believed only of the
database's own row, which is written after a head was seen to count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, HeadLink
from oplog.archive.format.index import add_item, make_item
from oplog.archive.format.path import LOG, parse_content
from oplog.archive.format.segment import SegmentHeader, decode_segment
from oplog.errors import ArchiveError
from oplog.store.export import ArchiveRow
from oplog.sync.batch import extend_head
from oplog.sync.divergence import is_in_step
from oplog.sync.exporter import Exporter
from oplog.sync.head_update import publish_update
from oplog.sync.publish_context import Base
from oplog.upkeep.head_survey import HeadSurvey, survey_heads

Put: TypeAlias = Callable[[str, bytes], None]
"""Where an object goes: its path and its bytes."""
_MOST_TRIED = 10_000


def publish_over(exporter: Exporter, engine: Engine, base: Base) -> Head | None:
    """Publish what `base` holds as the newest head; raises as `publish_update`."""
    return publish_update(exporter, engine, lambda _, head, __: head, base=base)


def find_base(exporter: Exporter, engine: Engine, *, put: Put) -> Base | None:
    """What a head is published on where readers refuse the newest one.

    None if that cannot be done safely. `put` gets the index nodes that only the damaged head named.
    """
    archive = exporter.archive
    survey = survey_heads(
        Archive(archive.store, single_writer=archive.single_writer, trust=archive.trust)
    )
    if survey.newest is not None or survey.head is None or archive.single_writer:
        return None
    with engine.connect() as connection, connection.begin():
        row = exporter.store.read_row(connection, survey.head.archive_id)
    return None if row is None else _find_base(archive, survey, survey.head, row, put=put)


def _find_base(
    archive: Archive, survey: HeadSurvey, head: Head, row: ArchiveRow, *, put: Put
) -> Base | None:
    """What the newest head held, and the link to the bytes that stand in its place."""
    top = max(survey.digests)
    link = HeadLink(top, survey.digests[top])
    if head.number == top:
        # Its predecessor is what is damaged, and is needed no more once there is a newer one.
        return Base(head, link) if row.head == top and is_in_step(row, head) else None
    near = head.number == top - 1 and row.head in {top, top - 1}
    if (near or _is_last_published(archive, head, row)) and is_in_step(row, head):
        return Base(replace(head, number=top), link)
    if not near or row.head != top or row.generation != head.generation:
        return None
    path = _find_segments(archive, head, row)
    if path is None:
        return None
    held = head
    for header, data in path:
        levels = add_item(held.levels, make_item(header, data), put=put)
        held = extend_head(held, header, levels)
    return Base(replace(held, number=top, cursor=row.cursor), link)


def _is_last_published(archive: Archive, head: Head, row: ArchiveRow) -> bool:
    """Whether all heads above `head` were written without the publisher's key.

    However many there are: the database published `head` last, and its key signed it.
    """
    return archive.trust.has_pins and head.publisher is not None and row.head == head.number


def _find_segments(
    archive: Archive, head: Head, row: ArchiveRow
) -> Sequence[tuple[SegmentHeader, bytes]] | None:
    """Stored segments that lead from what `head` holds to what the database has published."""
    found: dict[int, list[tuple[SegmentHeader, bytes]]] = {}
    for info in archive.store.list(f"{LOG}/"):
        try:
            if not head.sequence < parse_content(info.path, LOG).number <= row.sequence:
                continue
            data = archive.read_content(info.path)
            header = decode_segment(data, what=info.path).header
        except ArchiveError:
            continue
        if header.log_id == head.log_id:
            found.setdefault(header.first, []).append((header, data))
    stack: list[tuple[tuple[SegmentHeader, bytes], ...]] = [()]
    for _ in range(_MOST_TRIED):
        if not stack:
            return None
        way = stack.pop()
        reached = way[-1][0].last if way else head.sequence
        chain = way[-1][0].chain if way else head.chain
        if reached == row.sequence and chain.hex() == row.chain:
            return way
        stack += [(*way, one) for one in found.get(reached + 1, []) if one[0].chain_before == chain]
    return None
