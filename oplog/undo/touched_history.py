"""Reads from the log what became of the rows that some records changed.

The records that are to be undone are read first, for the rows they touched; then the histories of
these rows, by their aggregates where those follow from the keys and are few, else in one pass of
the log. What is kept is bounded by the rows and what was done to them since, not by the log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.engine import Connection

from oplog.entry import OpType
from oplog.errors import SchemaDriftError, UndoError
from oplog.payload.codec import Effect
from oplog.payload.column_numbers import match_numbers
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs
from oplog.reading.row_identity import RowIdentity
from oplog.replay.effect_route import Key, Route, make_route
from oplog.replay.live_target import find_live_targets
from oplog.replay.rules import find_turns, make_rules
from oplog.replay.table_plan import TablePlan, read_plans
from oplog.replay.validity import FoldRules
from oplog.store import EntryFilter, StoredRecord
from oplog.undo.row_timeline import Timeline
from oplog.undo.selected_records import (
    MOST_RECORDS,
    Selection,
    find_kept_aggregates,
    read_undone,
    select_records,
    why_left_out,
)
from oplog.value import Wire

Rows: TypeAlias = dict[int, dict[Key, Timeline]]
"""Timelines by table's oid and key."""
MOST_AGGREGATES = 1000
"""Histories of rows in more aggregates are read in one pass of the whole log."""

_EARLIER, _FEW_ROWS = 1000, 10_000
"""Changes of each row that are kept from before what is to be undone, and of how many rows."""


@dataclass(frozen=True, slots=True)
class RecordNote:
    """What people want to know of a record: who, when, why."""

    position: int
    recorded_at: datetime
    metadata: Mapping[str, list[str]]


@dataclass
class TouchedRows:
    """Rows that the chosen records touched, with what happened to them since."""

    tables: dict[int, TablePlan]
    rows: Rows
    notes: dict[int, RecordNote]
    """Records that touched them, by position."""
    chosen: frozenset[int]
    left_out: list[tuple[int, str]] = field(default_factory=list)
    """Records that were found and have nothing to undo, with the reason."""


def read_touched(connection: Connection, reader: RecordReader, selection: Selection) -> TouchedRows:
    """Rows and histories of what is selected; text settings must be pinned.

    Raises `UndoError` for a record that has nothing to undo or is quarantined, and for one on a
    table that is gone; `SchemaDriftError` where the log does not say how rows of then are rows of
    now.
    """
    snapshot = reader.source.read_snapshot()
    turns = find_turns(reader, snapshot=snapshot)
    revisions = group_shapes(reader.types.shapes)
    live = find_live_targets(
        connection, revisions, turns, schema=reader.source.schema, missing=True
    )
    reader.aim_steps({one.shape.type_name: one.shape.revision for _, one in live.placed})
    plans = read_plans(connection, live.placed)
    rules = make_rules(plans, turns, gone=live.gone)
    reading = _Reading(reader, _Routes(plans, rules), revisions, snapshot=snapshot)
    found = TouchedRows({plan.live.oid: plan for plan in plans}, {}, {}, frozenset())
    reading.choose(selection, found)
    reading.follow(found)
    return found


class _Reading:
    """The two passes over the log."""

    def __init__(
        self,
        reader: RecordReader,
        routes: _Routes,
        revisions: Mapping[str, list[Shape]],
        *,
        snapshot: str,
    ) -> None:
        self._reader = reader
        self._routes = routes
        self._revisions = revisions
        self._snapshot = snapshot
        self._kept: dict[int, frozenset[int]] = {}
        """Of each chosen record the places of the aggregates that are to be undone."""
        self._names: set[str] = set()

    def choose(self, selection: Selection, found: TouchedRows) -> None:
        explicit = bool(selection.records)
        for stored in select_records(self._reader, selection, snapshot=self._snapshot):
            reason = why_left_out(stored)
            if reason is not None and explicit:
                raise UndoError(
                    f"the record at position {stored.position} cannot be undone: {reason}",
                    hint="choose records that changed rows, as oplog tail shows them",
                )
            if reason is not None:
                found.left_out.append((stored.position, reason))
                continue
            self._add_chosen(stored, selection, found)
        found.chosen = frozenset(self._kept)
        if len(self._kept) > MOST_RECORDS:
            raise UndoError(
                f"{len(self._kept)} records are too many for one undo, which names them all; the "
                f"limit is {MOST_RECORDS}",
                hint="undo them in several steps, the newest first: after=..., through=...",
            )

    def _add_chosen(self, stored: StoredRecord, selection: Selection, found: TouchedRows) -> None:
        kept = find_kept_aggregates(stored, selection.aggregates)
        opened = self._reader.open(stored, aggregates=selection.aggregates or None)
        if opened.skipped is not None:
            raise UndoError(
                f"what the record at position {stored.position} did cannot be read: "
                f"{opened.skipped.describe()}",
                hint="leave it out, and write by hand what is known of it",
            )
        self._kept[stored.position] = kept
        for effect in opened.effects:
            if effect.place not in kept:
                continue
            routed = self._routes.find(effect, stored.position)
            if routed is None:
                raise UndoError(
                    f"the record at position {stored.position} changed {effect.shape.type_name!r}, "
                    "whose rows of then are not in any table of now: it was dropped, or its rows "
                    "were logged anew under another key",
                    hint="choose other records, or an aggregate of tables that are there",
                )
            plan, key, _ = routed
            timeline = found.rows.setdefault(plan.live.oid, {}).setdefault(key, Timeline())
            if effect.kind is OpType.UPDATE:
                timeline.lost |= self._routes.find_converted(effect)
            self._names.add(stored.aggregates[effect.place])

    def follow(self, found: TouchedRows) -> None:
        """Read the histories of the rows, and note the records that are in them."""
        most = _EARLIER if sum(map(len, found.rows.values())) <= _FEW_ROWS else 0
        for stored, opened in self._iterate(self._find_filter(found)):
            metadata: dict[str, list[str]] | None = None
            for oid, key, timeline, before in self._apply(stored, opened, found.rows):
                if metadata is None:
                    metadata = group_pairs(stored.metadata)
                timeline.record(
                    before,
                    position=stored.position,
                    chosen=(oid, key) in self._own,
                    undoes=read_undone(metadata),
                    most=most,
                )
                if timeline.begun or stored.position in self._kept:
                    note = RecordNote(stored.position, stored.recorded_at, metadata)
                    found.notes.setdefault(stored.position, note)

    def _apply(
        self, stored: StoredRecord, opened: OpenedRecord, rows: Rows
    ) -> Iterator[tuple[int, Key, Timeline, Mapping[str, Wire | None] | None]]:
        """Bring the rows up to this record; each with what it was before."""
        self._own: set[tuple[int, Key]] = set()
        touched: dict[tuple[int, Key], tuple[Timeline, Mapping[str, Wire | None] | None]] = {}
        kept = self._kept.get(stored.position, frozenset())
        for effect in opened.effects:
            routed = self._routes.find(effect, stored.position)
            if routed is None:
                continue
            plan, key, values = routed
            timeline = rows.get(plan.live.oid, {}).get(key)
            if timeline is None:
                continue
            place = plan.live.oid, key
            if not timeline.met and effect.kind is not OpType.CREATE and not effect.adopted:
                # The log does not know its other columns: it was there before the log.
                timeline.state = dict(zip(plan.key_names, key, strict=True))
            if place not in touched:
                touched[place] = timeline, timeline.state
            if effect.place in kept:
                self._own.add(place)
            _change(timeline, effect, plan, key=key, values=values)
        for (oid, key), (timeline, before) in touched.items():
            yield oid, key, timeline, before

    def _iterate(self, chosen: EntryFilter) -> Iterator[tuple[StoredRecord, OpenedRecord]]:
        wanted = frozenset(chosen.aggregates) or None
        for page in self._reader.source.iterate(chosen, snapshot=self._snapshot):
            for stored in page:
                yield stored, self._reader.open(stored, aggregates=wanted)

    def _find_filter(self, found: TouchedRows) -> EntryFilter:
        """The rows' aggregates, if their names follow from keys and are few; else everything."""
        if sum(map(len, found.rows.values())) > MOST_AGGREGATES:
            return EntryFilter()
        names: set[str] = set()
        for oid, rows in found.rows.items():
            plan = found.tables[oid]
            for key in rows:
                listed = self._list_aggregates(plan, key)
                if listed is None:
                    return EntryFilter()
                names |= listed
        # An entry that was made by hand may be in any aggregate.
        if not self._names <= names or len(names) > MOST_AGGREGATES:
            return EntryFilter()
        return EntryFilter(aggregates=tuple(sorted(names)))

    def _list_aggregates(self, plan: TablePlan, key: Key) -> set[str] | None:
        keys, known = {}, {}
        for name, target in plan.targets.items():
            shape = target.shape
            parts = dict(zip(plan.key_names, key, strict=True))
            if not all(column in shape.by_name for column in parts):
                return None
            keys[name] = {
                shape.by_name[column].number: wire
                for column, wire in parts.items()
                if wire is not None
            }
            known[name] = self._revisions[name]
        row = RowIdentity(next(iter(plan.targets.values())).shape, known, keys)
        listed = row.list_aggregates()
        return None if listed is None else listed | row.list_adoptions()


def _change(
    timeline: Timeline,
    effect: Effect,
    plan: TablePlan,
    *,
    key: Key,
    values: Mapping[str, Wire | None],
) -> None:
    """The row after an effect."""
    state = timeline.state
    if effect.kind is OpType.CREATE:
        timeline.state = dict(zip(plan.key_names, key, strict=True)) | dict(values)
    elif effect.kind is OpType.UPDATE:
        if state is None:
            # While a table is adopted the log may speak of rows that are gone.
            return
        timeline.state = {**state, **values}
    else:
        if state is not None:
            timeline.last = state
        timeline.state = None
    timeline.met = True


class _Routes:
    """How effects of any revision reach the columns that their tables have now."""

    def __init__(self, plans: Collection[TablePlan], rules: FoldRules) -> None:
        self._plans = {name: plan for plan in plans for name in plan.types}
        self._rules = rules
        self._known: dict[int, tuple[Shape, TablePlan, Route, dict[str, Wire | None]] | None] = {}

    def find(
        self, effect: Effect, position: int
    ) -> tuple[TablePlan, Key, Mapping[str, Wire | None]] | None:
        """Table, key and values of an effect; None if it says nothing of a table of now."""
        shape = effect.shape
        if id(shape) not in self._known:
            self._known[id(shape)] = self._make(shape)
        found = self._known[id(shape)]
        if found is None:
            return None
        _, plan, route, fills = found
        if position < route.validity.since:
            return None
        key, values = effect.key, effect.values
        if route.converts:
            key, values = route.apply(effect, position)
        if effect.complete and fills:
            values = {**fills, **values}
        return plan, key, values

    def find_converted(self, effect: Effect) -> set[str]:
        """Columns of now whose values in the effect are those of before a conversion."""
        target = self._plans[effect.shape.type_name].targets[effect.shape.type_name]
        if target.shape is effect.shape:
            return set()
        mapped = {route.source for route in target.map_from(effect.shape)}
        names = _follow_columns(effect.shape, target.shape)
        return {names[name] for name in effect.values if name not in mapped and names.get(name)}

    def _make(self, shape: Shape) -> tuple[Shape, TablePlan, Route, dict[str, Wire | None]] | None:
        plan = self._plans.get(shape.type_name)
        if plan is None or plan.targets[shape.type_name].is_apart_from(shape):
            return None
        validity = self._rules.judge(shape)
        if validity.refusal is not None:
            return None
        target = plan.targets[shape.type_name]
        until = self._rules.lenient_until.get(shape.type_name, 0)
        try:
            made = make_route(shape, plan, lenient_until=until)
        except SchemaDriftError:
            if validity.since:
                return None
            raise
        route = Route(
            shape,
            plan,
            made.columns,
            conversions=made.conversions,
            key_conversions=made.key_conversions,
            lenient_until=until,
            validity=validity,
        )
        mapped = {one.target for one in target.map_from(shape)}
        fills = {
            name: None if text is None else plan.codecs[name].from_text(text)
            for name, text in target.find_fills().items()
            if name not in mapped and name in plan.codecs
        }
        return shape, plan, route, fills


def _follow_columns(old: Shape, now: Shape) -> dict[str, str]:
    """By column of a revision, its name now, whatever its values were converted to.

    By what the database numbers them, where both revisions were used in one; else by their names.
    """
    pair = match_numbers(old.numbers, now.numbers)
    if pair is not None and pair[0].table == pair[1].table:
        names = {number: name for name, number in pair[1].columns.items()}
        return {
            name: names[number]
            for name, number in pair[0].columns.items()
            if names.get(number) in now.by_name
        }
    return {name: name for name in old.names if name in now.by_name}
