"""What happened to one row since the first change that is to be undone, and what it has to be.

Pure: no connection and no SQL. Values are wire values of the table's columns as they are now. A
row that is not there has no value in any column, so that a create and a delete are changes of
every column and of `EXISTENCE`.

An undo that was done restored what had been before, so what lies between is over: neither what it
undid nor the undo itself is in the way of another undo. That is only believed where the values say
it too, because metadata is anybody's to write.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from oplog.value import Wire

EXISTENCE: Final = ""
"""In place of a column's name: whether there is a row. No column of PostgreSQL has this name."""


class Missing(enum.Enum):
    """What stands where there is no value: the row is not there, or the log does not know it."""

    ABSENT = "absent"
    UNKNOWN = "unknown"


ABSENT: Final[Literal[Missing.ABSENT]] = Missing.ABSENT
UNKNOWN: Final[Literal[Missing.UNKNOWN]] = Missing.UNKNOWN
Value: TypeAlias = Wire | Missing | None
State: TypeAlias = Mapping[str, Wire | None]


def is_same(one: object, other: object) -> bool:
    """Whether two wire values are stored alike: NaN equals itself, and -0.0 is not 0.0."""
    if type(one) is float:
        return repr(one) == repr(other)
    return one == other and type(one) is type(other)


@dataclass(slots=True)
class RowChange:
    """What one record did to the row: by column, the value before and after.

    `undoes` are positions of records that it says it undid. `over` are columns in which it counts
    no more, because a later undo restored what was before it.
    """

    position: int
    chosen: bool
    columns: dict[str, tuple[Value, Value]]
    undoes: Collection[int] = ()
    over: set[str] = field(default_factory=set)

    def counts(self, column: str) -> bool:
        """Whether it changed the column, and that is not over."""
        return column in self.columns and column not in self.over


@dataclass(slots=True)
class Clash:
    """Records that changed what an undo would change, after it: a column, or the whole row.

    Choosing to overwrite gives `wanted` to the column, or the row.
    """

    column: str
    positions: tuple[int, ...]
    now: Value
    wanted: Value


@dataclass(slots=True)
class Verdict:
    """What a row has to be, with nothing overwritten, and what is in the way of more.

    `wanted` is None for a row that has to go, or stay away. If there is a clash of the whole row,
    `wanted` is the row as it is, and `overwritten` what it will be instead.
    """

    wanted: State | None
    clashes: list[Clash]
    overwritten: State | None = None
    unknown: tuple[str, ...] = ()
    """Columns whose values of before the log does not know."""


@dataclass(slots=True)
class Timeline:
    """One row: as the log has it, and its changes from the first that is to be undone on.

    Some changes before that are kept too: a later undo may have restored what was before them.
    """

    state: dict[str, Wire | None] | None = None
    """The row now, None if there is none."""
    last: Mapping[str, Wire | None] = field(default_factory=dict)
    """The row as it was before it went, for one that is not there."""
    changes: list[RowChange] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Columns that were to be set back, and were converted since: the log has them as they were."""
    begun: bool = False
    """Whether a change is there that is to be undone."""
    met: bool = False
    """Whether anything is known of the row yet."""

    def record(
        self,
        before: State | None,
        *,
        position: int,
        chosen: bool,
        undoes: Collection[int],
        most: int,
    ) -> None:
        """Note what a record did, which found the row as `before` and left it as `state`.

        At most so many changes are kept from before the first that is to be undone.
        """
        if not (chosen or self.begun or most):
            return
        columns: dict[str, tuple[Value, Value]] = {}
        after = self.state
        if (before is None) != (after is None):
            columns[EXISTENCE] = (before is not None, after is not None)
        for name in {**(before or {}), **(after or {})}:
            missing = UNKNOWN if before is not None else ABSENT
            old = missing if before is None else before.get(name, UNKNOWN)
            new = ABSENT if after is None else after.get(name, UNKNOWN)
            if not is_same(old, new):
                columns[name] = (old, new)
        if columns:
            self.begun = self.begun or chosen
            if not self.begun and len(self.changes) >= most:
                del self.changes[: most // 2 + 1]
            self.changes.append(RowChange(position, chosen, columns, undoes))


def settle(timeline: Timeline) -> None:
    """Mark what is over because a later undo, which is not to be undone itself, restored it."""
    changes = timeline.changes
    for last in range(len(changes) - 1, -1, -1):
        undo = changes[last]
        if undo.chosen or not undo.undoes:
            continue
        for column in undo.columns:
            if column not in undo.over:
                _end(changes, last, column)


def _end(changes: list[RowChange], last: int, column: str) -> None:
    undo = changes[last]
    for first, change in enumerate(changes[:last]):
        if change.position in undo.undoes and change.counts(column):
            if is_same(change.columns[column][0], undo.columns[column][1]):
                for between in changes[first : last + 1]:
                    between.over.add(column)
            return


def judge(timeline: Timeline) -> Verdict | None:
    """What the row has to be; None if nothing of it is left to be undone."""
    settle(timeline)
    first: dict[str, int] = {}
    for number, change in enumerate(timeline.changes):
        if change.chosen:
            for column in change.columns:
                if column not in change.over:
                    first.setdefault(column, number)
    if not first:
        lost = tuple(sorted(timeline.lost))
        return Verdict(timeline.state, [], unknown=lost) if lost and timeline.state else None
    before = {column: timeline.changes[n].columns[column][0] for column, n in first.items()}
    return _judge_row(timeline, first, before)


def _judge_row(
    timeline: Timeline, first: Mapping[str, int], before: Mapping[str, Value]
) -> Verdict | None:
    now = timeline.state
    gone = EXISTENCE in before and before[EXISTENCE] is False
    if gone:
        return _judge_removal(timeline, first)
    later = _list_later(timeline, EXISTENCE, min(first.values()))
    base = timeline.last if now is None else now
    wanted, clashes = dict(base), list[Clash]()
    unknown = sorted({c for c, value in before.items() if value is UNKNOWN} | timeline.lost)
    for column, value in before.items():
        if column == EXISTENCE or isinstance(value, Missing) or column not in base:
            continue
        if now is not None and is_same(now[column], value):
            continue
        others = _list_later(timeline, column, first[column])
        others = [n for n in others if n not in later]
        if others and not is_same(base[column], value):
            clashes.append(Clash(column, _place(timeline, others), base[column], value))
        else:
            wanted[column] = value
    if later and not _is_row(now, {**wanted, **{c.column: c.wanted for c in clashes}}):
        whole = {**wanted, **{c.column: c.wanted for c in clashes if c.wanted is not ABSENT}}
        clash = Clash(EXISTENCE, _place(timeline, later), now is not None, wanted=True)
        return Verdict(now, [clash], whole, tuple(unknown))  # type: ignore[arg-type]
    if now is not None and not clashes and not unknown and _is_row(now, wanted):
        return None
    return Verdict(wanted, clashes, unknown=tuple(unknown))


def _judge_removal(timeline: Timeline, first: Mapping[str, int]) -> Verdict | None:
    """Of a row that came with what is to be undone."""
    if timeline.state is None:
        return None
    others = sorted(
        {
            number
            for column in {c for change in timeline.changes for c in change.columns}
            for number in _list_later(timeline, column, first[EXISTENCE])
        }
    )
    if others:
        clash = Clash(EXISTENCE, _place(timeline, others), now=True, wanted=False)
        return Verdict(timeline.state, [clash], None)
    return Verdict(None, [])


def _list_later(timeline: Timeline, column: str, first: int) -> list[int]:
    """Changes of a column by others, after the one with this number."""
    return [
        number
        for number, change in enumerate(timeline.changes)
        if number > first and not change.chosen and change.counts(column)
    ]


def _place(timeline: Timeline, numbers: list[int]) -> tuple[int, ...]:
    return tuple(timeline.changes[number].position for number in numbers)


def _is_row(one: State | None, other: Mapping[str, Value]) -> bool:
    return one is not None and all(is_same(one.get(c, UNKNOWN), v) for c, v in other.items())


def list_values(
    timeline: Timeline, column: str, positions: Collection[int]
) -> Iterator[tuple[int, Value, Value]]:
    """By record among `positions`, what it changed the column from and to."""
    for change in timeline.changes:
        if change.position in positions and column in change.columns:
            before, after = change.columns[column]
            yield change.position, before, after
