"""From an executed statement to the row changes it made.

Turns a plan, the parameters that were sent and the database's answer into `RowChange`s. A
statement that matched fewer rows than it was given keys for does not say which, so that is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.prediction import list_rows, predict_columns
from oplog.capture.readback import normalise_keys, read_rows
from oplog.capture.returned_columns import is_loose
from oplog.capture.row_change import Key, RowChange
from oplog.capture.statement_plan import BoundColumn, StatementPlan
from oplog.capture.unseen import describe_hidden, hides_rows
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.postgres.sent_value import find_foreign, is_read_plainly
from oplog.type_binding import BoundType
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
) -> tuple[list[Key], set[Key]]:
    """The primary key that each parameter set names, in the form the database stores.

    And those keys whose row was not found, so that their stored form is not known.
    """
    bound = plan.bound
    keys = _spell_keys(connection, bound, plan.key, parameters)
    if not any(is_loose(bound, name) for name in bound.shape.key_names):
        return keys, set()
    # 1.0 finds the row whose key is stored as 1.00: the log must name the latter.
    found = read_rows(connection, bound, keys, columns=bound.shape.key_names, lock=_lock(plan))
    spelled = [
        key if row is None else tuple([row[name] for name in bound.shape.key_names])
        for key, row in zip(keys, found, strict=True)
    ]
    return spelled, {key for key, row in zip(keys, found, strict=True) if row is None}


def read_groups(
    connection: Connection, plan: StatementPlan, keys: Sequence[Key]
) -> list[Group | None]:
    """Template columns of the rows about to be changed; None for a row that is not found.

    The rows are locked, so that no other transaction moves them to another aggregate.
    """
    bound = plan.bound
    found = read_rows(connection, bound, keys, columns=bound.template.columns, lock=_lock(plan))
    return list(found)


def check_seen(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], unseen: Sequence[Key]
) -> None:
    """Raise if the statement changed rows that were not seen before it was sent."""
    if not unseen or context.rowcount != len(keys):
        return
    what = f"the row with key {unseen[0]!r} was changed"
    if hides_rows(context.root_connection, plan.bound):
        raise describe_hidden(plan.bound, what)
    raise _uncertain(
        plan.bound,
        f"{what}, and was not there a moment before",
        hint="another transaction wrote it meanwhile: run the transaction again",
        retryable=True,
    )


def _lock(plan: StatementPlan) -> str:
    return f" FOR {'NO KEY UPDATE' if plan.kind is OpType.UPDATE else 'UPDATE'} OF t"


def observe_insert(plan: StatementPlan, context: Any) -> list[RowChange]:
    """The rows an INSERT made."""
    bound = plan.bound
    parameters = list_parameters(context)
    keys = _find_inserted_keys(plan, context, parameters)
    if _was_suppressed(context, len(parameters)):
        return _reread(plan, context, keys)
    foreign = _find_foreign(context.root_connection, plan.columns, parameters)
    written, columns = predict_columns(plan.columns, parameters, foreign)
    written += [*plan.absent, *bound.shape.key_names]
    columns += [[None] * len(keys) for _ in plan.absent]
    columns += list(zip(*keys, strict=True))
    rows = list_rows(written, columns)
    if plan.natural:
        _add_returned(plan, context, [values for values, _ in rows])
    changes = []
    for key, (values, unknown) in zip(keys, rows, strict=True):
        names = (*unknown, *plan.unknown)
        unread = tuple([name for name in names if name not in values]) if names else ()
        changes.append(RowChange(OpType.CREATE, bound, key, values, unknown=unread))
    _check_in_place(plan, context, keys)
    return changes


def _add_returned(plan: StatementPlan, context: Any, rows: Sequence[dict[str, Any]]) -> None:
    """What the database returned of each row, as far as it is certain."""
    returned = context.returned_default_rows
    if not returned or len(returned) != len(rows):
        return
    connection = context.root_connection
    natural = [column for column in plan.natural if is_read_plainly(connection, column.loaded)]
    for values, row in zip(rows, returned, strict=True):
        for column in natural:
            value = row._mapping[column.source]
            wire = None if value is None else column.to_wire(value)
            if wire is not UNSURE:
                values[column.name] = wire


def _find_inserted_keys(
    plan: StatementPlan, context: Any, parameters: Sequence[Mapping[str, Any]]
) -> list[Key]:
    if plan.key:
        return _spell_keys(context.root_connection, plan.bound, plan.key, parameters)
    return _returned_keys(plan, context, len(parameters))


def observe_update(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group | None] | None
) -> list[RowChange]:
    """The rows an UPDATE changed."""
    bound = plan.bound
    parameters = list_parameters(context)
    if not _count_matched(plan, context, len(parameters)):
        return _reread(plan, context, keys)
    key_names = bound.shape.key_names
    written = {column.name for column in plan.columns} | set(plan.unknown)
    moves = bool(written.intersection(key_names))
    if written.intersection(key_names).intersection(plan.unknown):
        raise _uncertain(bound, "its primary key is set by an SQL expression")
    foreign = _find_foreign(context.root_connection, plan.columns, parameters)
    rows = list_rows(*predict_columns(plan.columns, parameters, foreign), count=len(parameters))
    changes = []
    for place, (values, unknown) in enumerate(rows):
        moved_to = None
        if moves:
            if any(name in key_names for name in unknown):
                raise _uncertain(bound, "its new primary key is not stored as it was sent")
            old = dict(zip(key_names, keys[place], strict=True))
            moved_to = tuple([values.get(name, old[name]) for name in key_names])
        changes.append(
            RowChange(
                kind=OpType.UPDATE,
                bound=bound,
                key=keys[place],
                values=values,
                unknown=(*unknown, *plan.unknown),
                group=None if groups is None else groups[place],
                moved_to=moved_to,
            )
        )
    _check_in_place(plan, context, [change.moved_to or change.key for change in changes])
    return changes


def observe_delete(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group | None] | None
) -> list[RowChange]:
    """The rows a DELETE removed."""
    if not _count_matched(plan, context, len(keys)):
        return _reread(plan, context, keys)
    return [
        RowChange(
            OpType.DELETE, plan.bound, key, {}, group=None if groups is None else groups[place]
        )
        for place, key in enumerate(keys)
    ]


def _find_foreign(
    connection: Connection, columns: Sequence[BoundColumn], parameters: Sequence[Mapping[str, Any]]
) -> frozenset[type]:
    """Types whose values the application adapts itself: what is stored is anyone's guess."""
    names = [column.parameter for column in columns]
    return find_foreign(connection, [sent[name] for sent in parameters for name in names])


def _was_suppressed(context: Any, sent: int) -> bool:
    """A single row was inserted, and a trigger suppressed it."""
    if context.returned_default_rows is not None:
        return sent == 1 and not context.returned_default_rows
    return sent == 1 and context.rowcount == 0


def _reread(plan: StatementPlan, context: Any, keys: Sequence[Key]) -> list[RowChange]:
    """Rows that a trigger may have changed although the statement itself matched none."""
    bound = plan.bound
    if not bound.live.rewrites_rows:
        return []
    columns = tuple(dict.fromkeys((*bound.template.columns, *bound.shape.key_names)))
    found = read_rows(context.root_connection, bound, keys, columns=columns)
    if None in found and hides_rows(context.root_connection, bound):
        key = keys[found.index(None)]
        raise describe_hidden(bound, f"a trigger may have changed the row with key {key!r}")
    return [
        RowChange(OpType.UPDATE, bound, key, {}, unknown=bound.shape.names, group=row)
        for key, row in zip(keys, found, strict=True)
        if row is not None
    ]


def _check_in_place(plan: StatementPlan, context: Any, keys: Sequence[Key]) -> None:
    """Raise unless every row is under the key that was sent: a trigger may have changed it."""
    bound = plan.bound
    if bound.live.rewrites_rows:
        found = read_rows(context.root_connection, bound, keys, columns=bound.shape.key_names[:1])
        if None in found:
            if hides_rows(context.root_connection, bound):
                key = keys[found.index(None)]
                raise describe_hidden(bound, f"the row with key {key!r} was written")
            raise _uncertain(bound, "its primary key is changed by the database on the way in")


def _spell_keys(
    connection: Connection,
    bound: BoundType,
    columns: Sequence[BoundColumn],
    parameters: Sequence[Mapping[str, Any]],
) -> list[Key]:
    """Keys given as parameters, in the form the database stores."""
    foreign = _find_foreign(connection, columns, parameters)
    keys: list[list[Any]] = []
    unsure: dict[int, None] = {}
    for sent in parameters:
        key = []
        for place, column in enumerate(columns):
            value = sent[column.parameter]
            wire = None if value is None else column.to_wire(value)
            if wire is UNSURE or type(value) in foreign:
                unsure[place] = None
                wire = value
            key.append(wire)
        keys.append(key)
    for place in unsure:
        _spell_column(connection, bound, keys, place=place, name=columns[place].name)
    return [tuple(key) for key in keys]


def _spell_column(
    connection: Connection, bound: BoundType, keys: list[list[Any]], *, place: int, name: str
) -> None:
    given = [key[place] for key in keys]
    if not all(isinstance(value, str) for value in given):
        raise _uncertain(
            bound,
            f"the value given for key column {name} may be stored in another form",
            hint="use the Python type that matches the column for primary keys",
        )
    for key, wire in zip(keys, normalise_keys(connection, bound, given, name=name), strict=True):
        key[place] = wire


def _returned_keys(plan: StatementPlan, context: Any, count: int) -> list[Key]:
    bound, columns = plan.bound, plan.returned_key
    rows = context.inserted_primary_key_rows
    if len(rows) != count:
        raise _uncertain(bound, f"{count} rows were sent and {len(rows)} keys came back")
    connection = context.root_connection
    blurred = {c.name for c in columns if not c.exact or not is_read_plainly(connection, c.loaded)}
    keys: list[Key] = []
    for row in rows:
        key = []
        for column in columns:
            value = row[column.source]
            wire = None if value is None else column.to_wire(value)
            if wire is None or wire is UNSURE or column.name in blurred:
                raise _uncertain(bound, f"the key column {column.name} came back as {value!r}")
            key.append(wire)
        keys.append(tuple(key))
    return keys


def _count_matched(plan: StatementPlan, context: Any, expected: int) -> bool:
    matched = context.rowcount
    if matched == expected:
        return True
    if matched == 0:
        return False
    raise _uncertain(
        plan.bound, f"{expected} keys were given and {matched} rows matched; which ones is unknown"
    )


def _uncertain(
    bound: BoundType,
    why: str,
    *,
    hint: str = "the transaction must be rolled back; write the rows one by one",
    retryable: bool = False,
) -> NotCapturableError:
    return NotCapturableError(
        f"a change to table {bound.live.qualified} cannot be logged exactly: {why}",
        hint=hint,
        retryable=retryable,
    )
