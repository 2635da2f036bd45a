"""Which effects of a log count when it is folded: what was replaced as a whole counts no more.

Refuses rows of a renamed column, which would be lost under its new name, unless all rows were
logged anew since, or a step of the catalog says what became of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from oplog.errors import SchemaDriftError
from oplog.payload.lineage import group_shapes
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
    """The rules for all types of a log; `shapes` are all their revisions."""
    revisions = group_shapes(shapes)
    lenient = {
        name: math.inf if one.ended is None else one.ended
        for name, one in turns.items()
        if one.began
    }
    present = {name for plan in plans for name in plan.types}
    judge = _Judge({name: turns.get(name, Turns()) for name in revisions}, present)
    return FoldRules(lenient, judge)


@dataclass(frozen=True, slots=True)
class _Judge:
    turns: Mapping[str, Turns]
    present: Collection[str]

    def __call__(self, shape: Shape) -> Validity:
        turns = self.turns.get(shape.type_name, Turns())
        since = turns.retired or 0
        if shape.type_name not in self.present:
            return Validity(since, _refuse_retired(shape))
        return Validity(since) if since else VALID


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
