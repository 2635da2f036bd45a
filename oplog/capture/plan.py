"""What a compiled statement will do to a tracked table, read from the statement alone.

Pure: looks at SQLAlchemy's compiled constructs, executes nothing. A statement whose effect
on rows cannot be told exactly is refused here, before it is sent. The hard thing is to be
sure which parameter ends up in which column: everything not certain counts as unknown and
is read back from the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Grouping

from oplog.binding import BoundType
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.value import Unsure, Wire

ToWire = Callable[[Any], Wire | Unsure]


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """A column whose new value is a parameter of the statement."""

    name: str
    parameter: str
    to_wire: ToWire


@dataclass(frozen=True, slots=True)
class StatementPlan:
    """How to turn executions of one compiled statement into row changes."""

    kind: OpType
    bound: BoundType
    columns: tuple[BoundColumn, ...]
    """Written columns with a parameter."""
    unknown: tuple[str, ...]
    """Written columns whose value only the database knows."""
    key: tuple[BoundColumn, ...]
    """Parameters that identify the row: its key before an update or delete, the new key of
    an insert; empty when the insert's key comes back from the database."""
    exact: bool
    """Nothing but the key decides which row is hit."""


def plan_statement(
    compiled: SQLCompiler, find_type: Callable[[Any], BoundType | None]
) -> StatementPlan | None:
    """The plan for a compiled statement; None if it writes no tracked table.

    Raises `NotCapturableError`, naming statement and table, for a write to a tracked table
    whose effect the statement alone does not tell.
    """
    statement = compiled.statement
    if not isinstance(statement, (sa.Insert, sa.Update, sa.Delete)):
        _refuse_hidden(statement, find_type)
        return None
    _refuse_hidden(statement, find_type)
    bound = find_type(statement.table)
    if bound is None:
        return None
    if isinstance(statement, sa.Insert):
        return _plan_insert(compiled, statement, bound)
    if isinstance(statement, sa.Update):
        return _plan_update(compiled, statement, bound)
    return _plan_delete(compiled, statement, bound)


def _refuse_hidden(statement: Any, find_type: Callable[[Any], BoundType | None]) -> None:
    """A data-modifying CTE writes without being the statement."""
    for element in visitors.iterate(statement) if statement is not None else ():
        if element is statement or not isinstance(element, (sa.Insert, sa.Update, sa.Delete)):
            continue
        bound = find_type(element.table)
        if bound is not None:
            raise _refuse(bound, "is written inside a CTE")


def _plan_insert(compiled: SQLCompiler, statement: sa.Insert, bound: BoundType) -> StatementPlan:
    if statement.select is not None:
        raise _refuse(bound, "is filled by INSERT ... SELECT")
    if statement._post_values_clause is not None:
        raise _refuse(bound, "is written by INSERT ... ON CONFLICT")
    if statement._multi_values:
        raise _refuse(
            bound,
            "gets several rows in one VALUES list",
            "pass the rows as a list of parameters: execute(insert(table), [{...}, {...}])",
        )
    columns = tuple(_list_bound(compiled, statement, bound))
    names = {column.name for column in columns}
    unknown = tuple(name for name in bound.shape.names if name not in names)
    by_name = {column.name: column for column in columns}
    if all(name in by_name for name in bound.shape.key_names):
        key = tuple(by_name[name] for name in bound.shape.key_names)
    elif compiled.implicit_returning:
        key = ()
    else:
        raise _refuse(
            bound,
            "gets rows whose primary key the statement does not return",
            "add the objects to the session, or give the key's values in the parameters",
        )
    return StatementPlan(OpType.CREATE, bound, columns, unknown, key, True)


def _plan_update(compiled: SQLCompiler, statement: sa.Update, bound: BoundType) -> StatementPlan:
    columns = tuple(_list_bound(compiled, statement, bound))
    names = {column.name for column in columns}
    logged = bound.shape.by_name
    unknown = [
        column.name
        for column in _list_expressions(statement)
        if column.name in logged and column.name not in names
    ]
    unknown += [
        column.name
        for column in bound.declared.table.columns
        if (column.onupdate is not None or column.server_onupdate is not None)
        and column.name in logged
        and column.name not in names
    ]
    key, exact = _find_key(compiled, statement, bound)
    return StatementPlan(OpType.UPDATE, bound, columns, tuple(dict.fromkeys(unknown)), key, exact)


def _plan_delete(compiled: SQLCompiler, statement: sa.Delete, bound: BoundType) -> StatementPlan:
    key, exact = _find_key(compiled, statement, bound)
    return StatementPlan(OpType.DELETE, bound, (), (), key, exact)


def _list_bound(
    compiled: SQLCompiler, statement: sa.Insert | sa.Update, bound: BoundType
) -> Iterator[BoundColumn]:
    """Written columns whose value is one parameter, sent as it is."""
    table, codecs = bound.declared.table, bound.shape.codecs
    taken = {b.key for b in _list_binds(getattr(statement, "whereclause", None))}
    seen: set[str] = set()

    def bind(column: Any, parameter: str) -> Iterator[BoundColumn]:
        if column.name in codecs and column.name not in seen and parameter in compiled.binds:
            seen.add(column.name)
            name = (compiled.escaped_bind_names or {}).get(parameter, parameter)
            yield BoundColumn(column.name, name, codecs[column.name].to_wire)

    values: Mapping[Any, Any] = statement._values or {}
    expressions = {column.key for column in _list_expressions(statement)}
    for column, value in values.items():
        if isinstance(value, BindParameter):
            yield from bind(column, compiled.bind_names.get(value, column.key))
    keys = [*(compiled.column_keys or ()), *(c.key for c in _list_prefetched(compiled))]
    for key in keys:
        if key in table.columns and key not in expressions and key not in taken:
            yield from bind(table.columns[key], key)


def _list_expressions(statement: sa.Insert | sa.Update) -> list[Any]:
    values: Mapping[Any, Any] = statement._values or {}
    return [column for column, value in values.items() if not isinstance(value, BindParameter)]


def _list_prefetched(compiled: SQLCompiler) -> list[Any]:
    return [*(compiled.insert_prefetch or ()), *(compiled.update_prefetch or ())]


def _list_binds(clause: Any) -> list[BindParameter[Any]]:
    if clause is None:
        return []
    return [e for e in visitors.iterate(clause) if isinstance(e, BindParameter)]


def _find_key(
    compiled: SQLCompiler, statement: sa.Update | sa.Delete, bound: BoundType
) -> tuple[tuple[BoundColumn, ...], bool]:
    """The parameters that the WHERE clause equates with the whole primary key."""
    found: dict[str, BoundColumn] = {}
    exact = True
    for clause in _split_and(statement.whereclause):
        pair = _match_equality(clause, bound)
        name = None if pair is None else pair[0].name
        if pair is None or name not in bound.shape.key_names or name in found:
            exact = False
            continue
        parameter = compiled.bind_names.get(pair[1])
        if parameter is None or pair[1].expanding:
            exact = False
            continue
        parameter = (compiled.escaped_bind_names or {}).get(parameter, parameter)
        found[pair[0].name] = BoundColumn(
            pair[0].name, parameter, bound.shape.codecs[pair[0].name].to_wire
        )
    if set(found) != set(bound.shape.key_names):
        verb = "updated" if isinstance(statement, sa.Update) else "deleted from"
        raise _refuse(
            bound,
            f"is {verb} by a condition that is not its primary key",
            "load the objects and change them in the session",
        )
    return tuple(found[name] for name in bound.shape.key_names), exact


def _split_and(clause: Any) -> Iterator[Any]:
    if isinstance(clause, Grouping):
        yield from _split_and(clause.element)
    elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _split_and(part)
    elif clause is not None:
        yield clause


def _match_equality(clause: Any, bound: BoundType) -> tuple[Any, BindParameter[Any]] | None:
    if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
        return None
    left, right = clause.left, clause.right
    if isinstance(left, BindParameter):
        left, right = right, left
    columns = bound.declared.table.columns
    if not isinstance(right, BindParameter) or getattr(left, "key", None) not in columns:
        return None
    column = columns[left.key]
    return (column, right) if left.shares_lineage(column) else None


def _refuse(bound: BoundType, what: str, hint: str = "") -> NotCapturableError:
    return NotCapturableError(
        f"table {bound.live.qualified} {what}; its rows could not be logged exactly, "
        "so the statement was not sent",
        hint=hint or "write through objects in the session",
    )
