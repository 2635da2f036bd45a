"""The value that a column of a row had before a change: what the change before it wrote.

An update holds what it wrote, not what it replaced. So the value is looked up backwards in the
aggregates that the change is in, by index, until a change of the row has the column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from oplog.entry import OpType
from oplog.payload.codec import Effect
from oplog.payload.shape import Shape
from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.store import EntryFilter
from oplog.store.adopted import name_adoption
from oplog.value import Wire

_EXPECTED = 4
"""Records of the first page: most rows were changed lately by the record before."""


class Held(NamedTuple):
    """A value that a row had, NULL included."""

    wire: Wire | None


class ValueBefore:
    """Looks up values; reads with a reader of its own, as another one is being read meanwhile."""

    def __init__(self, open_reader: Callable[[], RecordReader], column: str) -> None:
        self._open_reader = open_reader
        self._column = column
        self._reader: RecordReader | None = None

    def find(self, opened: OpenedRecord, effect: Effect) -> Held | None:
        """What the row had in the column before this effect of a record; None for no row."""
        same = [one for one in opened.effects if _is_same_row(one, effect)]
        earlier = [one for one in same if one.ordinal < effect.ordinal]
        answer = self._look(earlier)
        if answer is not None or (effect.kind is OpType.CREATE and not earlier):
            return answer[0] if answer else None
        names = {opened.stored.aggregates[one.place] for one in same}
        names.add(name_adoption(effect.shape.type_name))
        return self._look_up(effect, tuple(sorted(names)), through=opened.stored.position - 1)

    def _look_up(self, effect: Effect, names: tuple[str, ...], *, through: int) -> Held | None:
        if self._reader is None:
            self._reader = self._open_reader()
        reader = self._reader
        key = effect.key

        def find_keys(shape: Shape) -> list[tuple[Wire | None, ...]] | None:
            return [key] if shape is effect.shape else None

        for page in reader.source.iterate_pages(
            EntryFilter(aggregates=names, through=through),
            snapshot=reader.source.read_snapshot(),
            newest_first=True,
            expected=_EXPECTED,
        ):
            for stored in page:
                opened = reader.open(stored, find_keys=find_keys, aggregates=names)
                same = [one for one in opened.effects if _is_same_row(one, effect)]
                answer = self._look(same)
                if answer is not None:
                    return answer[0]
        return None

    def _look(self, effects: Sequence[Effect]) -> tuple[Held | None] | None:
        """What the row has after these effects; None where they do not say it."""
        for effect in reversed(effects):
            if effect.kind is OpType.DELETE:
                return (None,)
            if self._column in effect.values:
                return (Held(effect.values[self._column]),)
        return None


def _is_same_row(one: Effect, other: Effect) -> bool:
    return one.key == other.key and (one.shape.schema, one.shape.table) == (
        other.shape.schema,
        other.shape.table,
    )
