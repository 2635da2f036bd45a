"""Statements that listeners of the application rewrite on their way to the driver.

A plan describes the statement that SQLAlchemy compiled, with the parameters of its execution. If
something else is sent, what the plan says of its rows is not what happened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.frame import NamedTable
from oplog.errors import NotCapturableError

_BLOCK = r"\s|/\*(?:(?!/\*|\*/).)*\*/"
_BEFORE = re.compile(rf"(?:{_BLOCK}|--[^\n]*\n)*", re.DOTALL)
_AFTER = re.compile(rf"(?:{_BLOCK}|;|--[^\n]*(?:\n|$))*", re.DOTALL)


def may_be_rewritten(connection: Connection, listener: Callable[..., Any]) -> bool:
    """Other listeners than `listener` hear statements before they are sent."""
    return any(found != listener for found in connection.dispatch.before_cursor_execute)


def is_rewritten(context: Any, statement: str, parameters: Any) -> bool:
    """What is about to be sent is not what SQLAlchemy made of the execution of `context`."""
    if not _is_in_batches(context):
        known = context.parameters if context.executemany else context.parameters[0]
        return differs((context.statement, known), (statement, parameters))
    # A batch has a text and parameters of its own, made of the same values.
    given = {id(value) for sent in context.parameters for value in _list_values(sent)}
    return is_other_batch(
        context.statement, statement, values=context.compiled.insert_single_values_expr
    ) or any(id(value) not in given for value in _list_values(parameters))


def is_other_batch(known: str, sent: str, *, values: str | None) -> bool:
    """A batch differs from the statement for one row by more than its rows and comments around it.

    `values` are those of one row, as they are in `known`.
    """
    opening, is_known, end = known.partition(f"({values})")
    if not is_known:
        # Names in it were translated since it was compiled.
        opening = known.partition("VALUES (")[0]
    before, found, rows = sent.partition(opening)
    if not found or not _BEFORE.fullmatch(before):
        return True
    if not is_known:
        return False
    end = end or ")"
    place = rows.rfind(end)
    while place >= 0:
        if _AFTER.fullmatch(rows, place + len(end)):
            return False
        # A comment at the end may have the same characters.
        place = rows.rfind(end, 0, place)
    return True


def tells_what_was_sent(context: Any, statement: str) -> bool:
    """Whether `after_cursor_execute` got what was sent: SQLAlchemy 2.0 does not tell of batches.

    It calls the listeners once for all batches, with the statement for one row.
    """
    return not _is_in_batches(context) or statement != context.statement


def differs(known: tuple[str, Any], sent: tuple[str, Any]) -> bool:
    """A statement with its parameters became another one: by more than comments around it."""
    if not _are_same(known[1], sent[1]):
        return True
    if known[0] == sent[0]:
        return False
    before, found, after = sent[0].partition(known[0])
    return not (found and _BEFORE.fullmatch(before) and _AFTER.fullmatch(after))


def copy_parameters(parameters: Any) -> Any:
    """The same for `differs`, although a listener changes them in place."""
    if isinstance(parameters, Mapping):
        return dict(parameters)
    if isinstance(parameters, list):
        return [copy_parameters(one) for one in parameters]
    return parameters


def refuse_rewritten(
    tables: Iterable[NamedTable], *, retryable: bool = False
) -> NotCapturableError:
    """The error for a statement of which nobody tells what it did.

    `retryable` says that its table has a guard, which will tell it the next time.
    """
    names = "".join(f" on {table.name}" for table in tables)
    return NotCapturableError(
        f"a before_cursor_execute listener rewrote a statement{names}: what it did to rows is "
        "not what SQLAlchemy compiled",
        hint="run the transaction again: from now on the guard tells what was written; to have it "
        "at once, register the listener before log.attach(...)"
        if retryable
        else "guard the table, so that the guard tells what was written, or leave its statements "
        "alone; comments around a statement are no matter",
        retryable=retryable,
    )


def _is_in_batches(context: Any) -> bool:
    style: str = context.execute_style.name
    return style == "INSERTMANYVALUES"


def _are_same(known: Any, sent: Any) -> bool:
    """The same objects: what is only equal may be stored in another form."""
    if known is sent:
        return True
    if isinstance(known, Mapping):
        if not isinstance(sent, Mapping) or known.keys() != sent.keys():
            return False
        return all(sent[name] is value for name, value in known.items())
    if not isinstance(known, (list, tuple)) or not isinstance(sent, (list, tuple)):
        return False
    if len(known) != len(sent):
        return False
    containers = (Mapping, list, tuple)
    return all(
        a is b or (isinstance(a, containers) and _are_same(a, b))
        for a, b in zip(known, sent, strict=True)
    )


def _list_values(parameters: Any) -> Iterable[Any]:
    return parameters.values() if isinstance(parameters, Mapping) else parameters
