"""From an executed statement to the row changes it made.

Turns a plan, the parameters that were sent and what the database answered into
`RowChange`s. Must not know frames or the log. The hard thing is to count: a statement that
matched fewer rows than it was given keys for cannot say which, and is reported as a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from oplog.binding import BoundType
from oplog.capture.plan import BoundColumn, StatementPlan
from oplog.capture.readback import read_rows
from oplog.capture.recorder import Key, RowChange
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.value import UNSURE, Wire

Group = Mapping[str, Wire | None]


def list_parameters(context: Any) -> Sequence[Mapping[str, Any]]:
    """The parameters as sent, by name, one mapping for each set."""
    sets: Sequence[Any] = context.parameters
    if sets and not isinstance(sets[0], Mapping):
        names = context.compiled.positiontup
        return [dict(zip(names, values, strict=True)) for values in sets]
    return sets


def read_keys(
    connection: Connection, plan: StatementPlan, parameters: Sequence[Mapping[str, Any]]
) -> list[Key]:
    """The primary key that each parameter set names, as the database writes it."""
    return [_read_key(connection, plan.bound, plan.key, values) for values in parameters]


def read_groups(connection: Connection, plan: StatementPlan, keys: Sequence[Key]) -> list[Group]:
    """Template columns of the rows about to be changed, which are locked against moving."""
    bound = plan.bound
    strength = "NO KEY UPDATE" if plan.kind is OpType.UPDATE else "UPDATE"
    found = read_rows(
        connection, bound, keys, columns=bound.template.columns, lock=f" FOR {strength} OF t"
    )
    return [row or {} for row in found]


def observe_insert(plan: StatementPlan, context: Any) -> list[RowChange]:
    """The rows an INSERT made."""
    bound = plan.bound
    parameters = list_parameters(context)
    returned = context.returned_default_rows
    natural = _list_natural(plan, context) if returned else ()
    keys = None if plan.key else _returned_keys(plan, context, len(parameters))
    defaults = {c.name: c.has_default or bound.live.rewrites_rows for c in bound.live.columns}
    plain_nulls = {name: None for name in plan.unknown if not defaults[name]}
    computed = tuple(name for name in plan.unknown if defaults[name])
    changes = []
    for place, sent in enumerate(parameters):
        values, unknown = _split(plan.columns, sent)
        values.update(plain_nulls)
        unknown += computed
        if keys is None:
            key = tuple([values.get(name) for name in bound.shape.key_names])
        else:
            key = keys[place]
            values.update(zip(bound.shape.key_names, key, strict=True))
        if natural and len(returned) == len(parameters):
            for column, name, to_wire in natural:
                wire = to_wire(returned[place]._mapping[column])
                if wire is not UNSURE:
                    values[name] = wire
        if unknown:
            unknown = tuple([name for name in unknown if name not in values])
        if unknown and any(name in bound.shape.key_names for name in unknown):
            raise _uncertain(bound, "its primary key is changed by the database on the way in")
        changes.append(RowChange(OpType.CREATE, bound, key, values, unknown))
    return changes


def observe_update(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group] | None
) -> list[RowChange]:
    """The rows an UPDATE changed."""
    bound = plan.bound
    parameters = list_parameters(context)
    if not _count_matched(plan, context, len(parameters)):
        return []
    key_names = bound.shape.key_names
    written = {column.name for column in plan.columns} | set(plan.unknown)
    moves = bool(written.intersection(key_names))
    if written.intersection(key_names).intersection(plan.unknown):
        raise _uncertain(bound, "its primary key is set by an SQL expression")
    changes = []
    for place, sent in enumerate(parameters):
        values, unknown = _split(plan.columns, sent)
        moved_to = None
        if moves:
            if any(name in key_names for name in unknown):
                raise _uncertain(bound, "its new primary key is not stored as it was sent")
            old = dict(zip(key_names, keys[place], strict=True))
            moved_to = tuple([values.get(name, old[name]) for name in key_names])
        changes.append(
            RowChange(
                OpType.UPDATE,
                bound,
                keys[place],
                values,
                (*unknown, *plan.unknown),
                None if groups is None else groups[place],
                moved_to,
            )
        )
    return changes


def observe_delete(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group] | None
) -> list[RowChange]:
    """The rows a DELETE removed."""
    if not _count_matched(plan, context, len(keys)):
        return []
    return [
        RowChange(OpType.DELETE, plan.bound, key, {}, (), None if groups is None else groups[place])
        for place, key in enumerate(keys)
    ]


def _split(
    columns: Sequence[BoundColumn], sent: Mapping[str, Any]
) -> tuple[dict[str, Wire | None], tuple[str, ...]]:
    values: dict[str, Wire | None] = {}
    unknown: tuple[str, ...] = ()
    for column in columns:
        value = sent[column.parameter]
        if value is None:
            values[column.name] = None
            continue
        wire = column.to_wire(value)
        if wire is UNSURE:
            unknown += (column.name,)
        else:
            values[column.name] = wire
    return values, unknown


def _read_key(
    connection: Connection,
    bound: BoundType,
    columns: Sequence[BoundColumn],
    sent: Mapping[str, Any],
) -> Key:
    values, unknown = _split(columns, sent)
    if not unknown:
        return tuple([values[column.name] for column in columns])
    raise _uncertain(
        bound,
        f"the value given for {', '.join(unknown)} may be stored in another form",
        "use the Python type that matches the column for primary keys",
    )


def _returned_keys(plan: StatementPlan, context: Any, count: int) -> list[Key]:
    bound = plan.bound
    rows = context.inserted_primary_key_rows
    names = [column.name for column in bound.declared.table.primary_key]
    if len(rows) != count:
        raise _uncertain(bound, f"{count} rows were sent and {len(rows)} keys came back")
    keys = []
    for row in rows:
        by_name = dict(zip(names, row, strict=True))
        key = []
        for name in bound.shape.key_names:
            wire = (
                None if by_name[name] is None else bound.shape.codecs[name].to_wire(by_name[name])
            )
            if wire is None or wire is UNSURE:
                raise _uncertain(bound, f"the key column {name} came back as {by_name[name]!r}")
            key.append(wire)
        keys.append(tuple(key))
    return keys


def _list_natural(plan: StatementPlan, context: Any) -> list[tuple[Any, str, Any]]:
    """Returned columns whose Python value is what the driver read, unprocessed."""
    table = plan.bound.declared.table
    natural = []
    for column in context.compiled.effective_returning:
        if getattr(column, "table", None) is not table or column.name not in plan.unknown:
            continue
        implementation = column.type.dialect_impl(context.dialect)
        if implementation.result_processor(context.dialect, None) is None:
            codec = plan.bound.shape.codecs.get(column.name)
            if codec is not None and not plan.bound.live.rewrites_rows:
                natural.append((column, column.name, codec.to_wire))
    return natural


def _count_matched(plan: StatementPlan, context: Any, expected: int) -> bool:
    matched = context.rowcount
    if matched == expected:
        return True
    if matched == 0:
        return False
    raise _uncertain(
        plan.bound, f"{expected} keys were given and {matched} rows matched; which ones is unknown"
    )


def _uncertain(bound: BoundType, why: str, hint: str = "") -> NotCapturableError:
    return NotCapturableError(
        f"a change to table {bound.live.qualified} cannot be logged exactly: {why}",
        hint=hint or "the transaction must be rolled back; write the rows one by one",
    )
