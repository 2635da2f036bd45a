"""What a worker concludes from a head and from the database it is connected to.

Pure: one head, one image of the database. The hard thing is a database that lost what was
published: the acknowledgement travelled with it, so what is above the acknowledgement has to be
looked up, record by record, by hash, since positions are drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.model.postgres import Image, Record
from tests.model.rules import Rules
from tests.model.values import Cursor, Head, Table


class Base(NamedTuple):
    """What the next head goes on from.

    `cursor` is where to read from, `published` what must not be taken for news there.
    """

    generation: int
    sequence: int
    chain: int
    cursor: Cursor
    published: frozenset[int] = frozenset()
    forked: bool = False
    acknowledged: bool = True


class Stale(NamedTuple):
    """The database knows a newer head: look again."""


class Refused(NamedTuple):
    """The log forked below what the archive still keeps: nothing can be published."""


def compare(
    head: Head | None, image: Image, *, table: Table, rules: Rules, positions: Sequence[int]
) -> Base | Stale | Refused:
    row = image.row
    if row.number > (head.number if head else 0) and rules.numbered:
        return Stale()
    if head is None:
        return Base(1, 0, table.empty_chain, Cursor())
    same = (row.sequence, row.chain) == (head.sequence, head.chain)
    onward = Base(head.generation, head.sequence, head.chain, row.cursor)
    if rules.cursor != "row" or not rules.generations:
        onward = onward._replace(cursor=head.cursor)
    if same or not rules.generations:
        return onward
    history = table.history(head.chain)
    acknowledged = table.history(row.chain)
    common = _count_common(history, acknowledged)
    above = history[common:]
    if common == row.sequence and _has_all(image, above, rules=rules, positions=positions):
        return onward._replace(published=frozenset(above), acknowledged=False)
    if common < head.first_sequence - 1:
        return Refused()
    fork = Base(head.generation + 1, common, table.digest(history[:common]), row.cursor)
    if common < row.sequence:
        # The row is of another branch, and so is every cursor there is: read everything.
        fork = fork._replace(cursor=Cursor(), published=frozenset(history[:common]))
    return fork._replace(forked=True)


def _has_all(image: Image, uids: Sequence[int], *, rules: Rules, positions: Sequence[int]) -> bool:
    if rules.compare_hashes:
        return {record.uid for record in image.records}.issuperset(uids)
    drawn = {record.position for record in image.records}
    return drawn.issuperset(positions[uid - 1] for uid in uids)


def _count_common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def list_unseen(image: Image, base: Base) -> tuple[Record, ...]:
    """Entries that the cursor does not show, causes before effects."""
    news = [record for record in image.records if not base.cursor.shows(record.xid)]
    return tuple(sorted(news, key=lambda record: record.position))
