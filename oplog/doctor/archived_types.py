"""Judges what an archive alone can say of a restore from it. Pure.

Tables are not in it, so what they lack or have more is not seen. What a migration wrote anew is: as
long as the log does not have all of it, a database of the newest revision cannot be filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from oplog.archive.archived_log import ArchivedLog
from oplog.doctor.evolution import ROWS_PENDING, name_rewritten
from oplog.doctor.type_facts import is_pending
from oplog.finding import Finding, make_problem
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.store.adopted import Turns


def judge_archived_log(log: ArchivedLog) -> list[Finding]:
    """Findings on the types of an archived log; none where its first records are not kept."""
    if not log.whole:
        # What says that a change is complete may be among the records that are gone.
        return []
    shapes = group_shapes(log.list_types())
    return list(judge_archived_types(shapes, log.find_adoptions(list(shapes))))


def judge_archived_types(
    shapes: Mapping[str, Sequence[Shape]], turns: Mapping[str, Turns]
) -> Iterator[Finding]:
    """A finding for each type with a change whose rows are not all logged again."""
    for name, revisions in shapes.items():
        newest, known = revisions[-1], turns.get(name, Turns())
        if not is_pending(known, newest):
            continue
        yield make_problem(
            ROWS_PENDING,
            f"{newest.schema}.{newest.table}",
            message=f"a migration wrote {name_rewritten(newest, newest.change)} anew for the rows "
            f"that were there (type {name!r} revision {newest.revision}), and the archive does not "
            "have all of that: only a database of an earlier revision can be restored from it",
            hint="run `oplog types sync` on the database, then `oplog sync`",
        )
