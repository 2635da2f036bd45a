"""A statement on a tracked table, from before it is sent until its effect is known.

Which rows the parameters name, and which aggregates those rows are in, has to be read before the
statement is sent: after it the rows may be gone or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.observation import (
    Group,
    check_seen,
    list_parameters,
    observe_delete,
    observe_insert,
    observe_update,
    read_groups,
    read_keys,
)
from oplog.capture.row_change import Key, RowChange
from oplog.capture.statement_plan import StatementPlan
from oplog.entry import OpType
from oplog.postgres.sent_value import watch_documents
from oplog.schema.touched_keys import weigh

_OPERATIONS = {OpType.CREATE: "I", OpType.UPDATE: "U", OpType.DELETE: "D"}


@dataclass(frozen=True, slots=True, eq=False)
class StatementUnderWay:
    """What is known of a statement before it is sent: its plan, and which rows it names."""

    plan: StatementPlan
    keys: Sequence[Key]
    groups: Sequence[Group | None] | None
    unseen: Sequence[Key]
    """Keys of rows that had to be read before they were changed, and were not found."""
    announced: bool
    """The table's guard counts the rows, and must come to the same number."""


def prepare(
    connection: Connection, plan: StatementPlan, context: Any, *, announced: bool
) -> StatementUnderWay:
    """Read what has to be known before the statement of `context` is sent."""
    if watched := [column.parameter for column in plan.columns if column.watched]:
        watch_documents(
            connection, [sent[name] for sent in list_parameters(context) for name in watched]
        )
    if plan.kind is OpType.CREATE:
        return StatementUnderWay(plan, keys=(), groups=None, unseen=(), announced=announced)
    keys, unspelled = read_keys(connection, plan, list_parameters(context))
    groups = read_groups(connection, plan, keys) if plan.bound.regroups else None
    unseen = [key for key in keys if key in unspelled] if groups is None else []
    unseen += [key for key, group in zip(keys, groups or (), strict=False) if group is None]
    return StatementUnderWay(plan, keys=keys, groups=groups, unseen=unseen, announced=announced)


def count(done: StatementUnderWay, rows: int) -> int:
    """What the table's guard adds to the tally for these rows."""
    guard = done.plan.bound.guard
    if guard is None or not done.announced:
        return 0
    return rows * weigh(_OPERATIONS[done.plan.kind], guard.oid)


def observe(done: StatementUnderWay, context: Any) -> list[RowChange]:
    """The rows that the executed statement changed."""
    plan = done.plan
    if plan.kind is OpType.CREATE:
        return observe_insert(plan, context)
    check_seen(plan, context, keys=done.keys, unseen=done.unseen)
    look = observe_update if plan.kind is OpType.UPDATE else observe_delete
    return look(plan, context, keys=done.keys, groups=done.groups)
