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
    observe_delete,
    observe_insert,
    observe_update,
    read_groups,
    read_keys,
)
from oplog.capture.row_change import Key, RowChange
from oplog.capture.spelling import (
    GivenKeys,
    check_moves,
    check_returned,
    list_parameters,
    take_keys,
)
from oplog.capture.statement_plan import StatementPlan
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.postgres.sent_value import watch_documents
from oplog.schema.touched_keys import weigh

_OPERATIONS = {OpType.CREATE: "I", OpType.UPDATE: "U", OpType.DELETE: "D"}


@dataclass(frozen=True, slots=True, eq=False)
class StatementUnderWay:
    """What is known of a statement before it is sent: its plan, and which rows it names."""

    plan: StatementPlan
    announced: bool = False
    """The table's guard counts the rows, and must come to the same number."""
    imaged: bool = False
    """The table's guard keeps images of the rows, because its parameters do not tell enough."""
    given: GivenKeys | None = None
    """Of an insert, the keys that its parameters give."""
    keys: Sequence[Key] = ()
    """Of an update or delete, the keys of the rows that it names."""
    groups: Sequence[Group | None] | None = None
    unseen: Sequence[int] = ()
    """Numbers of keys whose rows had to be read before they were changed, and were not found."""


def prepare(
    connection: Connection, plan: StatementPlan, context: Any, *, announced: bool
) -> StatementUnderWay:
    """Read what has to be known before the statement of `context` is sent.

    With `announced`, it is left to the guard if its parameters do not tell which rows it writes;
    otherwise `NotCapturableError` is raised.
    """
    try:
        done = _prepare(connection, plan, context, announced=announced)
    except NotCapturableError:
        if not announced:
            raise
        return StatementUnderWay(plan, imaged=True)
    # Rows that are not there yet may be there in a moment.
    return StatementUnderWay(plan, imaged=True) if announced and done.unseen else done


def _prepare(
    connection: Connection, plan: StatementPlan, context: Any, *, announced: bool
) -> StatementUnderWay:
    parameters = list_parameters(context)
    if watched := [column.parameter for column in plan.columns if column.watched]:
        watch_documents(connection, [sent[name] for sent in parameters for name in watched])
    if plan.kind is OpType.CREATE:
        if plan.key:
            given = take_keys(connection, plan.bound, plan.key, parameters)
            return StatementUnderWay(plan, announced=announced, given=given)
        check_returned(connection, plan)
        return StatementUnderWay(plan, announced=announced)
    if plan.kind is OpType.UPDATE:
        check_moves(connection, plan, parameters)
    keys, unspelled = read_keys(connection, plan, parameters)
    groups = read_groups(connection, plan, keys) if plan.bound.regroups else None
    unseen = sorted(unspelled) if groups is None else []
    unseen += [n for n, group in enumerate(groups or ()) if group is None]
    return StatementUnderWay(plan, announced=announced, keys=keys, groups=groups, unseen=unseen)


def count(done: StatementUnderWay, rows: int) -> int:
    """What the table's guard adds to the tally for these rows."""
    guard = done.plan.bound.guard
    if guard is None or not done.announced:
        return 0
    return rows * weigh(_OPERATIONS[done.plan.kind], guard.oid)


def observe(done: StatementUnderWay, context: Any) -> list[RowChange]:
    """The rows that the executed statement changed; none if its guard keeps images of them."""
    plan = done.plan
    if done.imaged:
        return []
    if plan.kind is OpType.CREATE:
        return observe_insert(plan, context, given=done.given)
    check_seen(plan, context, keys=done.keys, unseen=done.unseen)
    look = observe_update if plan.kind is OpType.UPDATE else observe_delete
    return look(plan, context, keys=done.keys, groups=done.groups)
