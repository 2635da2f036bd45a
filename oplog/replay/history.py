"""What happened to one row: its changes, and the row as it was at some moment.

Reads entries, not tables. The hard thing is finding a row without reading the whole log: that
works when its aggregate's name follows from its key alone, under every template the type
ever had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from oplog.catalog import AggregateTemplate, DeclaredType
from oplog.codec import Effect, effect_to_operation
from oplog.entry import Change, LoggedEntry, OpType
from oplog.errors import ChainBrokenError, ConfigurationError
from oplog.reader import EntryReader, describe
from oplog.replay.transaction import check_moment
from oplog.shape import Shape
from oplog.store import EntryFilter, StoredEntry
from oplog.value import UNSURE, Wire


@dataclass(frozen=True, slots=True)
class _Row:
    """A row in one table: every revision logged for the table, and the key by shape."""

    shapes: Mapping[tuple[str, int], Shape]
    key: Mapping[str, Wire]

    def matches(self, effect: Effect) -> bool:
        """Whether the effect is on this row."""
        shape = self.shapes.get((effect.shape.type_name, effect.shape.revision))
        return shape is not None and effect.key == tuple(
            [self.key.get(name) for name in shape.key_names]
        )

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


def list_changes(reader: EntryReader, types: Sequence[DeclaredType], *, key: Any) -> list[Change]:
    """What happened to the row with this key, oldest first.

    `types` are those that hold the row (several for joined inheritance; their changes in one
    transaction are one). `key` is the primary key's value, a tuple in the order of the
    model's key columns, or a mapping. A row deleted and written again in one transaction, or
    moved to another aggregate, is one update with every field.

    Reads only the row's aggregate if its name follows from the key, else the whole log.
    Raises `ConfigurationError` for a key that does not fit.
    """
    return [change for _, change in _iterate_changes(reader, types, key)]


def rebuild_row(
    reader: EntryReader, types: Sequence[DeclaredType], *, key: Any, at: int | datetime
) -> dict[str, Any] | None:
    """The row's logged columns after the last transaction at or before `at`.

    A position or an aware datetime; transactions count whole. None if there was no row.
    """
    if isinstance(at, datetime):
        snapshot = reader.store.read_snapshot(reader.connection)
        at = reader.store.find_position(reader.connection, check_moment(at), snapshot=snapshot)
    row: dict[str, Any] | None = None
    for transaction, change in _iterate_changes(reader, types, key):
        if transaction > at:
            break
        gone = change.kind is OpType.DELETE
        row = None if gone else {**(row or {}), **change.fields}
    return row


def _iterate_changes(
    reader: EntryReader, types: Sequence[DeclaredType], key: Any
) -> Iterator[tuple[int, Change]]:
    """Changes with their transaction's position."""
    rows = _find_rows(reader, types, key)
    found: dict[int, list[tuple[Effect, LoggedEntry]]] = {}
    for page in _iterate_pages(reader, rows):
        opened = [(stored, reader.open(stored).effects) for stored in page]
        touching = [
            (stored, effects)
            for stored, effects in opened
            if any(row.matches(effect) for row in rows for effect in effects)
        ]
        described = reader.present(stored for stored, _ in touching)
        for (stored, effects), entry in zip(touching, described, strict=True):
            group = found.setdefault(stored.transaction_position, [])
            group += [(e, entry) for e in effects if any(row.matches(e) for row in rows)]
    for transaction in sorted(found):
        group = sorted(found[transaction], key=lambda pair: pair[0].ordinal)
        yield transaction, _merge(group)


def _merge(group: Sequence[tuple[Effect, LoggedEntry]]) -> Change:
    """One transaction's effects on a row, over all tables that hold it."""
    by_table: dict[tuple[str, str], list[OpType]] = {}
    fields: dict[str, Any] = {}
    for effect, _ in group:
        kinds = by_table.setdefault((effect.shape.schema, effect.shape.table), [])
        kinds.append(effect.kind)
        if effect.kind is not OpType.DELETE:
            fields.update(effect_to_operation(effect).fields)
    net = {_net_kind(kinds) for kinds in by_table.values()}
    kind = next(iter(net)) if len(net) == 1 else OpType.UPDATE
    last = max((entry for _, entry in group), key=lambda entry: entry.position)
    return Change(
        last.position,
        kind,
        {} if kind is OpType.DELETE else fields,
        last.metadata,
        last.recorded_at,
    )


def _net_kind(kinds: Sequence[OpType]) -> OpType:
    if kinds[-1] is OpType.DELETE:
        return OpType.DELETE
    return OpType.CREATE if kinds[0] is OpType.CREATE else OpType.UPDATE


# -- which entries ---------------------------------------------------------------------------


def _iterate_pages(reader: EntryReader, rows: Sequence[_Row]) -> Iterator[list[StoredEntry]]:
    connection = reader.connection
    snapshot = reader.store.read_snapshot(connection)
    names: set[str] = set()
    for row in rows:
        listed = row.list_aggregates()
        if listed is None:
            yield from reader.store.iterate(connection, EntryFilter(), snapshot=snapshot)
            return
        names |= listed
    for name in sorted(names):
        chosen = EntryFilter(aggregate=name)
        before: StoredEntry | None = None
        for page in reader.store.iterate(connection, chosen, snapshot=snapshot):
            before = _check_chain(page, before)
            yield page


def _check_chain(page: Iterable[StoredEntry], before: StoredEntry | None) -> StoredEntry | None:
    """Raise `ChainBrokenError` where an aggregate's entry does not follow the one before."""
    for stored in page:
        version, linked = (before.version, before.entry_hash) if before else (0, bytes(32))
        if stored.version != version + 1 or bytes(stored.prev_hash) != bytes(linked):
            raise ChainBrokenError(
                f"position {stored.position} ({describe(stored)}) does not follow version "
                f"{version}",
                hint="rows of oplog_entry were altered or removed; run verify",
            )
        before = stored
    return before


# -- which row -------------------------------------------------------------------------------


def _find_rows(reader: EntryReader, types: Sequence[DeclaredType], key: Any) -> list[_Row]:
    stored = reader.store.list_types(reader.connection)
    newest = {shape.type_name: shape for shape in stored}
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
        rows.append(_Row(shapes, wires))
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
