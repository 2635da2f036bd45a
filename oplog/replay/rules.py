"""Which effects of a log count when it is folded: what was replaced as a whole counts no more."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from oplog.errors import SchemaDriftError
from oplog.payload.shape import Shape
from oplog.reading.reader import RecordReader
from oplog.replay.table_plan import TablePlan
from oplog.replay.validity import VALID, FoldRules, Validity
from oplog.store.adopted import Turns


def find_turns(
    reader: RecordReader, *, snapshot: str, through: int | None = None
) -> Mapping[str, Turns]:
    """Adoptions, retirements and schema changes of all types of a log, up to `through`."""
    names = list(reader.types.latest)
    return reader.source.find_adoptions(names, snapshot=snapshot, through=through)


def make_rules(
    plans: Sequence[TablePlan],
    turns: Mapping[str, Turns],
    *,
    gone: Collection[str] = (),
    absent: Mapping[str, SchemaDriftError] = MappingProxyType({}),
) -> FoldRules:
    """The rules for all types of a log, whose `turns` are those up to the end of the fold.

    `gone` are types whose tables were dropped, which the log does not say yet: none of their
    effects counts. `absent` are types without a table, and what is raised at their first effect.
    """
    lenient = {
        name: math.inf if one.ended is None else one.ended
        for name, one in turns.items()
        if one.began
    }
    present = {name for plan in plans for name in plan.types}
    return FoldRules(lenient, _Judge(turns, present, gone, absent))


@dataclass(frozen=True, slots=True)
class _Judge:
    turns: Mapping[str, Turns]
    present: Collection[str]
    gone: Collection[str]
    absent: Mapping[str, SchemaDriftError]

    def __call__(self, shape: Shape) -> Validity:
        since = self.turns.get(shape.type_name, Turns()).retired or 0
        if shape.type_name in self.gone:
            return Validity(math.inf)
        if shape.type_name not in self.present:
            return Validity(since, self.absent.get(shape.type_name) or _refuse_retired(shape))
        return Validity(since) if since else VALID


def _refuse_retired(shape: Shape) -> SchemaDriftError:
    return SchemaDriftError(
        f"type {shape.type_name!r} was retired, and rows of it were logged since; its table "
        f"{shape.schema}.{shape.table} is not in the database",
        hint="restore the table, empty, or retire the type again: op.retire_type(...)",
    )
