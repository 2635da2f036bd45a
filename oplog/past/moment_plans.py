"""Which tables a question about the past needs, in which shape, and whether live rows serve."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.binding import list_unstored_shapes
from oplog.catalog import DeclaredType
from oplog.errors import ConfigurationError, SchemaDriftError
from oplog.payload.lineage import find_shape_at, group_shapes, list_between
from oplog.payload.shape import Shape
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.reading.type_match import match_type
from oplog.replay.live_target import find_live_targets
from oplog.replay.past_tables import plan_past
from oplog.replay.rules import find_turns
from oplog.replay.table_plan import TablePlan, make_stored_plan, read_plans
from oplog.replay.type_target import TypeTarget, find_then
from oplog.store.adopted import Turns


@dataclass(frozen=True)
class PastTypes:
    """The types of a log at position `at`, in the reader's snapshot."""

    reader: RecordReader
    log: LogOpener
    at: int
    then: Mapping[str, Turns]
    """What happened to types as a whole, up to `at`."""
    whole: Mapping[str, Turns]
    """The same, up to now."""

    def match(self, declared: DeclaredType) -> str:
        """The log's name of a declared type, or the declared one if the log has none."""
        newest = self.reader.types.latest
        retired = {
            name
            for name, shape in newest.items()
            if self.whole.get(name, Turns()).is_retired_at(shape.revision)
        }
        found = match_type(newest, declared, retired=retired)
        return declared.type_name if found is None else found.type_name

    def plan(self, connection: Connection | None, name: str, *, shape: str) -> TablePlan:
        """The plan of the table of a type: with the columns of now, or (`shape` then) of then.

        Without a connection it is made from what the log has stored. Raises `SchemaDriftError`
        where the database has no such table, `ConfigurationError` where the log has none.
        """
        revisions = self._list_revisions(connection, name)
        if connection is None:
            return self._plan_stored(revisions, name, shape=shape)
        if shape == "then":
            shapes = [one for known in revisions.values() for one in known]
            plans = plan_past(connection, shapes, self.then, through=self.at, whole=self.whole)
        else:
            found = find_live_targets(
                connection, revisions, self.whole, schema=self.log.store.schema
            )
            plans = [] if name in found.gone else read_plans(connection, found.placed)
        for plan in plans:
            if name in plan.types:
                self._check_apart(plan)
                return plan
        raise SchemaDriftError(
            f"the table of type {name!r} is not there {'now' if shape == 'now' else 'at that time'}"
            f" (position {self.at})",
            hint="replay(through=...) rebuilds all tables of a position, with the columns of then",
        )

    def _list_revisions(
        self, connection: Connection | None, name: str
    ) -> Mapping[str, Sequence[Shape]]:
        stored = group_shapes(self.reader.types.shapes)
        if name not in stored:
            unstored = (
                []
                if connection is None
                else list_unstored_shapes(
                    connection, self.log.catalog, stored=stored, schema=self.log.store.schema
                )
            )
            stored |= group_shapes(one for one in unstored if one.type_name == name)
        if name not in stored:
            raise ConfigurationError(
                f"the log has nothing of type {name!r}, and the database no table of it",
                hint="create the table, and write to it through the log",
            )
        table = stored[name][-1].schema, stored[name][-1].table
        return {
            other: known
            for other, known in stored.items()
            if other == name or (known[-1].schema, known[-1].table) == table
        }

    def _plan_stored(
        self, revisions: Mapping[str, Sequence[Shape]], name: str, *, shape: str
    ) -> TablePlan:
        known = revisions[name]
        target: Shape | None = known[-1]
        if shape == "then":
            turns = self.then.get(name, Turns())
            target = find_then(known, turns, self.at, whole=self.whole.get(name, Turns()))
        target = target or known[-1]
        plan = make_stored_plan(
            TypeTarget(target, known), spelled={}, schema=target.schema, table=target.table
        )
        self._check_apart(plan)
        return plan

    def _check_apart(self, plan: TablePlan) -> None:
        """Rows that were logged anew since then, under another key, are no rows of this table."""
        for name, target in plan.targets.items():
            then = find_shape_at(target.shapes, self.then.get(name, Turns()).changes, self.at)
            if then is not None and target.is_apart_from(then):
                raise ConfigurationError(
                    f"all rows of {plan.name} were logged anew after position {self.at}: rows of "
                    "then have no place in the table of now",
                    hint="give shape='then', for the table as it was",
                )

    def may_take_live(self, plan: TablePlan) -> bool:
        """Whether rows of the live table that nothing touched since then were the same then.

        Not where a change of the schema wrote values, or where rows were adopted since.
        """
        if plan.stored:
            return False
        for name, target in plan.targets.items():
            turns = self.whole.get(name, Turns())
            if max(turns.retired or 0, turns.ended or 0) > self.at:
                return False
            if turns.began and turns.ended is None:
                return False
            known = target.shapes
            then = find_shape_at(known, self.then.get(name, Turns()).changes, self.at)
            if then is None or any(
                one.change.rewritten or one.change.labels or one.change.readopted
                for one in list_between(known, then, target.shape)
            ):
                return False
        return True


def find_past_types(reader: RecordReader, log: LogOpener, *, at: int, snapshot: str) -> PastTypes:
    """The types as of position `at`."""
    whole = find_turns(reader, snapshot=snapshot)
    then = find_turns(reader, snapshot=snapshot, through=at)
    return PastTypes(reader, log, at=at, then=then, whole=whole)


def list_types(plans: Collection[TablePlan]) -> dict[str, TablePlan]:
    """By type the table that has its rows."""
    return {name: plan for plan in plans for name in plan.types}
