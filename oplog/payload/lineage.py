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
    between = list_between(shapes, old, target)
    rewritten = {number for shape in between for number in shape.change.rewritten}
    found = []
    for column in target.columns:
        source = old.by_number.get(column.number)
        if source is None or column.number in rewritten:
            continue
        labels = _follow_labels(shapes, (old, target), column.number)
        found.append(ColumnRoute(column.name, source.name, labels))
    return tuple(found)


def is_apart(shapes: Iterable[Shape], one: Shape, other: Shape) -> bool:
    """Whether all rows were logged anew between two revisions of the type.

    Rows of the one are no rows of the other then: under another key, or of another table.
    """
    return any(shape.change.readopted for shape in list_between(shapes, one, other))


def list_between(shapes: Iterable[Shape], one: Shape, other: Shape) -> list[Shape]:
    """The revisions whose changes lie between two revisions of the type, rising.

    A database that was restored as of an earlier position goes on from the revision of then: its
    next one follows that, and not the revisions that only the other branch of the log has.
    """
    known = list(shapes)
    mine, its = list_line(known, one), list_line(known, other)
    shared = {shape.revision for shape in mine} & {shape.revision for shape in its}
    apart = {shape.revision: shape for shape in (*mine, *its) if shape.revision not in shared}
    return [apart[revision] for revision in sorted(apart)]


def list_line(shapes: Iterable[Shape], shape: Shape) -> list[Shape]:
    """The revisions that a revision came of, rising, it too."""
    known = {one.revision: one for one in shapes}
    line = [shape]
    while line[-1].revision > min(known, default=shape.revision):
        last = line[-1]
        earlier = [revision for revision in known if revision < last.revision]
        before = last.change.previous
        line.append(known[before if before in earlier else max(earlier)])
    return line[::-1]


def find_fills(shapes: Sequence[Shape], target: Shape) -> dict[str, str | None]:
    """By column of `target`, the value of rows from before the column was added, as text."""
    fills: dict[int, str | None] = {}
    for shape in list_line(shapes, target):
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


def _follow_labels(
    shapes: Sequence[Shape], way: tuple[Shape, Shape], number: int
) -> dict[str, str]:
    """What labels of the first revision read as in the second one."""
    old, target = (list_line(shapes, shape) for shape in way)
    shared = {shape.revision for shape in old} & {shape.revision for shape in target}
    steps: list[Mapping[str, str]] = [
        {new: label for label, new in shape.change.labels.get(number, {}).items()}
        for shape in reversed(old)
        if shape.revision not in shared
    ]
    steps += [
        shape.change.labels.get(number, {}) for shape in target if shape.revision not in shared
    ]
    followed: dict[str, str] = {}
    for step in steps:
        # At once: two labels may have swapped their names.
        followed = {**step, **{first: step.get(last, last) for first, last in followed.items()}}
    return {label: name for label, name in followed.items() if label != name}
