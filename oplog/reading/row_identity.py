"""Which row a key means: the types and revisions that it was logged under, and its key in each.

The key may be that of the table's columns of now, or of an earlier revision: rows that were logged
anew under another key had it before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from oplog.catalog import DeclaredType
from oplog.errors import ConfigurationError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.codec import Effect
from oplog.payload.lineage import group_shapes, map_columns
from oplog.payload.shape import Shape
from oplog.reading.reader import RecordReader
from oplog.reading.type_match import match_type
from oplog.store.adopted import Turns, name_adoption
from oplog.value import UNSURE, Wire


@dataclass(frozen=True, slots=True)
class RowIdentity:
    """A row in one table: every revision logged for the table, and the key by field number."""

    newest: Shape
    revisions: Mapping[str, Sequence[Shape]]
    """By type of the table, all revisions."""
    keys: Mapping[str, Mapping[int, Wire]]
    """By type, the key's values by field number."""
    _made: dict[tuple[str, int], tuple[Wire | None, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Keys by type and revision: they are compared with the key of every effect that is read."""

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
        place = (shape.type_name, shape.revision)
        if place not in self._made:
            self._made[place] = self._map_key(shape)
        return self._made[place]

    def _map_key(self, shape: Shape) -> tuple[Wire | None, ...]:
        known, given = self.revisions[shape.type_name], self.keys[shape.type_name]
        if given.keys() != {column.number for column in shape.key_columns}:
            # Rows of this revision have another key.
            return tuple(None for _ in shape.key_columns)
        labels = {
            one.target: one.labels
            for one in map_columns(known, known[-1], shape)
            if one.labels and shape is not known[-1]
        }
        key = [given[column.number] for column in shape.key_columns]
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


def find_rows(
    reader: RecordReader, types: Sequence[DeclaredType], key: Any, *, snapshot: str
) -> list[RowIdentity]:
    """The row in each of its tables; `ConfigurationError` for a key that does not fit."""
    known = group_shapes(reader.types.shapes)
    values = _list_values(types[0].table, key)
    rows = []
    for declared in types:
        shape, revisions = find_table_types(reader, declared, snapshot=snapshot)
        if shape is None:
            # Never written: the log has not even stored the type.
            continue
        names = [column.name for column in declared.table.primary_key]
        then, by_number = _find_key(known[shape.type_name], dict(zip(names, values, strict=True)))
        wires = {then.by_number[number].name: wire for number, wire in by_number.items()}
        keys = {
            name: {
                column.number: wires[column.name]
                for column in shapes[-1].columns
                if column.name in wires
            }
            for name, shapes in revisions.items()
        }
        rows.append(RowIdentity(shape, revisions, keys | {shape.type_name: by_number}))
    return rows


def find_table_types(
    reader: RecordReader, declared: DeclaredType, *, snapshot: str
) -> tuple[Shape | None, dict[str, Sequence[Shape]]]:
    """The newest revision of a declared type, and all revisions of each type of its table.

    None and nothing for a type that was never written.
    """
    retired = _list_retired(reader, declared, snapshot=snapshot)
    shape = match_type(reader.types.latest, declared, retired=retired)
    if shape is None:
        return None, {}
    return shape, {
        name: shapes
        for name, shapes in group_shapes(reader.types.shapes).items()
        if name == shape.type_name or _is_same_table(shapes[-1], shape)
    }


def _list_retired(
    reader: RecordReader, declared: DeclaredType, *, snapshot: str
) -> Collection[str]:
    """Of several types whose tables had the name of the declared one, those that are gone."""
    newest = reader.types.latest
    names = [name for name, shape in newest.items() if shape.table == declared.table.name]
    if len(names) <= 1:
        return ()
    turns = reader.source.find_adoptions(names, snapshot=snapshot)
    return {n for n in names if turns.get(n, Turns()).is_retired_at(newest[n].revision)}


def _is_same_table(one: Shape, other: Shape) -> bool:
    """Whether two types have one table, and not two that had the name one after the other."""
    return (one.schema, one.table) == (other.schema, other.table) and not any(
        mine.database == its.database and mine.table != its.table
        for mine in one.numbers
        for its in other.numbers
    )


def _find_key(
    known: Sequence[Shape], values: Mapping[str, Any]
) -> tuple[Shape, Mapping[int, Wire]]:
    """The key by field number, given by the names of the newest revision or of an earlier one.

    With the revision whose columns these are.
    """
    newest = known[-1]
    unfit: ConfigurationError | None = None
    for shape in reversed(known):
        if set(values) != set(shape.key_names):
            continue
        numbers = {shape.by_name[name].number: value for name, value in values.items()}
        # Columns that are the key still have the types of now.
        then = newest if numbers.keys() == {c.number for c in newest.key_columns} else shape
        try:
            return then, {
                number: _to_wire(then, then.by_number[number].name, value)
                for number, value in numbers.items()
            }
        except ConfigurationError as error:
            unfit = unfit or error
    if unfit is not None:
        raise unfit
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
