"""What happened to one row: its changes, and the row as it was at a position or a time.

A row's records are found without reading the whole log where the name of its aggregate follows
from its key, under every template that its type ever had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from oplog.catalog import DeclaredType
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.entry import Change, Operation, OpType
from oplog.errors import ConfigurationError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.codec import Effect
from oplog.payload.lineage import find_shape_at, group_shapes, map_columns
from oplog.payload.shape import Shape
from oplog.payload.upcast import StepLookup
from oplog.reading.given_place import find_place
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs, list_aggregates
from oplog.reading.type_match import match_type
from oplog.store import EntryFilter
from oplog.store.adopted import Turns, name_adoption
from oplog.value import UNSURE, Wire


class _Origin(NamedTuple):
    """The record that an effect is in."""

    position: int
    metadata: Mapping[str, list[str]]
    recorded_at: datetime


_Touch: TypeAlias = tuple[Effect, Operation, _Origin]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row in one table: every revision logged for the table, and the key by field number."""

    newest: Shape
    revisions: Mapping[str, Sequence[Shape]]
    """By type of the table, all revisions."""
    keys: Mapping[str, Mapping[int, Wire]]
    """By type, the key's values as the newest revision has them, by field number."""

    def matches(self, effect: Effect) -> bool:
        """Whether the effect is on this row."""
        return self.holds(effect.shape) and effect.key == self._make_key(effect.shape)

    def holds(self, shape: Shape) -> bool:
        """Whether the shape is one that was logged for the row's table."""
        return shape.type_name in self.revisions

    def find_key(self, shape: Shape) -> tuple[Wire | None, ...] | None:
        """The key as it stands in blocks of this shape; None where that is not certain."""
        if not self.holds(shape):
            return None
        now = self.revisions[shape.type_name][-1].by_number
        for column in shape.key_columns:
            known = now.get(column.number)
            if known is None or known.pg_type != column.pg_type:
                return None
        return self._make_key(shape)

    def _make_key(self, shape: Shape) -> tuple[Wire | None, ...]:
        known = self.revisions[shape.type_name]
        labels = {
            one.target: one.labels
            for one in map_columns(known, known[-1], shape)
            if one.labels and shape is not known[-1]
        }
        key = [self.keys[shape.type_name].get(column.number) for column in shape.key_columns]
        return tuple(
            labels[name].get(wire, wire) if name in labels and isinstance(wire, str) else wire
            for name, wire in zip(shape.key_names, key, strict=True)
        )

    def list_adoptions(self) -> set[str]:
        """Aggregates that hold the adopted rows of the table."""
        return {name_adoption(type_name) for type_name in self.revisions}

    def list_aggregates(self) -> set[str] | None:
        """Aggregates the row can be in; None when its key alone does not say."""
        names = set()
        for shape in (one for known in self.revisions.values() for one in known):
            template = AggregateTemplate(shape.aggregate)
            key = dict(zip(shape.key_names, self._make_key(shape), strict=True))
            if not set(template.columns) <= set(key) or None in key.values():
                return None
            texts = {
                name: shape.codecs[name].to_text(wire)
                for name, wire in key.items()
                if wire is not None and name in template.columns
            }
            names.add(template.render(texts))
        return names


def list_changes(
    reader: RecordReader,
    types: Sequence[DeclaredType],
    *,
    key: Any,
    steps: StepLookup | None = None,
) -> list[Change]:
    """What happened to the row with this key, oldest first.

    `types` are those that hold the row (several for joined inheritance; their changes in one
    transaction are one). `key` is the primary key's value, a tuple in the order of the
    model's key columns, or a mapping. A row deleted and written again in one transaction, or
    moved to another aggregate, is one update with every field. With `steps`, columns have the
    names of now; without, those that the reader gives.

    Reads only the row's aggregate if its name follows from the key, else the whole log.
    Raises `ConfigurationError` for a key that does not fit.
    """
    # Before the types: those of every record in the snapshot are stored by then.
    snapshot = reader.source.read_snapshot()
    rows = _find_rows(reader, types, key)
    if steps is not None:
        reader.read_as(_list_newest(rows), steps)
    return [_merge(group, rows) for _, group in _iterate_groups(reader, rows, snapshot=snapshot)]


def rebuild_row(
    reader: RecordReader,
    types: Sequence[DeclaredType],
    *,
    key: Any,
    at: int | datetime,
    steps: StepLookup | None = None,
    then: bool = False,
) -> dict[str, Any] | None:
    """The row's logged columns after the last transaction at or before `at`.

    A position or an aware datetime; transactions count whole. None if there was no row, or
    none that the log knew: a row that was not adopted yet may have been changed before. With
    `steps`, columns are those of now, or (`then`) those that the table had at `at`; without, those
    that the reader gives.
    """
    snapshot = reader.source.read_snapshot()
    at = find_place(reader, at, snapshot=snapshot)
    rows = _find_rows(reader, types, key)
    revisions = _list_newest(rows)
    if then:
        turns = reader.source.find_adoptions(list(revisions), snapshot=snapshot, through=at)
        revisions |= _list_then(rows, turns, at)
    if steps is not None:
        reader.read_as(revisions, steps)
    # With joined inheritance there is a row only where every table has its part of it.
    states: list[dict[str, Any] | None] = [None for _ in rows]
    for transaction, group in _iterate_groups(reader, rows, snapshot=snapshot):
        if transaction > at:
            break
        for touch in group:
            _change_state(states, rows, touch)
    row: dict[str, Any] = {}
    for one, state in zip(rows, states, strict=True):
        if state is None:
            return None
        if steps is not None:
            # What rows of then got when a column was added came with later records.
            wanted = revisions[one.newest.type_name]
            row |= dict.fromkeys(reader.types.find_shape(one.newest.type_name, wanted).names)
        row.update(state)
    return row or None


def _change_state(states: list[dict[str, Any] | None], rows: Sequence[_Row], touch: _Touch) -> None:
    effect, operation, _ = touch
    place = _find_place(rows, effect)
    before = states[place]
    if effect.kind is OpType.DELETE:
        states[place] = None
    elif effect.kind is OpType.CREATE:
        states[place] = dict(operation.fields)
    elif before is not None:
        before.update(operation.fields)


def _list_then(rows: Sequence[_Row], turns: Mapping[str, Turns], at: int) -> dict[str, int]:
    """By type, the revision that its table had at a position."""
    return {
        name: shape.revision
        for row in rows
        for name, known in row.revisions.items()
        for shape in [find_shape_at(known, turns.get(name, Turns()).changes, at)]
        if shape is not None
    }


def _list_newest(rows: Sequence[_Row]) -> dict[str, int]:
    return {name: known[-1].revision for row in rows for name, known in row.revisions.items()}


def _find_place(rows: Sequence[_Row], effect: Effect) -> int:
    """Which of the rows the effect is on."""
    return next(place for place, row in enumerate(rows) if row.holds(effect.shape))


def _iterate_groups(
    reader: RecordReader, rows: Sequence[_Row], *, snapshot: str
) -> Iterator[tuple[int, list[_Touch]]]:
    """What each transaction did to the row, in order, with the transaction's position."""
    found: dict[int, list[_Touch]] = {}

    def find_keys(shape: Shape) -> list[tuple[Wire | None, ...]] | None:
        keys = []
        for row in rows:
            key = row.find_key(shape)
            if key is None and row.holds(shape):
                return None
            keys += [] if key is None else [key]
        return keys

    chosen = _find_filter(rows)
    chain = None if chosen.takes_all else ChainCheck()
    wanted = list_aggregates(chosen)
    for page in reader.source.iterate(chosen, snapshot=snapshot):
        for stored in page:
            opened = reader.open(stored, find_keys=find_keys, aggregates=wanted)
            if chain is not None:
                links = [link for link in stored.list_links() if link.aggregate in (wanted or ())]
                chain.require(links, hint="rows of the log were altered or removed; run verify")
            touched = [e for e in opened.effects if any(row.matches(e) for row in rows)]
            if touched:
                metadata = group_pairs(stored.metadata)
                origin = _Origin(stored.position, metadata, stored.recorded_at)
                told = reader.list_operations(OpenedRecord(stored, touched))
                found[stored.position] = [(*one, origin) for one in told]
    # An archive gives them in the order in which they were published.
    for position in sorted(found):
        yield position, found[position]


def _merge(group: Sequence[_Touch], rows: Sequence[_Row]) -> Change:
    """One transaction's effects on a row, over all tables that hold it."""
    by_table: dict[int, list[OpType]] = {}
    fields: dict[str, Any] = {}
    for effect, operation, _ in group:
        kinds = by_table.setdefault(_find_place(rows, effect), [])
        kinds.append(effect.kind)
        if effect.kind is not OpType.DELETE:
            fields.update(operation.fields)
    net = {_net_kind(kinds) for kinds in by_table.values()}
    kind = next(iter(net)) if len(net) == 1 else OpType.UPDATE
    last = max((origin for _, _, origin in group), key=lambda origin: origin.position)
    return Change(
        position=last.position,
        kind=kind,
        fields={} if kind is OpType.DELETE else fields,
        metadata=last.metadata,
        recorded_at=last.recorded_at,
    )


def _net_kind(kinds: Sequence[OpType]) -> OpType:
    if kinds[-1] is OpType.DELETE:
        return OpType.DELETE
    return OpType.CREATE if kinds[0] is OpType.CREATE else OpType.UPDATE


# -- which records ---------------------------------------------------------------------------


def _find_filter(rows: Sequence[_Row]) -> EntryFilter:
    """What to read: the row's aggregates if their names follow from its key, else all."""
    names: set[str] = set()
    for row in rows:
        listed = row.list_aggregates()
        if listed is None:
            return EntryFilter()
        names |= listed | row.list_adoptions()
    return EntryFilter(aggregates=tuple(sorted(names)))


# -- which row -------------------------------------------------------------------------------


def _find_rows(reader: RecordReader, types: Sequence[DeclaredType], key: Any) -> list[_Row]:
    newest, known = reader.types.latest, group_shapes(reader.types.shapes)
    values = _list_values(types[0].table, key)
    rows = []
    for declared in types:
        shape = match_type(newest, declared)
        if shape is None:
            # Never written: the log has not even stored the type.
            continue
        place = (shape.schema, shape.table)
        revisions = {
            name: shapes
            for name, shapes in known.items()
            if name == shape.type_name or (shapes[-1].schema, shapes[-1].table) == place
        }
        names = [column.name for column in declared.table.primary_key]
        by_number = _find_key(shape, known[shape.type_name], dict(zip(names, values, strict=True)))
        wires = {shape.by_number[number].name: wire for number, wire in by_number.items()}
        keys = {
            name: {
                column.number: wires[column.name]
                for column in shapes[-1].columns
                if column.name in wires
            }
            for name, shapes in revisions.items()
        }
        rows.append(_Row(shape, revisions, keys))
    return rows


def _find_key(newest: Shape, known: Sequence[Shape], values: Mapping[str, Any]) -> dict[int, Wire]:
    """The key by field number, given by the names of the newest revision or of an earlier one."""
    for shape in reversed(known):
        if set(values) <= set(shape.key_names):
            numbers = {shape.by_name[name].number: value for name, value in values.items()}
            if numbers.keys() <= newest.by_number.keys():
                return {
                    number: _to_wire(newest, newest.by_number[number].name, value)
                    for number, value in numbers.items()
                }
    unknown = next(iter(values))
    raise ConfigurationError(
        f"{unknown} is no key of type {newest.type_name!r} in the log, which has "
        f"({', '.join(newest.key_names)})",
        hint="bring the model and the table into agreement",
    )


def _list_values(table: sa.Table, key: Any) -> list[Any]:
    """The key's values in the order of the table's primary key."""
    names = [column.name for column in table.primary_key]
    if isinstance(key, Mapping):
        if set(key) != set(names):
            raise _unfit_key(table, key, names)
        return [key[name] for name in names]
    values = list(key) if isinstance(key, (tuple, list)) else [key]
    if len(values) != len(names):
        raise _unfit_key(table, key, names)
    return values


def _to_wire(shape: Shape, name: str, value: Any) -> Wire:
    codec = shape.codecs.get(name)
    wire = UNSURE if codec is None or value is None else codec.to_wire(value)
    if wire is UNSURE:
        raise ConfigurationError(
            f"{value!r} ({type(value).__name__}) cannot be a key value of "
            f"{shape.table}.{name}{f' ({codec.pg_type})' if codec else ''}",
            hint="give the Python type that matches the column",
        )
    return wire


def _unfit_key(table: sa.Table, key: Any, names: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"{key!r} is not a key of {table.fullname}, whose primary key is ({', '.join(names)})",
        hint="give one value, a tuple in this order, or a mapping of all its columns",
    )
