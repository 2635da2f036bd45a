"""Which aggregate a row belongs to, and a transaction's effects grouped by aggregate.

Pure: no connection and no SQL. Every part of capture that needs an aggregate's name takes it
from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oplog.capture.net_row import NetRow
from oplog.capture.record import RecordedWork
from oplog.capture.row_change import Key, TrackedType
from oplog.entry import OpType, check_aggregate_name
from oplog.payload.effect import Effect, operation_to_effect
from oplog.value import Wire

Values = Mapping[str, Wire | None]


@dataclass(frozen=True, slots=True)
class Groups:
    """The effects of a transaction by aggregate."""

    effects: Mapping[str, list[Effect]]
    """Ordinals count over the whole transaction. Aggregates are in no particular order."""
    created: frozenset[str]
    """Aggregates that the transaction believes to create: each is that of a single row of its
    table, and begins with the create of a row that was not there before. A row that was deleted
    in an earlier transaction makes the belief wrong, as do two tables with one template."""
    idle: frozenset[str]
    """Aggregates that have no effect, although some of their rows were written: every column
    was set to the value that it had. Listed only for a transaction that holds tickets."""


def order_aggregates(names: Iterable[str]) -> list[str]:
    """Names in the order in which everybody locks them, which is that of collation C."""
    # Code points are in the order of their bytes in UTF-8.
    return sorted(names)


def name_aggregate(bound: TrackedType, key: Key, values: Values | None) -> str:
    """The aggregate of a row with these values; columns of the key are taken from the key.

    Raises `KeyError` if a column of the template is in neither.
    """
    shape, template = bound.shape, bound.template
    if not template.columns:
        # One name for the whole table, checked when it was declared.
        return template.constant
    if bound.affixes is not None and type(key[0]) is int:
        # Most rows are named so, and this takes a tenth of the time.
        before, after = bound.affixes
        return f"{before}{key[0]}{after}"
    codecs = shape.codecs
    texts: dict[str, str | None] = {}
    for name, wire in zip(shape.key_names, key, strict=True):
        texts[name] = None if wire is None else codecs[name].to_text(wire)
    if bound.regroups:
        for name in template.columns:
            if name not in texts:
                wire = (values or {})[name]
                texts[name] = None if wire is None else codecs[name].to_text(wire)
    return check_aggregate_name(template.render(texts))


def find_aggregate(bound: TrackedType, key: Key, values: Values | None) -> str | None:
    """The same; None if a column of the template is in neither."""
    if {*(values or ()), *bound.shape.key_names}.issuperset(bound.template.columns):
        return name_aggregate(bound, key, values)
    return None


def group_effects(work: RecordedWork, rows: Iterable[NetRow]) -> Groups:
    """Effects of the entries built by hand, then of the net rows, grouped by aggregate."""
    effects: dict[str, list[Effect]] = {}
    created: list[str] = []
    idle: set[str] = set()
    ordinal = 0
    for entry in work.entries:
        for operation in entry.operations:
            shape = work.log.find_type(operation.type_name).shape
            effect = operation_to_effect(operation, shape, ordinal=ordinal)
            effects.setdefault(entry.aggregate, []).append(effect)
            ordinal += 1
    for row in rows:
        told = list_effects(row, ordinal=ordinal)
        for aggregate, effect in told:
            before = effects.get(aggregate)
            if before is not None:
                before.append(effect)
            else:
                effects[aggregate] = [effect]
                if not row.existed and has_own_aggregate(row.bound):
                    created.append(aggregate)
            ordinal = effect.ordinal + 1
        if not told and work.tickets and (name := find_idle_aggregate(row)) is not None:
            idle.add(name)
    return Groups(effects, frozenset(created), idle=frozenset(idle.difference(effects)))


def has_own_aggregate(bound: TrackedType) -> bool:
    """Whether the template's columns are those of the primary key, neither less nor more."""
    columns, key = bound.template.columns, bound.shape.key_names
    return bool(columns) and (columns == key or set(columns) == set(key))


def list_effects(row: NetRow, *, ordinal: int) -> list[tuple[str, Effect]]:
    """What happened to one row, with the aggregate that each effect belongs to."""
    if row.complete:
        return _list_created(row, ordinal)
    if row.exists:
        return _list_updated(row, ordinal) if row.values else []
    if not row.existed:
        return []
    return [(name_aggregate(row.bound, row.key, row.group), _delete(row, ordinal))]


def _list_created(row: NetRow, ordinal: int) -> list[tuple[str, Effect]]:
    names = row.bound.shape.names
    values: Values = row.values
    if len(values) != len(names):
        values = {name: row.values[name] for name in names}
    effects = []
    if row.existed:
        before = name_aggregate(row.bound, row.key, row.group)
        effects.append((before, _delete(row, ordinal)))
        ordinal += 1
    aggregate = name_aggregate(row.bound, row.key, values)
    effects.append((aggregate, _create(row, values, ordinal)))
    return effects


def _list_updated(row: NetRow, ordinal: int) -> list[tuple[str, Effect]]:
    before = name_aggregate(row.bound, row.key, row.group)
    if not row.bound.regroups:
        return [(before, _update(row, ordinal))]
    after = name_aggregate(row.bound, row.key, {**(row.group or {}), **row.values})
    if after == before:
        return [(before, _update(row, ordinal))]
    # The row leaves one aggregate for another. Each entry must be readable without the other,
    # so the row is deleted in the first and created whole in the second.
    whole = {name: row.values[name] for name in row.bound.shape.names}
    return [(before, _delete(row, ordinal)), (after, _create(row, whole, ordinal + 1))]


def find_idle_aggregate(row: NetRow) -> str | None:
    """The aggregate of a row that was written and did not change; None for any other row.

    None as well where the row's aggregate is not known.
    """
    if row.complete or not (row.existed and row.exists) or row.values:
        return None
    return find_aggregate(row.bound, row.key, row.group)


def _create(row: NetRow, values: Values, ordinal: int) -> Effect:
    shape = row.bound.shape
    return Effect(OpType.CREATE, shape, row.key, values, complete=True, ordinal=ordinal)


def _update(row: NetRow, ordinal: int) -> Effect:
    shape = row.bound.shape
    return Effect(OpType.UPDATE, shape, row.key, row.values, complete=False, ordinal=ordinal)


def _delete(row: NetRow, ordinal: int) -> Effect:
    shape = row.bound.shape
    return Effect(OpType.DELETE, shape, row.key, {}, complete=False, ordinal=ordinal)
