"""Follows a type's columns from one revision to the next, and finds renamed and replaced ones.

Rows of an old revision are read by column name. That is wrong after a rename, and after a column
was dropped and another one was added under its name. Column numbers show both. Revisions may
come from several databases, and the oldest ones have no numbers; then only names count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

from oplog.errors import SchemaDriftError
from oplog.payload.column_numbers import match_numbers
from oplog.payload.shape import Shape

_WAY_OUT = (
    "log the rows as they are now: oplog adopt --again, then oplog snapshot; or declare how "
    "old columns map to new ones: catalog.upcast(...)"
)


@dataclass(frozen=True, slots=True)
class Break:
    """Why rows of an old revision cannot be read by the names of their columns.

    `column` is the name in the old revision, `now` the name in the table; both are empty if
    the whole table was replaced.
    """

    type_name: str
    revision: int
    table: str
    what: Literal["renamed", "added again", "replaced"]
    column: str = ""
    now: str = ""

    def describe(self) -> str:
        """Return one sentence for an error or a finding."""
        logged = f"rows of type {self.type_name!r} revision {self.revision} were logged"
        if self.what == "renamed":
            return f"column {self.table}.{self.now} was called {self.column} when {logged}"
        if self.what == "added again":
            return (
                f"column {self.table}.{self.column} was dropped and added again since {logged}: "
                "their values belong to the dropped column"
            )
        return f"table {self.table} was replaced by another of that name since {logged}"

    @property
    def hint(self) -> str:
        """What to do about it."""
        return _WAY_OUT

    def to_error(self, *, hint: str = _WAY_OUT) -> SchemaDriftError:
        """Return the error that refuses to read these rows."""
        return SchemaDriftError(self.describe(), hint=hint)


class StepLookup(Protocol):
    """Gives the declared steps between revisions; `TypeCatalog` implements it."""

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> object | None:
        """Return the step between two adjacent revisions, or None."""
        ...


def find_breaks(shapes: Sequence[Shape], target: Shape) -> dict[int, Break]:
    """Return, by revision, why its rows cannot be read as rows of `target`.

    Revisions whose rows can are left out. `shapes` are the stored revisions of one type in
    ascending order. `target` is the table as it is now, or the newest of the revisions.
    """
    chain = [*(shape for shape in shapes if shape is not target), target]
    steps = [_follow(old, new) for old, new in pairwise(chain)]
    found = {}
    for place, shape in enumerate(chain[:-1]):
        broken = _find_break(shape, steps[place:], target)
        if broken is not None:
            found[shape.revision] = broken
    return found


def list_unread(breaks: Mapping[int, Break], steps: StepLookup) -> list[Break]:
    """Return the breaks that no declared step converts past."""
    left = []
    for revision, broken in breaks.items():
        lifted = revision
        while steps.find_step(broken.type_name, lifted, to_revision=lifted + 1) is not None:
            lifted += 1
        if lifted in breaks:
            left.append(breaks[lifted])
    return left


def group_shapes(shapes: Iterable[Shape]) -> dict[str, list[Shape]]:
    """Group revisions by type and keep their order."""
    grouped: dict[str, list[Shape]] = {}
    for shape in shapes:
        grouped.setdefault(shape.type_name, []).append(shape)
    return grouped


@dataclass(frozen=True, slots=True)
class _Step:
    """From one revision to the next: the new name of each column that is still there."""

    names: Mapping[str, str]
    replaced: bool = False


def _follow(old: Shape, new: Shape) -> _Step:
    pair = match_numbers(old.numbers, new.numbers)
    if pair is None:
        # There are no numbers to compare: a column whose name is missing counts as dropped.
        known = {*new.names, *new.excluded}
        return _Step({name: name for name in (*old.names, *old.excluded) if name in known})
    before, now = pair
    if before.table != now.table:
        return _Step({}, replaced=True)
    called = {number: name for name, number in now.columns.items()}
    return _Step(
        {name: called[number] for name, number in before.columns.items() if number in called}
    )


def _find_break(shape: Shape, steps: Sequence[_Step], target: Shape) -> Break | None:
    first = Break(shape.type_name, shape.revision, f"{target.schema}.{target.table}", "replaced")
    if any(step.replaced for step in steps):
        return first
    logged = {*target.names}
    for column in shape.names:
        now: str | None = column
        for step in steps:
            now = None if now is None else step.names.get(now)
        if now is None and column in logged:
            return replace(first, what="added again", column=column, now=column)
        if now is not None and now != column and (now in logged or column in logged):
            return replace(first, what="renamed", column=column, now=now)
    return None
