"""What changed in a table between two moments, row by row, and which records did it.

Only the log is read: the records between the moments say which rows were touched, and the histories
of these say what they were at both ends. Keys of touched rows are held in memory, rows by batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from oplog.entry import OpType
from oplog.json_value import format_time, hide, to_json_value
from oplog.past.key_folds import RowFold, TouchFold
from oplog.past.model_rows import describe_row, read_wire
from oplog.past.moment_plans import PastTypes
from oplog.past.past_rows import PastRows, read_aggregates
from oplog.past.row_versions import RowVersion, compare_rows, is_same, show_changes
from oplog.past.touch_scan import choose_effects, scan_touched
from oplog.reading.reader import OpenedRecord, group_pairs
from oplog.replay.effect_route import Key
from oplog.replay.fold import Fold
from oplog.replay.table_plan import TablePlan
from oplog.value import Wire

DifferenceKind = Literal["created", "deleted", "changed"]
BATCH_KEYS = 5_000
"""Rows whose histories are read together."""


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """A record that touched a row: where and when, who, and what it did."""

    position: int
    kind: OpType
    metadata: Mapping[str, list[str]]
    recorded_at: datetime

    def to_json(self) -> dict[str, Any]:
        """The record as one JSON object."""
        return {
            "position": self.position,
            "kind": self.kind.name.lower(),
            "recorded_at": format_time(self.recorded_at),
            "metadata": {key: list(values) for key, values in self.metadata.items()},
        }


@dataclass(frozen=True, slots=True)
class RowDifference:
    """A row that is not the same at two moments.

    `kind` is created, deleted or changed; `before` and `after` are the row at the moments, None
    where it was not there. `changes` are the columns that differ, each with both values. `records`
    are those between the moments that touched the row, oldest first.
    """

    key: Mapping[str, Any]
    kind: DifferenceKind
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    changes: Mapping[str, tuple[Any, Any]]
    records: tuple[RowOrigin, ...]

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The difference as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "key": to_json_value(self.key),
            "kind": self.kind,
            "before": _show_row(self.before, redact=redact),
            "after": _show_row(self.after, redact=redact),
            "changes": show_changes(self.changes, redact=redact),
            "records": [record.to_json() for record in self.records],
        }


def _show_row(row: Mapping[str, Any] | None, *, redact: bool) -> Any:
    return None if row is None else to_json_value(hide(row, redact=redact))


class _StretchFold(RowFold):
    """What a stretch of the log made of chosen rows, and the records that did it."""

    def __init__(self, plan: TablePlan, chosen: Collection[Key]) -> None:
        super().__init__(plan, chosen)
        self.records: dict[Key, list[RowOrigin]] = {}


def list_touched_keys(
    types: PastTypes, plan: TablePlan, *, snapshot: str, through: int
) -> tuple[TouchFold, bool]:
    """Rows of a table that were touched between the types' position and `through`.

    And whether their aggregates say nothing, because rows were logged anew.
    """
    touched = scan_touched(types.reader, [plan], snapshot=snapshot, after=types.at, through=through)
    return touched.folds[plan], touched.anew


def sort_keys(keys: Iterable[Key]) -> list[Key]:
    """Keys in order, column by column; text by its characters."""
    return sorted(keys, key=lambda key: tuple((p is None, 0 if p is None else p) for p in key))


def describe_key(plan: TablePlan, key: Key) -> dict[str, Any]:
    """A key with Python values."""
    return {
        name: None if wire is None else plan.codecs[name].to_python(wire)
        for name, wire in zip(plan.key_names, key, strict=True)
    }


class TableDifferences:
    """The differences of one table between the types' position and `through`."""

    def __init__(
        self, types: PastTypes, rows: PastRows, plan: TablePlan, *, snapshot: str, through: int
    ) -> None:
        self._types = types
        self._rows = rows
        self._plan = plan
        self._snapshot = snapshot
        self._through = through
        rows.aim([plan])
        self._touched, self._anew = list_touched_keys(
            types, plan, snapshot=snapshot, through=through
        )

    def iterate(self) -> Iterator[RowDifference]:
        """Rows that differ, by key."""
        keys = sort_keys(self._touched.first)
        # Where aggregates do not tell, each batch would read the whole log.
        size = len(keys) if self._anew else BATCH_KEYS
        for start in range(0, len(keys), max(size, 1)):
            yield from self._compare(keys[start : start + size])

    def _compare(self, batch: Sequence[Key]) -> Iterator[RowDifference]:
        plan, first = self._plan, self._touched.first
        named = {key: name for key in batch if (name := first[key]) is not None}
        if self._anew:
            before = self._rows.fold_chosen({plan: set(batch)}, None, through=self._types.at)[plan]
        else:
            before = self._rows.read_chosen({plan: named})[plan]
        stretch = self._fold_stretch(set(batch))
        for key in batch:
            known = before.find_row(key)
            old = None if known is None else known[0]
            found = self._compare_row(key, old, stretch)
            if found is not None:
                yield found

    def _fold_stretch(self, batch: set[Key]) -> _StretchFold:
        plan = self._plan
        stretch, touch = _StretchFold(plan, batch), TouchFold(plan)
        by_type = dict.fromkeys(plan.types, stretch)
        fold, touches = Fold(by_type), Fold(dict.fromkeys(plan.types, touch))
        names = {name for key in batch for name in self._touched.aggregates[key]}
        for record in read_aggregates(
            self._types.reader,
            None if self._anew else names,
            snapshot=self._snapshot,
            after=self._types.at,
            through=self._through,
            whole=False,
        ):
            for effect in choose_effects(record, by_type):
                touch.first.clear()
                touches.add((effect,), position=record.stored.position)
                for key in batch.intersection(touch.first):
                    _note(stretch.records.setdefault(key, []), record, effect.kind)
                fold.add((effect,), position=record.stored.position)
        return stretch

    def _compare_row(
        self, key: Key, old: Mapping[str, Wire | None] | None, stretch: _StretchFold
    ) -> RowDifference | None:
        plan, new = self._plan, _apply(old, stretch, key)
        return _make_difference(
            describe_key(plan, key),
            None if old is None else describe_row(plan, old),
            None if new is None else describe_row(plan, new),
            changes=_compare_wires(plan, old, new),
            records=stretch.records.get(key, ()),
        )


def _make_difference(
    key: Mapping[str, Any],
    was: Mapping[str, Any] | None,
    became: Mapping[str, Any] | None,
    *,
    changes: Mapping[str, tuple[Any, Any]],
    records: Iterable[RowOrigin],
) -> RowDifference | None:
    if was is None and became is None:
        return None
    if was is not None and became is not None and not changes:
        return None
    kind: DifferenceKind = "created" if was is None else "deleted" if became is None else "changed"
    return RowDifference(
        key, kind, before=was, after=became, changes=changes, records=tuple(records)
    )


def _note(known: list[RowOrigin], record: OpenedRecord, kind: OpType) -> None:
    stored = record.stored
    if known and known[-1].position == stored.position:
        # A row that moves to another aggregate is deleted and made in one transaction.
        first = known.pop().kind
        if (first, kind) == (OpType.DELETE, OpType.CREATE):
            kind = OpType.UPDATE
        elif (first, kind) == (OpType.CREATE, OpType.UPDATE):
            kind = OpType.CREATE
    known.append(RowOrigin(stored.position, kind, group_pairs(stored.metadata), stored.recorded_at))


def _apply(
    old: Mapping[str, Wire | None] | None, fold: RowFold, key: Key
) -> Mapping[str, Wire | None] | None:
    """A row after what a stretch of the log did to it."""
    made = fold.find_row(key)
    if made is not None:
        return made[0]
    if key in fold.patched:
        return None if old is None else {**old, **fold.patched[key][0]}
    return None if key in fold.gone else old


def _compare_wires(
    plan: TablePlan,
    old: Mapping[str, Wire | None] | None,
    new: Mapping[str, Wire | None] | None,
) -> dict[str, tuple[Any, Any]]:
    changes = {}
    for name in plan.names:
        one = None if old is None else read_wire(plan, name, row=old)
        other = None if new is None else read_wire(plan, name, row=new)
        if not is_same(one, other):
            read = plan.codecs[name].to_python
            changes[name] = (
                None if one is None else read(one),
                None if other is None else read(other),
            )
    return changes


def compare_versions(
    versions: Sequence[RowVersion], key: Mapping[str, Any], *, before: int, after: int
) -> RowDifference | None:
    """The difference of one row, by its versions; None if it is the same at both positions."""
    earlier = [one for one in versions if one.position <= before]
    between = [one for one in versions if before < one.position <= after]
    was = earlier[-1].row if earlier else None
    became = between[-1].row if between else was
    return _make_difference(
        key,
        was,
        became,
        changes=compare_rows(was, became),
        records=(RowOrigin(v.position, v.kind, v.metadata, v.recorded_at) for v in between),
    )
