"""As which revision of its type a table's rows are read, and what older rows give for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oplog.payload.lineage import (
    ColumnRoute,
    find_fills,
    find_shape_at,
    is_apart,
    list_line,
    map_columns,
)
from oplog.payload.shape import Shape
from oplog.store.adopted import Turns


@dataclass(frozen=True, eq=False)
class TypeTarget:
    """The revision `shape` of a type; `shapes` are all revisions, rising, that one too."""

    shape: Shape
    shapes: Sequence[Shape]

    def map_from(self, old: Shape) -> tuple[ColumnRoute, ...]:
        """Where columns of the target have their values in rows of another revision."""
        return map_columns(self.shapes, old, self.shape)

    def is_apart_from(self, old: Shape) -> bool:
        """Whether all rows were logged anew between the two revisions.

        Rows of `old` are no rows of the target then: under another key, or of another table.
        """
        return is_apart(self.shapes, old, self.shape)

    def list_lost(self, old: Shape) -> list[str]:
        """Columns of `old` whose values the target has no place for, or reads from elsewhere."""
        if self.is_apart_from(old):
            return list(old.names)
        found = {route.source for route in self.map_from(old)}
        return [name for name in old.names if name not in found]

    def find_fills(self) -> Mapping[str, str | None]:
        """By column, the value of rows from before it was added, as text."""
        return find_fills(self.shapes, self.shape)

    def list_late(self) -> frozenset[str]:
        """Columns whose values in older rows are logged apart from the rows, after these."""
        line = list_line(self.shapes, self.shape)
        numbers = {number for shape in line for number in shape.change.rewritten}
        return frozenset(c.name for c in self.shape.columns if c.number in numbers)


def find_then(
    shapes: Sequence[Shape], turns: Turns, through: int | None, *, whole: Turns | None = None
) -> Shape | None:
    """The revision that the type's table had at position `through`, None for now.

    None if its table was gone. `shapes` are all revisions, rising; `turns` are those up to there,
    `whole` those of the whole log.
    """
    found = find_shape_at(shapes, turns.changes, through)
    if found is None or not turns.is_retired_at(found.revision):
        return found
    marked = {revision for _, revision in (whole or turns).changes}
    for shape in shapes:
        # A later table of the name. Without a mark it is taken to have been there.
        begun = shape.revision > (turns.retired_revision or shapes[-1].revision)
        if begun and shape.change.previous == 0 and shape.revision not in marked:
            return shape
    return None


def leave_later(
    then: Mapping[str, Shape], revisions: Mapping[str, Sequence[Shape]]
) -> dict[str, Shape]:
    """`then` without types whose tables came later, under the name of a table that moved away.

    The log does not say where a type's first revision begins; but two tables never have one name.
    """
    moving = {
        (shape.schema, shape.table): name
        for name, shape in then.items()
        if any(
            (later.schema, later.table) != (shape.schema, shape.table)
            for later in revisions[name]
            if later.revision > shape.revision
        )
    }
    return {
        name: shape
        for name, shape in then.items()
        if moving.get((shape.schema, shape.table), name) == name
        or shape.revision > revisions[name][0].revision
    }
