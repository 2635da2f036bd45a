"""Puts the writes of several rows in an order that their constraints allow. Pure.

A row that refers to another one is written after that is there, and before that goes; a unique
value is given up before another row takes it. Where these rules go round in a circle, as where two
rows swap a unique value or refer to one another, the circle is opened in the first of these ways
that its constraints allow: the check is put off to the end of the transaction, a column is NULL
for a while, or a unique column has a value for a while that no row has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from oplog.errors import UndoError
from oplog.postgres.row_constraints import ForeignKey, RowConstraints, UniqueIndex
from oplog.replay.effect_route import Key
from oplog.undo.row_timeline import is_same
from oplog.value import Wire

Kind: TypeAlias = Literal["insert", "update", "delete"]
_Keys: TypeAlias = tuple[str, ...] | None
IndexKeys: TypeAlias = dict[str, dict[int, tuple[_Keys, _Keys]]]
"""By name of a unique index and `id()` of a write, the row's key before and after, as text."""


@dataclass(slots=True, eq=False)
class RowWrite:
    """What becomes of one row of the table with this oid; None stands for no row."""

    table: int
    key: Key
    before: Mapping[str, Wire | None] | None
    after: Mapping[str, Wire | None] | None

    @property
    def kind(self) -> Kind:
        """Which statement it takes."""
        if self.before is None:
            return "insert"
        return "delete" if self.after is None else "update"

    def list_changed(self) -> list[str]:
        """Columns of an update whose values change."""
        before, after = self.before or {}, self.after or {}
        return [name for name, value in after.items() if not is_same(before.get(name), value)]


@dataclass(slots=True, eq=False)
class Step:
    """One statement on one row: an insert or update with these values, or a delete.

    A column in `spare` gets a value that no row has, for a while.
    """

    kind: Kind
    table: int
    key: Key
    values: dict[str, Wire | None]
    spare: tuple[str, ...] = ()
    after: Mapping[str, Wire | None] = field(default_factory=dict)
    """The row in the end."""
    edges: list[_Edge] = field(default_factory=list)
    """To steps that have to come after this one."""
    incoming: list[_Edge] = field(default_factory=list)
    waits: int = 0
    taken: bool = False

    @property
    def form(self) -> tuple[Kind, int, tuple[str, ...], tuple[str, ...]]:
        """Steps of one form are one statement with several parameters."""
        return self.kind, self.table, tuple(self.values), self.spare


@dataclass(slots=True, eq=False)
class _Edge:
    """The step `after` waits for `first` because of a constraint, unless the edge was cut.

    `opens` says which of the two may do without the constraint's columns for a while.
    """

    first: Step
    after: Step
    constraint: ForeignKey | UniqueIndex
    opens: Literal["first", "last"]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class OrderedWrites:
    """Batches of steps of one form, and the constraints whose checks are put off."""

    batches: tuple[tuple[Step, ...], ...]
    deferred: tuple[str, ...]


def order_writes(
    writes: Iterable[RowWrite],
    constraints: RowConstraints,
    *,
    may_spare: Callable[[int, str], bool],
    index_keys: IndexKeys,
) -> OrderedWrites:
    """The writes as steps in order; `UndoError` where no order is found.

    `index_keys` are what rows have in unique indexes that their columns do not tell. `may_spare`
    says whether a column of a table, which may not be NULL, can have a value for a while that no
    row has.
    """
    pairs = [(write, _make_step(write)) for write in writes]
    _add_references(pairs, constraints.foreign_keys)
    _add_releases(pairs, constraints.unique, index_keys)
    return _Sorter([step for _, step in pairs], may_spare).sort()


def _make_step(write: RowWrite) -> Step:
    after = write.after or {}
    if write.kind == "update":
        values = {name: after[name] for name in write.list_changed()}
    else:
        values = dict(after)
    return Step(write.kind, write.table, write.key, values, after=after)


_Values: TypeAlias = tuple[Wire | None, ...]


def _read(row: Mapping[str, Wire | None] | None, columns: Sequence[str]) -> _Values | None:
    """The values of some columns; None if there is no row, or one of them is NULL or unknown."""
    if row is None:
        return None
    values = tuple(row.get(name) for name in columns)
    return None if None in values else values


def _add_references(
    pairs: Sequence[tuple[RowWrite, Step]], foreign_keys: Iterable[ForeignKey]
) -> None:
    for key in foreign_keys:
        parents = [pair for pair in pairs if pair[0].table == key.parent]
        given = _list_moved(parents, key.parent_columns, after=True)
        taken = _list_moved(parents, key.parent_columns, after=False)
        if not given and not taken:
            continue
        for write, step in pairs:
            if write.table == key.child:
                _refer(write, step, key, places=(given, taken))


def _list_moved(
    pairs: Iterable[tuple[RowWrite, Step]], columns: Sequence[str], *, after: bool
) -> dict[_Values, Step]:
    """By values of the columns, the step that brings them, or the one that takes them away."""
    found: dict[_Values, Step] = {}
    for write, step in pairs:
        old, new = _read(write.before, columns), _read(write.after, columns)
        values = new if after else old
        if values is not None and old != new:
            found[values] = step
    return found


def _refer(
    write: RowWrite,
    step: Step,
    key: ForeignKey,
    *,
    places: tuple[Mapping[_Values, Step], Mapping[_Values, Step]],
) -> None:
    """A row comes after the one that it refers to, and lets go of one before that goes."""
    given, taken = places
    old, new = _read(write.before, key.child_columns), _read(write.after, key.child_columns)
    if new == old:
        return
    parent = None if new is None else given.get(new)
    gone = None if old is None else taken.get(old)
    if parent is not None and parent is not step:
        _connect(parent, step, key, "last")
    # One that the database changes with its parent is as it shall be by then.
    if gone is not None and gone is not step and not (key.follows and gone is parent):
        _connect(step, gone, key, "first")


def _add_releases(
    pairs: Sequence[tuple[RowWrite, Step]], unique: Iterable[UniqueIndex], index_keys: IndexKeys
) -> None:
    for index in unique:
        known = index_keys.get(index.name)
        if not index.columns or (known is None and not index.plain):
            continue
        released: dict[_Values, Step] = {}
        taking: list[tuple[_Values, Step]] = []
        for write, step in pairs:
            if write.table != index.table:
                continue
            old: _Values | None
            new: _Values | None
            if known is None:
                old, new = _read(write.before, index.columns), _read(write.after, index.columns)
            else:
                old, new = known[id(write)]
            if old != new and old is not None:
                released[old] = step
            if old != new and new is not None:
                taking.append((new, step))
        for values, step in taking:
            first = released.get(values)
            if first is not None and first is not step:
                _connect(first, step, index, "first")


def _connect(
    first: Step,
    after: Step,
    constraint: ForeignKey | UniqueIndex,
    opens: Literal["first", "last"],
) -> None:
    if not first.taken:
        edge = _Edge(first, after, constraint, opens)
        first.edges.append(edge)
        after.incoming.append(edge)
        after.waits += 1


class _Sorter:
    """Takes steps that wait for nothing, one form at a time, and opens circles."""

    def __init__(self, steps: Sequence[Step], may_spare: Callable[[int, str], bool]) -> None:
        self._may_spare = may_spare
        self._waiting = OrderedDict((id(step), step) for step in steps)
        self._ready: dict[tuple[object, ...], list[Step]] = {}
        self._batches: list[tuple[Step, ...]] = []
        self._deferred: set[str] = set()
        self._aside: dict[tuple[int, str], Step] = {}

    def sort(self) -> OrderedWrites:
        for step in list(self._waiting.values()):
            self._release(step)
        while self._ready or self._waiting:
            if self._ready:
                self._take()
            else:
                self._open_circles()
        return OrderedWrites(tuple(self._batches), tuple(sorted(self._deferred)))

    def _release(self, step: Step) -> None:
        if not step.waits and self._waiting.pop(id(step), None) is not None:
            self._ready.setdefault(step.form, []).append(step)

    def _take(self) -> None:
        form = next(iter(self._ready))
        batch = tuple(self._ready.pop(form))
        self._batches.append(batch)
        for step in batch:
            step.taken = True
            for edge in step.edges:
                if not edge.cut:
                    self._cut(edge)

    def _open_circles(self) -> None:
        """Open a circle, and others that have no step in common with those found before."""
        known: set[int] = set()
        for step in list(self._waiting.values()):
            circle = self._find_circle(step, known)
            if circle:
                self._open(circle)

    def _open(self, circle: Sequence[_Edge]) -> None:
        for open_it in (self._defer, self._leave_null, self._use_spare):
            for edge in circle:
                if open_it(edge):
                    return
        names = sorted({edge.constraint.name for edge in circle})
        raise UndoError(
            "no order of the writes keeps the constraints "
            f"{', '.join(names)} at every step: rows depend on one another in a circle",
            hint="make one of the constraints DEFERRABLE, or undo less at a time",
        )

    def _find_circle(self, step: Step, known: set[int]) -> list[_Edge]:
        """Edges between steps that wait for one another, walking back from this one; or none.

        Steps that were walked are `known` from then on, and end another walk.
        """
        seen: dict[int, int] = {}
        path: list[_Edge] = []
        while id(step) in self._waiting and id(step) not in known:
            if id(step) in seen:
                known.update(seen)
                return path[seen[id(step)] :]
            seen[id(step)] = len(path)
            before = (e for e in step.incoming if not e.cut and id(e.first) in self._waiting)
            edge = next(before, None)
            if edge is None:
                break
            path.append(edge)
            step = edge.first
        known.update(seen)
        return []

    def _cut(self, edge: _Edge) -> None:
        edge.cut = True
        edge.after.waits -= 1
        self._release(edge.after)

    def _defer(self, edge: _Edge) -> bool:
        constraint = edge.constraint
        if not constraint.deferrable:
            return False
        if isinstance(constraint, ForeignKey) and edge.opens == "first" and constraint.acts:
            # What the database does to rows that refer to one that goes is never put off.
            return False
        self._deferred.add(constraint.qualified)
        self._cut(edge)
        return True

    def _leave_null(self, edge: _Edge) -> bool:
        constraint = edge.constraint
        own = constraint.child_columns if isinstance(constraint, ForeignKey) else constraint.columns
        free = [name for name in own if name in constraint.nullable]
        if not free:
            return False
        if edge.opens == "last":
            self._finish_later(edge, free[0])
        else:
            first = edge.first
            self._stand_aside(edge, Step("update", first.table, first.key, {free[0]: None}))
        return True

    def _use_spare(self, edge: _Edge) -> bool:
        constraint, first = edge.constraint, edge.first
        if not isinstance(constraint, UniqueIndex):
            return False
        free = [name for name in constraint.columns if self._may_spare(first.table, name)]
        if not free:
            return False
        self._stand_aside(edge, Step("update", first.table, first.key, {}, spare=(free[0],)))
        return True

    def _stand_aside(self, edge: _Edge, aside: Step) -> None:
        """Give up the value of the first step's row beforehand, in a step of its own."""
        first = edge.first
        column = aside.spare[0] if aside.spare else next(iter(aside.values))
        known = self._aside.setdefault((id(first), column), aside)
        if known is aside:
            self._waiting[id(aside)] = aside
            if first.kind == "update":
                # Another column than those that change may be the one that stands aside.
                first.values.setdefault(column, first.after[column])
            _connect(aside, first, edge.constraint, "first")
        _connect(known, edge.after, edge.constraint, "first")
        self._cut(edge)
        self._release(known)

    def _finish_later(self, edge: _Edge, column: str) -> None:
        """Write the row without the reference, and that when what it refers to is there."""
        step = edge.after
        value = step.values.get(column, step.after[column])
        rest = Step("update", step.table, step.key, {column: value})
        step.values[column] = None
        self._waiting[id(rest)] = rest
        _connect(edge.first, rest, edge.constraint, "last")
        _connect(step, rest, edge.constraint, "last")
        self._cut(edge)
