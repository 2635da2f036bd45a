"""The order of a record that has `BulkRows`, and pages of it, which are loaded one by one."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from oplog.capture.bulk import BulkRows, ReadBulk
from oplog.entry import OpType
from oplog.payload.effect import Effect
from oplog.payload.paged_parts import Page
from oplog.payload.row_run import RunRows


class BulkPages:
    """A transaction's effects in the order of its record; implements `Pages`.

    Each effect has its ordinal: `effects` have theirs, and the rows of `bulk` come behind.
    """

    def __init__(
        self, effects: Mapping[str, Sequence[Effect]], bulk: Sequence[BulkRows], *, read: ReadBulk
    ) -> None:
        self._bulk = bulk
        self._read = read
        pairs = [(effect, name) for name, ones in effects.items() for effect in ones]
        pairs.sort(key=lambda pair: pair[0].ordinal)
        self._effects = [effect for effect, _ in pairs]
        names = [name for _, name in pairs]
        for rows in bulk:
            names += rows.aggregates
        sizes = [len(rows) for rows in bulk]
        self._starts = list(accumulate(sizes, initial=len(pairs)))
        """The ordinal of the first row of each of `bulk`, and of what would come behind."""
        self._order = array("I", sorted(range(len(names)), key=names.__getitem__))
        """Ordinals by aggregate."""
        self._places = array("I")
        """Of each in this order, the number of its aggregate."""
        self.aggregates: list[str] = []
        """In the order of collation C."""
        self._firsts: list[int] = []
        """The first ordinal on each aggregate."""
        self._place(names)

    def _place(self, names: Sequence[str]) -> None:
        before = None
        for ordinal in self._order:
            name = names[ordinal]
            if name != before:
                before = name
                self.aggregates.append(name)
                self._firsts.append(ordinal)
            self._places.append(len(self.aggregates) - 1)

    def list_created(self, created: frozenset[str]) -> list[bool]:
        """Of each aggregate, whether the transaction believes to create it.

        `created` are those of `effects`, which come before the rows of `bulk`.
        """
        creates = [rows.creates for rows in self._bulk]
        begun = self._starts[0]
        return [
            creates[bisect_right(self._starts, ordinal) - 1]
            if ordinal >= begun
            else name in created
            for name, ordinal in zip(self.aggregates, self._firsts, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._order)

    def load(self, start: int, *, count: int) -> Page:
        """Those from number `start` on: `count`, or fewer if they are large, but one at least."""
        order = self._order[start : start + count]
        effects: list[int] = []
        shares: list[list[int]] = [[] for _ in self._bulk]
        """Where in the page the effects are, and the rows of each of `bulk`."""
        for n, ordinal in enumerate(order):
            number = bisect_right(self._starts, ordinal) - 1
            (effects if number < 0 else shares[number]).append(n)
        found, end = [], len(order)
        for number, share in enumerate(shares):
            if share:
                rows = self._load_rows(number, [start + n for n in share])
                end = min(end, [*share, end][len(rows)])
                found.append((share, rows))
        return Page(
            [self._load_effect(start + n) for n in effects if n < end],
            # What is behind the first row that was too much belongs to the next page.
            [rows.take(bisect_left(share, end)) for share, rows in found if share[0] < end],
        )

    def _load_effect(self, place: int) -> Effect:
        effect = self._effects[self._order[place]]
        effect.place = self._places[place]
        return effect

    def _load_rows(self, number: int, places: Sequence[int]) -> RunRows:
        """Rows of one of `bulk`, which are at these places in the order."""
        rows, first = self._bulk[number], self._starts[number]
        ordinals = [self._order[n] for n in places]
        numbers = [ordinal - first for ordinal in ordinals]
        values = self._read(rows, numbers)
        count = len(values[0]) if values else len(places)
        shape = rows.bound.shape
        return RunRows(
            rows.kind,
            shape,
            complete=rows.kind is OpType.CREATE,
            ordinals=ordinals[:count],
            places=[self._places[n] for n in places[:count]],
            keys=[[column[n] for n in numbers[:count]] for column in rows.keys],
            names=rows.written,
            values=values,
        )
