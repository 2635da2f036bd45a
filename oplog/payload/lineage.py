"""Reads rows of one revision of a type as rows of another: column by column, by field number.

A column keeps its number through every revision, so a renamed one is found under its new name, and
one that was added again under an old name is not taken for it. Revisions are enough for that: an
archive is read like the database that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from oplog.payload.shape import Shape


@dataclass(frozen=True, slots=True)
class ColumnRoute:
    """Where a column of a revision gets its value from in rows of another one.

    `labels` are enum labels that read otherwise there; those that are not in it stay.
    """

    target: str
    source: str
    labels: Mapping[str, str] = field(default_factory=dict)


def map_columns(shapes: Sequence[Shape], old: Shape, target: Shape) -> tuple[ColumnRoute, ...]:
    """How rows of `old` read as rows of `target`, in the order of the target's columns.

    `shapes` are all revisions of the type. A column is left out if rows of `old` do not have it,
    and if the database rewrote it between the two: its values were logged again. Towards an
    earlier revision labels and numbers are followed back.
    """
    low, high = sorted((old.revision, target.revision))
    between = [shape for shape in shapes if low < shape.revision <= high]
    rewritten = {number for shape in between for number in shape.change.rewritten}
    found = []
    for column in target.columns:
        source = old.by_number.get(column.number)
        if source is None or column.number in rewritten:
            continue
        labels = _follow_labels(between, column.number, back=target.revision < old.revision)
        found.append(ColumnRoute(column.name, source.name, labels))
    return tuple(found)


def is_apart(shapes: Iterable[Shape], one: Shape, other: Shape) -> bool:
    """Whether all rows were logged anew between two revisions of the type.

    Rows of the one are no rows of the other then: under another key, or of another table.
    """
    low, high = sorted((one.revision, other.revision))
    return any(shape.change.readopted for shape in shapes if low < shape.revision <= high)


def find_fills(shapes: Sequence[Shape], target: Shape) -> dict[str, str | None]:
    """By column of `target`, the value of rows from before the column was added, as text."""
    fills: dict[int, str | None] = {}
    for shape in shapes:
        if shape.revision <= target.revision:
            for number, labels in shape.change.labels.items():
                text = fills.get(number)
                if text is not None:
                    fills[number] = labels.get(text, text)
            fills.update(shape.change.fills)
    return {
        column.name: fills[column.number] for column in target.columns if column.number in fills
    }


def find_shape_at(
    shapes: Sequence[Shape], changes: Iterable[tuple[int, int]], through: int | None
) -> Shape | None:
    """The revision that the table had at position `through`, None for now.

    `shapes` are all revisions of the type, rising, `changes` pairs of the position of a schema
    change and its revision. None if there was no revision yet.
    """
    if not shapes or through is None:
        return shapes[-1] if shapes else None
    reached = [revision for position, revision in changes if position <= through]
    # Revisions without a mark are from before anything changed, or still under way.
    wanted = max(reached, default=shapes[0].revision)
    return next((shape for shape in shapes if shape.revision == wanted), None)


def group_shapes(shapes: Iterable[Shape]) -> dict[str, list[Shape]]:
    """Group revisions by type and keep their order."""
    grouped: dict[str, list[Shape]] = {}
    for shape in shapes:
        grouped.setdefault(shape.type_name, []).append(shape)
    return grouped


def _follow_labels(between: Sequence[Shape], number: int, *, back: bool) -> dict[str, str]:
    steps = [dict(shape.change.labels.get(number, {})) for shape in between]
    if back:
        steps = [{new: old for old, new in step.items()} for step in reversed(steps)]
    followed: dict[str, str] = {}
    for step in steps:
        # At once: two labels may have swapped their names.
        followed = step | {first: step.get(last, last) for first, last in followed.items()}
    return {old: name for old, name in followed.items() if old != name}
