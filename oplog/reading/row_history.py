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
from oplog.payload.shape import Shape
from oplog.postgres.work import check_moment
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs, list_aggregates
from oplog.store import EntryFilter
from oplog.store.adopted import name_adoption
from oplog.value import UNSURE, Wire


class _Origin(NamedTuple):
    """The record that an effect is in."""

    position: int
    metadata: Mapping[str, list[str]]
    recorded_at: datetime


_Touch: TypeAlias = tuple[Effect, Operation, _Origin]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row in one table: every revision logged for the table, and the key by shape."""

    newest: Shape
    shapes: Mapping[tuple[str, int], Shape]
    key: Mapping[str, Wire]

    def matches(self, effect: Effect) -> bool:
        """Whether the effect is on this row."""
        return self.holds(effect.shape) and effect.key == self._order_key(effect.shape)

    def holds(self, shape: Shape) -> bool:
        """Whether the shape is one that was logged for the row's table."""
        return (shape.type_name, shape.revision) in self.shapes

    def find_key(self, shape: Shape) -> tuple[Wire | None, ...] | None:
        """The key as it stands in blocks of this shape; None where that is not certain."""
        known, now = shape.by_name, self.newest.by_name
        if not self.holds(shape) or any(
            name not in now or now[name].pg_type != known[name].pg_type for name in shape.key_names
        ):
            return None
        return self._order_key(shape)

    def _order_key(self, shape: Shape) -> tuple[Wire | None, ...]:
        return tuple([self.key.get(name) for name in shape.key_names])

    def list_adoptions(self) -> set[str]:
        """Aggregates that hold the adopted rows of the table."""
        return {name_adoption(type_name) for type_name, _ in self.shapes}

    def list_aggregates(self) -> set[str] | None:
        """Aggregates the row can be in; None when its key alone does not say."""
        names = set()
        for shape in self.shapes.values():
            template = AggregateTemplate(shape.aggregate)
            if not set(template.columns) <= set(shape.key_names) & set(self.key):
                return None
            texts = {n: shape.codecs[n].to_text(self.key[n]) for n in template.columns}
            names.add(template.render(texts))
        return names


def list_changes(reader: RecordReader, types: Sequence[DeclaredType], *, key: Any) -> list[Change]:
    """What happened to the row with this key, oldest first.

    `types` are those that hold the row (several for joined inheritance; their changes in one
    transaction are one). `key` is the primary key's value, a tuple in the order of the
    model's key columns, or a mapping. A row deleted and written again in one transaction, or
    moved to another aggregate, is one update with every field.

    Reads only the row's aggregate if its name follows from the key, else the whole log.
    Raises `ConfigurationError` for a key that does not fit.
    """
    # Before the types: those of every record in the snapshot are stored by then.
    snapshot = reader.source.read_snapshot()
    rows = _find_rows(reader, types, key)
    return [_merge(group) for _, group in _iterate_groups(reader, rows, snapshot=snapshot)]


def rebuild_row(
    reader: RecordReader, types: Sequence[DeclaredType], *, key: Any, at: int | datetime
) -> dict[str, Any] | None:
    """The row's logged columns after the last transaction at or before `at`.

    A position or an aware datetime; transactions count whole. None if there was no row, or
    none that the log knew: a row that was not adopted yet may have been changed before.
    """
    snapshot = reader.source.read_snapshot()
    if isinstance(at, datetime):
        at = reader.source.find_position(check_moment(at), snapshot=snapshot)
    rows = _find_rows(reader, types, key)
    # With joined inheritance there is a row only where every table has its part of it.
    states: dict[tuple[str, str], dict[str, Any] | None] = dict.fromkeys(
        (row.newest.schema, row.newest.table) for row in rows
    )
    for transaction, group in _iterate_groups(reader, rows, snapshot=snapshot):
        if transaction > at:
            break
        for effect, operation, _ in group:
            place = (effect.shape.schema, effect.shape.table)
            before = states[place]
            if effect.kind is OpType.DELETE:
                states[place] = None
            elif effect.kind is OpType.CREATE:
                states[place] = dict(operation.fields)
            elif before is not None:
                before.update(operation.fields)
    row: dict[str, Any] = {}
    for state in states.values():
        if state is None:
            return None
        row.update(state)
    return row or None


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


def _merge(group: Sequence[_Touch]) -> Change:
    """One transaction's effects on a row, over all tables that hold it."""
    by_table: dict[tuple[str, str], list[OpType]] = {}
    fields: dict[str, Any] = {}
    for effect, operation, _ in group:
        kinds = by_table.setdefault((effect.shape.schema, effect.shape.table), [])
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
    stored, newest = reader.types.shapes, reader.types.latest
    values = _list_values(types[0].table, key)
    rows = []
    for declared in types:
        shape = newest.get(declared.type_name)
        if shape is None:
            # Never written: the log has not even stored the type.
            continue
        place = (shape.schema, shape.table)
        shapes = {
            (other.type_name, other.revision): other
            for other in stored
            if (newest[other.type_name].schema, newest[other.type_name].table) == place
        }
        names = [column.name for column in declared.table.primary_key]
        wires = {
            name: _to_wire(shape, name, value) for name, value in zip(names, values, strict=True)
        }
        rows.append(_Row(shape, shapes, wires))
    return rows


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
