"""A head published on top of one that is damaged, so that readers find a newest head again.

Overwrites nothing: the damaged head stays where it is, as the one before, by the hash of the
bytes it has now. The hard thing is to know that it was the newest one and what it held. Both
are believed only of the database's own row, which is written after a head was seen to count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, HeadLink
from oplog.archive.format.index import add_item, make_item
from oplog.archive.format.path import LOG, name_head, parse_content
from oplog.archive.format.segment import SegmentHeader, decode_segment
from oplog.errors import ArchiveError
from oplog.store.export import ArchiveRow
from oplog.sync.batch import extend_head
from oplog.sync.divergence import matches
from oplog.sync.exporter import Exporter
from oplog.sync.head_update import publish_change
from oplog.upkeep.head_survey import HeadSurvey, survey_heads

_MOST_TRIED = 10_000


class BelievedArchive(Archive):
    """An archive whose newest head is known from elsewhere, until there is a newer one."""

    def __init__(self, archive: Archive, head: Head, link: HeadLink) -> None:
        super().__init__(archive.store, accept_older=archive.accept_older)
        self._believed = head
        self._link = link

    def find_head(self, *, accept_older: bool | None = None) -> Head | None:
        """The head that is believed in, or what readers find after it."""
        following = self.store.get(name_head(self._believed.number + 1), most=MAX_HEAD_BYTES)
        if following is None:
            return self._believed
        return super().find_head(accept_older=accept_older)

    def link_to(self, head: Head) -> HeadLink:
        """What the head after `head` names it by."""
        return self._link if head.number == self._believed.number else super().link_to(head)


def repair_heads(exporter: Exporter, engine: Engine) -> Head | None:
    """Publish a head where readers refuse the newest one; None if that cannot be done safely.

    Raises as `publish_change`.
    """
    archive = exporter.archive
    survey = survey_heads(Archive(archive.store, single_writer=archive.single_writer))
    if survey.newest is not None or survey.head is None or archive.single_writer:
        return None
    with engine.connect() as connection, connection.begin():
        row = exporter.store.read_row(connection, survey.head.archive_id)
    believed = None if row is None else _find_believed(archive, survey, survey.head, row)
    if believed is None:
        return None
    exporter.archive = BelievedArchive(archive, *believed)
    exporter.publisher = None
    try:
        return publish_change(exporter, engine, lambda _, head, __: head)
    finally:
        exporter.archive = archive
        exporter.publisher = None


def _find_believed(
    archive: Archive, survey: HeadSurvey, head: Head, row: ArchiveRow
) -> tuple[Head, HeadLink] | None:
    """What the newest head held, and the link to the bytes that stand in its place."""
    top = max(survey.digests)
    link = HeadLink(top, survey.digests[top])
    if head.number == top:
        # Its predecessor is what is damaged, and is needed no more once there is a newer one.
        return (head, link) if row.head == top and matches(row, head) else None
    if head.number != top - 1 or row.head not in {top, top - 1}:
        return None
    if matches(row, head):
        return replace(head, number=top), link
    if row.head != top or row.generation != head.generation:
        return None
    path = _find_segments(archive, head, row)
    if path is None:
        return None
    held = head
    for header, data in path:
        levels = add_item(held.levels, make_item(header, data), put=archive.store.put)
        held = extend_head(held, header, levels)
    return replace(held, number=top, cursor=row.cursor), link


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
