"""From an executed statement to the row changes it made.

Turns a plan, the parameters that were sent and the database's answer into `RowChange`s. A
list of parameters some of which matched no row says which, if their numbers of rows were kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.match_counts import find_counts
from oplog.capture.prediction import list_rows, predict_columns
from oplog.capture.readback import read_rows
from oplog.capture.returned_columns import is_loose
from oplog.capture.row_change import Key, RowChange
from oplog.capture.spelling import (
    GivenKeys,
    find_foreign_types,
    list_parameters,
    spell_keys,
    take_keys,
)
from oplog.capture.statement_plan import StatementPlan
from oplog.capture.uncertain import describe_uncertain
from oplog.capture.unseen import describe_hidden, hides_rows
from oplog.entry import OpType
from oplog.postgres.sent_value import is_read_plainly
from oplog.value import UNSURE, Wire

Group = Mapping[str, Wire | None]


def read_keys(
    connection: Connection, plan: StatementPlan, parameters: Sequence[Mapping[str, Any]]
) -> tuple[list[Key], set[int]]:
    """The primary key that each parameter set names, in the form the database stores.

    And the numbers of those whose row was not found, so that their stored form is not known.
    """
    bound = plan.bound
    given = take_keys(connection, bound, plan.key, parameters)
    keys = spell_keys(connection, bound, plan.key, given)
    if not any(is_loose(bound, name) for name in bound.shape.key_names):
        return keys, set()
    # 1.0 finds the row whose key is stored as 1.00: the log must name the latter.
    found = read_rows(connection, bound, keys, columns=bound.shape.key_names, lock=_lock(plan))
    spelled = [
        key if row is None else tuple([row[name] for name in bound.shape.key_names])
        for key, row in zip(keys, found, strict=True)
    ]
    return spelled, {n for n, row in enumerate(found) if row is None}


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
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], unseen: Sequence[int]
) -> None:
    """Raise if the statement changed rows that were not seen before it was sent."""
    if not unseen:
        return
    changed = set(unseen).intersection(_list_matched(plan, context, len(keys)))
    if not changed:
        return
    what = f"the row with key {keys[min(changed)]!r} was changed"
    if hides_rows(context.root_connection, plan.bound):
        raise describe_hidden(plan.bound, what)
    raise describe_uncertain(
        plan.bound,
        f"{what}, and was not there a moment before",
        hint="another transaction wrote it meanwhile: run the transaction again",
        retryable=True,
    )


def _lock(plan: StatementPlan) -> str:
    return f" FOR {'NO KEY UPDATE' if plan.kind is OpType.UPDATE else 'UPDATE'} OF t"


def observe_insert(
    plan: StatementPlan, context: Any, *, given: GivenKeys | None
) -> list[RowChange]:
    """The rows an INSERT made; `given` are the keys that its parameters gave."""
    bound = plan.bound
    parameters = list_parameters(context)
    if given is not None:
        keys = spell_keys(context.root_connection, bound, plan.key, given)
    else:
        keys = _returned_keys(plan, context, len(parameters))
    if _was_suppressed(context, len(parameters)):
        return _reread(plan, context, keys)
    foreign = find_foreign_types(context.root_connection, plan.columns, parameters)
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


def observe_update(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group | None] | None
) -> list[RowChange]:
    """The rows an UPDATE changed."""
    bound = plan.bound
    parameters = list_parameters(context)
    matched = _list_matched(plan, context, len(parameters))
    changes = _reread_others(plan, context, keys=keys, matched=matched)
    if not matched:
        return changes
    key_names = bound.shape.key_names
    moves = any(column.name in key_names for column in plan.columns)
    foreign = find_foreign_types(context.root_connection, plan.columns, parameters)
    rows = list_rows(*predict_columns(plan.columns, parameters, foreign), count=len(parameters))
    there = []
    for place in matched:
        values, unknown = rows[place]
        moved_to = None
        if moves:
            old = dict(zip(key_names, keys[place], strict=True))
            moved_to = tuple([values.get(name, old[name]) for name in key_names])
        there.append(moved_to or keys[place])
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
    _check_in_place(plan, context, there)
    return changes


def observe_delete(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], groups: Sequence[Group | None] | None
) -> list[RowChange]:
    """The rows a DELETE removed."""
    matched = _list_matched(plan, context, len(keys))
    changes = _reread_others(plan, context, keys=keys, matched=matched)
    for place in matched:
        group = None if groups is None else groups[place]
        changes.append(RowChange(OpType.DELETE, plan.bound, keys[place], {}, group=group))
    return changes


def _list_matched(plan: StatementPlan, context: Any, expected: int) -> Sequence[int]:
    """The numbers of the sets of parameters that matched a row."""
    count = context.rowcount
    if count == expected:
        return range(expected)
    if count == 0:
        return ()
    counts = find_counts(context)
    if counts is None or len(counts) != expected or sum(counts) != count:
        raise describe_uncertain(
            plan.bound,
            f"{expected} keys were given and {count} rows matched; which ones is unknown",
        )
    return [n for n, rows in enumerate(counts) if rows]


def _reread_others(
    plan: StatementPlan, context: Any, *, keys: Sequence[Key], matched: Sequence[int]
) -> list[RowChange]:
    """Rows that a trigger may have changed although no row of these keys was matched."""
    if len(matched) == len(keys) or not plan.bound.live.rewrites_rows:
        return []
    there = set(matched)
    return _reread(plan, context, [key for n, key in enumerate(keys) if n not in there])


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
            raise describe_uncertain(
                bound, "its primary key is changed by the database on the way in"
            )


def _returned_keys(plan: StatementPlan, context: Any, count: int) -> list[Key]:
    bound, columns = plan.bound, plan.returned_key
    rows = context.inserted_primary_key_rows
    if len(rows) != count:
        raise describe_uncertain(bound, f"{count} rows were sent and {len(rows)} keys came back")
    keys: list[Key] = []
    for row in rows:
        key = []
        for column in columns:
            value = row[column.source]
            wire = None if value is None else column.to_wire(value)
            if wire is None or wire is UNSURE:
                raise describe_uncertain(
                    bound, f"the key column {column.name} came back as {value!r}"
                )
            key.append(wire)
        keys.append(tuple(key))
    if any(column.processed for column in columns):
        _check_restored(plan, context, keys)
    return keys


def _check_restored(plan: StatementPlan, context: Any, keys: Sequence[Key]) -> None:
    """Raise unless rows are stored under keys that a type of the application's gave back."""
    names = plan.bound.shape.key_names
    found = read_rows(context.root_connection, plan.bound, keys, columns=names)
    for key, row in zip(keys, found, strict=True):
        if row is None or tuple([row[name] for name in names]) != key:
            raise describe_uncertain(
                plan.bound,
                f"its key came back as a value of its own type, and {key!r} is not what is stored",
            )
