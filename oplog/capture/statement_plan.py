"""What a compiled statement will do to a tracked table, read from the statement alone.

Looks at SQLAlchemy's compiled constructs and executes nothing. A statement whose effect on rows
cannot be told exactly is refused here, before it is sent. A column counts as known only if one
parameter is certain to arrive in it unchanged; every other written column is unknown and is read
back from the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Grouping

from oplog.capture.returned_columns import ReturnedColumn, find_natural, find_returned_key
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.postgres.sent_value import unwrap
from oplog.type_binding import BoundType
from oplog.value import Unsure, ValueCodec, Wire
from oplog.value.kind import refuse_to_guess

ToWire = Callable[[Any], Wire | Unsure]

_DOCUMENTS = frozenset({"json", "jsonb", "json[]", "jsonb[]"})
_WRAPPED = _DOCUMENTS | {"bytea", "bytea[]"}
"""Types whose values SQLAlchemy gives to psycopg in wrappers of the latter's."""


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """A column whose new value is a parameter of the statement."""

    name: str
    parameter: str
    to_wire: ToWire
    watched: bool = False
    """It is JSON, predicted from the text that the driver sends."""


@dataclass(frozen=True, slots=True)
class StatementPlan:
    """How to turn executions of one compiled statement into row changes."""

    kind: OpType
    bound: BoundType
    columns: tuple[BoundColumn, ...]
    """Written columns with a parameter."""
    unknown: tuple[str, ...]
    """Columns whose value only the database knows: written ones, and defaults of an insert.
    Of an insert not the key."""
    absent: tuple[str, ...]
    """Columns that an insert leaves out and that are NULL then."""
    key: tuple[BoundColumn, ...]
    """Parameters that identify the row: its key before an update or delete, the new key of an
    insert. Empty when the database returns the insert's key."""
    returned_key: tuple[ReturnedColumn, ...] = ()
    """The key that the database returns, if `key` is empty."""
    natural: tuple[ReturnedColumn, ...] = ()
    """Unknown columns that an insert returns as they are stored."""


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
    bound = find_type(_unalias(statement.table))
    if bound is None:
        return None
    if isinstance(statement, sa.Insert):
        return _plan_insert(compiled, statement, bound)
    if isinstance(statement, sa.Update):
        return _plan_update(compiled, statement, bound)
    return _plan_delete(compiled, statement, bound)


def find_written(statement: Any) -> Iterator[Any]:
    """The tables that any part of a statement inserts into, updates or deletes from."""
    for element in visitors.iterate(statement) if statement is not None else ():
        if isinstance(element, (sa.Insert, sa.Update, sa.Delete)):
            yield _unalias(element.table)


def _refuse_hidden(statement: Any, find_type: Callable[[Any], BoundType | None]) -> None:
    """A data-modifying CTE writes without being the statement."""
    for element in visitors.iterate(statement) if statement is not None else ():
        if element is statement or not isinstance(element, (sa.Insert, sa.Update, sa.Delete)):
            continue
        bound = find_type(_unalias(element.table))
        if bound is not None:
            raise _refuse(bound, "is written by a part of another statement, such as a CTE")


def _unalias(table: Any) -> Any:
    # An UPDATE or DELETE of an alias writes the table behind it.
    while isinstance(table, sa.Alias):
        table = table.element
    return table


def _plan_insert(compiled: SQLCompiler, statement: sa.Insert, bound: BoundType) -> StatementPlan:
    if statement.select is not None:
        raise _refuse(bound, "is filled by INSERT ... SELECT")
    given: Any = statement
    if given._post_values_clause is not None:  # noqa: SLF001 - there is no public way
        raise _refuse(bound, "is written by INSERT ... ON CONFLICT")
    if given._multi_values:  # noqa: SLF001 - as above
        raise _refuse(
            bound,
            "gets several rows in one VALUES list",
            "pass the rows as a list of parameters: execute(insert(table), [{...}, {...}])",
        )
    columns, unknown = _sort_written(compiled, statement, bound)
    written = {column.name for column in columns}.union(unknown)
    left_out = [name for name in bound.shape.names if name not in written]
    defaults = {c.name: c.has_default or bound.live.rewrites_rows for c in bound.live.columns}
    # The key is known after the statement in any case.
    asked = [*unknown, *(name for name in left_out if defaults[name])]
    unknown = tuple(name for name in asked if name not in bound.shape.key_names)
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
    return StatementPlan(
        OpType.CREATE,
        bound,
        columns=columns,
        unknown=unknown,
        absent=tuple(name for name in left_out if not defaults[name]),
        key=key,
        returned_key=() if key else find_returned_key(compiled, bound),
        natural=find_natural(compiled, bound, unknown),
    )


def _plan_update(compiled: SQLCompiler, statement: sa.Update, bound: BoundType) -> StatementPlan:
    columns, unknown = _sort_written(compiled, statement, bound)
    if not set(unknown).isdisjoint(bound.shape.key_names):
        raise _refuse(
            bound,
            "gets a primary key that is set by an SQL expression",
            "give the new key as a value, or guard the table",
        )
    key = _find_key(compiled, statement, bound)
    return StatementPlan(OpType.UPDATE, bound, columns=columns, unknown=unknown, absent=(), key=key)


def _plan_delete(compiled: SQLCompiler, statement: sa.Delete, bound: BoundType) -> StatementPlan:
    key = _find_key(compiled, statement, bound)
    return StatementPlan(OpType.DELETE, bound, columns=(), unknown=(), absent=(), key=key)


def _sort_written(
    compiled: SQLCompiler, statement: sa.Insert | sa.Update, bound: BoundType
) -> tuple[tuple[BoundColumn, ...], tuple[str, ...]]:
    """Logged columns the statement writes: those with one plain parameter, and the others.

    A column counts as written as soon as anything may write it, and as plain only when its
    parameter is certain to arrive unchanged.
    """
    table, codecs = bound.declared.written, bound.shape.codecs
    plain: dict[str, BoundColumn] = {}

    def add_plain(column: Any, parameter: str) -> None:
        found = _find_plain(compiled, bound, column=column, parameter=parameter)
        if found is not None:
            plain.setdefault(column.name, found)

    written: dict[str, None] = {}
    conditions = {b.key for b in _list_binds(getattr(statement, "whereclause", None))}
    expressed = set()
    for column, value in _list_values(statement, table):
        written[column.name] = None
        expressed.add(column.key)
        if isinstance(value, BindParameter):
            add_plain(column, compiled.bind_names.get(value, column.key))
    for key in (*(compiled.column_keys or ()), *(c.key for c in _list_prefetched(compiled))):
        if key in table.columns and (key not in expressed or key in compiled.binds):
            written[table.columns[key].name] = None
            if key not in expressed and key not in conditions:
                add_plain(table.columns[key], key)
    for column in table.columns:
        if _has_own_default(column, statement):
            written[column.name] = None
    unknown = tuple(name for name in written if name in codecs and name not in plain)
    return tuple(plain.values()), unknown


def _find_plain(
    compiled: SQLCompiler, bound: BoundType, *, column: Any, parameter: str
) -> BoundColumn | None:
    """The column with its parameter; None unless the parameter arrives in it unchanged."""
    bind = compiled.binds.get(parameter)
    codec = bound.shape.codecs.get(column.name)
    if bind is None or codec is None or not _travels_plainly(compiled, column, bind):
        return None
    if _may_narrow(compiled, column, codec.pg_type):
        return None
    # A key has to be known before it is sent.
    watched = column.name not in bound.shape.key_names and _is_document(
        compiled, column, codec.pg_type
    )
    to_wire = _choose_reader(codec, watched=watched)
    return BoundColumn(column.name, _escape(compiled, parameter), to_wire, watched=watched)


def _choose_reader(codec: ValueCodec, *, watched: bool = False) -> ToWire:
    """How to predict the stored value from a parameter."""
    if codec.pg_type not in _WRAPPED:
        return codec.to_wire
    if codec.pg_type in _DOCUMENTS and not watched:
        return refuse_to_guess

    def to_wire(value: object) -> Wire | Unsure:
        return codec.to_wire(unwrap(value))

    return to_wire


def _is_document(compiled: SQLCompiler, column: Any, pg_type: str) -> bool:
    """SQLAlchemy wraps the value as JSON, and no cast to jsonb changes the text of a json."""
    if pg_type not in _DOCUMENTS:
        return False
    kind = column.type.dialect_impl(compiled.dialect)
    while isinstance(kind, (sa.TypeDecorator, sa.ARRAY)):
        inner = kind.item_type if isinstance(kind, sa.ARRAY) else kind.impl_instance
        kind = inner.dialect_impl(compiled.dialect)
    return isinstance(kind, sa.JSON) and (
        pg_type.startswith("jsonb") or kind.compile(dialect=compiled.dialect).lower() == "json"
    )


def _escape(compiled: SQLCompiler, parameter: str) -> str:
    """The name under which a parameter is sent."""
    escaped: Mapping[str, str] = compiled.escaped_bind_names or {}
    return escaped.get(parameter, parameter)


def _travels_plainly(compiled: SQLCompiler, column: Any, bind: BindParameter[Any]) -> bool:
    """The parameter is sent as it is, without an SQL function around it."""
    sql_type: Any = column.type.dialect_impl(compiled.dialect)
    wrapped = sql_type._has_bind_expression  # noqa: SLF001 - there is no public way
    return not (wrapped or bind.literal_execute or bind.expanding)


def _may_narrow(compiled: SQLCompiler, column: Any, pg_type: str) -> bool:
    """The model's type, to which SQLAlchemy casts the parameter, holds less than the column's.

    A cast to REAL, DATE, TIMESTAMP(0) or VARCHAR(5)[] truncates silently.
    """
    declared = column.type.compile(dialect=compiled.dialect).lower()
    if not declared.startswith(("real", "float", "date", "time", "interval")) and not (
        declared.endswith("[]") and ("(" in declared or declared.startswith("char"))
    ):
        return False
    spelled = declared.replace(", ", ",").replace("varchar", "character varying")
    return bool({"float": "double precision"}.get(spelled, spelled) != pg_type)


def _list_values(statement: sa.Insert | sa.Update, table: sa.Table) -> Iterator[tuple[Any, Any]]:
    """Columns and values of `values()` and `ordered_values()`."""
    given: Any = statement
    pairs = [*(given._values or {}).items()]  # noqa: SLF001 - there is no public way
    # SQLAlchemy 2.0 keeps ordered values apart.
    pairs += getattr(given, "_ordered_values", None) or ()
    for key, value in pairs:
        # Given by keyword they stay strings.
        column = table.columns.get(key) if isinstance(key, str) else key
        if column is not None:
            yield column, value


def _has_own_default(column: sa.Column[Any], statement: sa.Insert | sa.Update) -> bool:
    """SQLAlchemy writes the column by itself, or the database does and the model says so."""
    if isinstance(statement, sa.Insert):
        return column.default is not None
    return column.onupdate is not None or column.server_onupdate is not None


def _list_prefetched(compiled: SQLCompiler) -> list[Any]:
    return [*(compiled.insert_prefetch or ()), *(compiled.update_prefetch or ())]


def _list_binds(clause: Any) -> list[BindParameter[Any]]:
    if clause is None:
        return []
    return [e for e in visitors.iterate(clause) if isinstance(e, BindParameter)]


def _find_key(
    compiled: SQLCompiler, statement: sa.Update | sa.Delete, bound: BoundType
) -> tuple[BoundColumn, ...]:
    """The parameters that the WHERE clause equates with the whole primary key."""
    found: dict[str, BoundColumn] = {}
    for clause in _split_and(statement.whereclause):
        pair = _match_equality(clause, statement, bound)
        if pair is None or pair[0].name not in bound.shape.key_names or pair[0].name in found:
            continue
        column, bind = pair
        parameter = compiled.bind_names.get(bind)
        if parameter is None or not _travels_plainly(compiled, column, bind):
            continue
        to_wire = _choose_reader(bound.shape.codecs[column.name])
        found[column.name] = BoundColumn(column.name, _escape(compiled, parameter), to_wire)
    if set(found) != set(bound.shape.key_names):
        verb = "updated" if isinstance(statement, sa.Update) else "deleted from"
        raise _refuse(
            bound,
            f"is {verb} by a condition that is not its primary key",
            "load the objects and change them in the session",
        )
    return tuple(found[name] for name in bound.shape.key_names)


def _split_and(clause: Any) -> Iterator[Any]:
    if isinstance(clause, Grouping):
        yield from _split_and(clause.element)
    elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _split_and(part)
    elif clause is not None:
        yield clause


def _match_equality(
    clause: Any, statement: sa.Update | sa.Delete, bound: BoundType
) -> tuple[Any, BindParameter[Any]] | None:
    if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
        return None
    left, right = clause.left, clause.right
    if isinstance(left, BindParameter):
        left, right = right, left
    columns = bound.declared.written.columns
    key: str = getattr(left, "key", None) or ""
    if not isinstance(right, BindParameter) or key not in columns:
        return None
    # An alias of the table that is only read has the same columns. The ORM's annotated
    # copies of a table are equal by hash, not identical.
    if hash(getattr(left, "table", None)) != hash(statement.table):
        return None
    column = columns[key]
    return (column, right) if left.shares_lineage(column) else None


def _refuse(bound: BoundType, what: str, hint: str = "") -> NotCapturableError:
    return NotCapturableError(
        f"table {bound.live.qualified} {what}; its rows could not be logged exactly, "
        "so the statement was not sent",
        hint=hint or "write through objects in the session",
    )
