"""Which records of a log the tables of a following database can hold.

A follower is migrated like any other database, and seldom at the very moment. Its tables may be
those of an earlier revision, which have no place for new columns, or of a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.errors import SchemaDriftError
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.recovery.named_tables import require_named
from oplog.recovery.target_revisions import Targets, find_targets, refuse_loss
from oplog.replay.rules import find_turns
from oplog.replay.table_plan import TablePlan, read_plans
from oplog.replay.type_target import TypeTarget
from oplog.store import SequencedPage
from oplog.store.adopted import Turns


@dataclass(frozen=True)
class Needs:
    """The tables of a follower, and what records of the log need of them.

    `position` is that of the newest record which the follower has.
    """

    reader: RecordReader
    plans: Sequence[TablePlan]
    turns: Mapping[str, Turns]
    targets: Targets
    position: int

    @property
    def placed(self) -> Sequence[tuple[LiveTable, TypeTarget]]:
        """Tables, each with the revision of a type that it has the columns of."""
        return self.targets.placed

    def cut(self, page: SequencedPage) -> SequencedPage:
        """The records before the first one that the tables cannot hold.

        `SchemaDriftError` if that is the first of the page.
        """
        if not self._find_suspects():
            return page
        for number, stored in enumerate(page.records):
            # It is opened once more when it is applied: only while the two databases differ.
            error = self._judge([effect.shape for effect in self.reader.open(stored).effects])
            if error is None:
                continue
            if number == 0:
                raise error
            return SequencedPage(page.first, page.records[:number])
        return page

    def _find_suspects(self) -> bool:
        """Whether there may be records that the tables cannot hold."""
        targets = self.targets.by_type
        return any(
            self._refuse(shape) is not None
            for shape in self.reader.types.shapes
            if shape.type_name in targets or shape.type_name in self.targets.refused
        )

    def _judge(self, shapes: Sequence[Shape]) -> SchemaDriftError | None:
        for shape in shapes:
            error = self._refuse(shape)
            if error is not None:
                return error
        return None

    def _refuse(self, shape: Shape) -> SchemaDriftError | None:
        """Why rows of the shape cannot be held; None if they can."""
        name = shape.type_name
        turns, target = self.turns.get(name, Turns()), self.targets.by_type.get(name)
        if target is None:
            return self.targets.refused.get(name)
        marks = {revision: position for position, revision in turns.changes}
        for one in target.shapes:
            # Before the mark, all rows are logged anew, and those of before are no rows any more.
            anew = one.change.readopted and shape.revision >= one.revision
            if anew and marks.get(one.revision, self.position + 1) > self.position:
                return _refuse_anew(shape)
        if not target.list_lost(shape):
            return None
        reached = max(marks, default=0)
        if shape.revision < target.shape.revision <= reached:
            # What the change made of these rows comes with later records.
            return None
        table = next(live for live, one in self.placed if one is target)
        return refuse_loss(shape, table, target)


def find_needs(
    connection: Connection, reader: RecordReader, *, log: LogOpener, position: int
) -> Needs:
    """What records of the log need of the tables behind `connection`.

    `position` is that of the newest record which the database has. Text settings must be pinned.
    """
    turns = find_turns(reader, snapshot=reader.source.read_snapshot())
    revisions = group_shapes(reader.types.shapes)
    targets = find_targets(connection, revisions, turns, lossy=True)
    require_named(connection, [live for live, _ in targets.placed], log=log)
    reader.aim_steps({name: one.shape.revision for name, one in targets.by_type.items()})
    return Needs(
        reader,
        read_plans(connection, targets.placed),
        turns=turns,
        targets=targets,
        position=position,
    )


def _refuse_anew(shape: Shape) -> SchemaDriftError:
    return SchemaDriftError(
        f"all rows of type {shape.type_name!r} were logged anew, in revision {shape.revision}: its "
        "table or its key was replaced",
        hint="follow with a new, empty database of that revision",
    )
