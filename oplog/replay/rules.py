"""Which effects of a log count when it is folded: what was replaced as a whole counts no more.

Refuses rows of a renamed column, which would be lost under its new name, unless all rows were
logged anew since, or a step of the catalog says what became of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from oplog.errors import SchemaDriftError
from oplog.payload.lineage import Break, find_breaks, group_shapes
from oplog.payload.shape import Shape
from oplog.reading.reader import RecordReader
from oplog.replay.table_plan import TablePlan
from oplog.replay.validity import VALID, FoldRules, Validity
from oplog.store.adopted import Turns


def find_turns(
    reader: RecordReader, *, snapshot: str, through: int | None = None
) -> Mapping[str, Turns]:
    """Adoptions and retirements of all types of a log, up to position `through`."""
    names = list(reader.types.latest)
    return reader.source.find_adoptions(names, snapshot=snapshot, through=through)


def read_rules(
    reader: RecordReader,
    plans: Sequence[TablePlan],
    *,
    snapshot: str,
    through: int | None = None,
    same_database: bool,
    from_empty: bool = True,
) -> FoldRules:
    """`make_rules` with the adoptions and retirements up to position `through`."""
    turns = find_turns(reader, snapshot=snapshot, through=through)
    return make_rules(
        reader.types.shapes, plans, turns=turns, same_database=same_database, from_empty=from_empty
    )


def make_rules(
    shapes: Iterable[Shape],
    plans: Sequence[TablePlan],
    *,
    turns: Mapping[str, Turns],
    same_database: bool,
    strict: bool = True,
    from_empty: bool = True,
) -> FoldRules:
    """The rules for all types of a log; `shapes` are all their revisions.

    `same_database`: the plans' tables are of the database that wrote the log, so that their
    column numbers show renamings. Not `strict`: rows of a renamed column are folded under its
    old name instead of refused, so that a comparison shows them. Not `from_empty`: the tables
    have rows already, so that effects of a renamed column are refused even if an adoption
    supersedes them.
    """
    revisions = group_shapes(shapes)
    lenient = {
        name: math.inf if one.ended is None else one.ended
        for name, one in turns.items()
        if one.began
    }
    breaks: dict[str, Mapping[int, Break]] = {}
    for plan in plans:
        for name in plan.types:
            if name not in revisions:
                continue
            newest = revisions[name][-1]
            numbers = (*newest.numbers, plan.live.numbers) if same_database else newest.numbers
            breaks[name] = find_breaks(revisions[name], replace(newest, numbers=numbers))
    judge = _Judge(
        {name: turns.get(name, Turns()) for name in revisions}, breaks, strict, from_empty
    )
    return FoldRules(lenient, judge)


@dataclass(frozen=True, slots=True)
class _Judge:
    turns: Mapping[str, Turns]
    breaks: Mapping[str, Mapping[int, Break]]
    strict: bool
    from_empty: bool

    def __call__(self, shape: Shape) -> Validity:
        turns = self.turns.get(shape.type_name, Turns())
        since = turns.retired or 0
        breaks = self.breaks.get(shape.type_name)
        if breaks is None:
            return Validity(since, _refuse_retired(shape))
        found = breaks.get(shape.revision)
        if found is None:
            return Validity(since) if since else VALID
        if not self.from_empty:
            hint = "restore an empty database from a snapshot that was taken since, and follow on"
            return Validity(0, found.to_error(hint=hint))
        if turns.ended and turns.revision is not None and turns.revision not in breaks:
            return Validity(max(since, turns.ended), found.to_error())
        return Validity(since, found.to_error() if self.strict else None)


def _refuse_retired(shape: Shape) -> SchemaDriftError:
    return SchemaDriftError(
        f"type {shape.type_name!r} was retired, and rows of it were logged since; its table "
        f"{shape.schema}.{shape.table} is not in the database",
        hint="restore the table, empty, or retire the type again: op.retire_type(...)",
    )


def list_retired(types: Iterable[Shape], turns: Mapping[str, Turns]) -> frozenset[str]:
    """Names of types that a migration retired: their tables may be missing."""
    return frozenset(
        shape.type_name
        for shape in types
        if turns.get(shape.type_name, Turns()).retired is not None
    )
