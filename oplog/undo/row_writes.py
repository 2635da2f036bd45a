"""Makes the writes of an undo, as statements that the session's capture logs like any other.

Keys travel as plain parameters, which tell capture the row. Other values travel as Postgres' own
text with a cast, which gives each back as it was stored, whatever type the application's model has
for the column; numbers and plain text need no cast. Text settings must be pinned.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import SchemaDriftError, UndoError, UnknownTypeError
from oplog.postgres.live_table import read_live_tables
from oplog.postgres.quoting import double_percent, quote
from oplog.postgres.row_constraints import find_spare_number, spell_type
from oplog.replay.table_plan import TablePlan
from oplog.undo.told_rows import list_hidden
from oplog.undo.write_order import OrderedWrites, Step
from oplog.value import Kind, ValueCodec, Wire

_PAGE_ROWS = 1000
"""Rows of one execution."""
_PLAIN = (Kind.BOOL, Kind.INT)
_PLAIN_TEXT = ("text", "character varying")


class _AsIs(sa.types.UserDefinedType[Any]):
    """A parameter that the driver gets as it is, whatever type the column has in the model."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Never rendered: nothing is cast to it."""
        return "text"


class _Spelled(sa.types.UserDefinedType[Any]):
    """A type as Postgres spells it, to cast text to."""

    cache_ok = True

    def __init__(self, spelled: str) -> None:
        self.spelled = spelled

    def get_col_spec(self, **_: Any) -> str:
        """The type's name."""
        return double_percent(self.spelled)


class _InsertWhole(sa.Insert):
    """An insert that also gives values to identity columns that are GENERATED ALWAYS."""

    inherit_cache = True


@compiles(_InsertWhole)
def _state_insert(insert: _InsertWhole, compiler: SQLCompiler, **options: Any) -> str:
    text: str = compiler.visit_insert(insert, **options)  # type: ignore[no-untyped-call]
    before, values, after = text.partition(") VALUES (")
    return f"{before}) OVERRIDING SYSTEM VALUE VALUES ({after}" if values else text


class RowWriter:
    """Writes rows of the catalog's tables on one connection."""

    def __init__(
        self,
        connection: Connection,
        catalog: TypeCatalog,
        *,
        plans: Mapping[int, TablePlan],
        values: Mapping[str, Any],
    ) -> None:
        self._connection = connection
        self._plans = plans
        self._values = values
        declared = {one.table: one for one in catalog.types.values()}
        live = read_live_tables(connection, list(declared))
        self._declared = {found.oid: declared[table] for table, found in live.items()}

    def write(self, ordered: OrderedWrites) -> None:
        """Make all writes; `UndoError` where a row is not as it was, or a constraint refuses."""
        if ordered.deferred:
            names = double_percent(", ".join(ordered.deferred))
            self._connection.exec_driver_sql(f"SET CONSTRAINTS {names} DEFERRED")
        try:
            for batch in ordered.batches:
                for first in range(0, len(batch), _PAGE_ROWS):
                    self._write_page(batch[first : first + _PAGE_ROWS])
            if ordered.deferred:
                self._connection.exec_driver_sql(f"SET CONSTRAINTS {names} IMMEDIATE")
        except IntegrityError as cause:
            reason = str(cause.orig).split("\n", 1)[0]
            raise UndoError(
                f"a constraint refuses the rows of before: {reason}",
                hint="somebody may have written a row in its way just now: plan again. If that "
                "does not help, the constraint or what it checks is newer than the rows",
            ) from cause

    def _write_page(self, steps: Sequence[Step]) -> None:
        step = steps[0]
        plan = self._plans[step.table]
        declared = self._find_declared(plan)
        table = declared.written
        columns = {column.name: column for column in table.columns}
        lacking = [name for name in (*plan.key_names, *step.values) if name not in columns]
        if lacking:
            raise SchemaDriftError(
                f"column {plan.name}.{lacking[0]} is in the log and not in the models",
                hint="undo with the application's newest models",
            )
        form = _Form(plan, columns)
        if step.kind == "insert":
            statement = self._state_insert(form, step, table)
            rows = [form.bind_values(one) | self._bind_given(plan) for one in steps]
        else:
            statement, rows = self._state_change(form, steps, table)
        done = self._connection.execute(
            statement.execution_options(**_translate(declared)), rows if len(rows) > 1 else rows[0]
        )
        if step.kind != "insert" and done.rowcount != len(steps):
            raise UndoError(
                f"{len(steps)} rows of {plan.name} were to be written, and {done.rowcount} were: "
                "a trigger, a rule or a policy of the table is in the way",
                hint="let a role undo it that may see and write these rows",
            )

    def _state_insert(self, form: _Form, step: Step, table: sa.Table) -> Any:
        values = form.state_values(step)
        given = {
            form.columns[name]: sa.bindparam(f"g{n}", type_=form.columns[name].type)
            for n, name in enumerate(list_hidden(form.plan))
        }
        return _InsertWhole(table).values({**values, **given})

    def _bind_given(self, plan: TablePlan) -> dict[str, Any]:
        return {
            f"g{n}": self._values[f"{plan.live.name}.{name}"]
            for n, name in enumerate(list_hidden(plan))
        }

    def _state_change(
        self, form: _Form, steps: Sequence[Step], table: sa.Table
    ) -> tuple[Any, list[dict[str, Any]]]:
        step = steps[0]
        where = form.state_key()
        if step.kind == "delete":
            return sa.delete(table).where(where), [form.bind_key(one) for one in steps]
        values = form.state_values(step)
        for n, name in enumerate(step.spare):
            values[form.columns[name]] = form.state_value(name, f"s{n}")
        for column in table.columns:
            # SQLAlchemy would give these a value of its own, which is none of before.
            if column.onupdate is not None and column not in values:
                values[column] = column
        spare = [self._find_spare(form, name, len(steps)) for name in step.spare]
        rows = []
        for number, one in enumerate(steps):
            row = form.bind_key(one) | form.bind_values(one)
            for n, name in enumerate(step.spare):
                row[f"s{n}"] = form.print_value(name, spare[n][number])
            rows.append(row)
        return sa.update(table).where(where).values(values), rows

    def _find_spare(self, form: _Form, name: str, count: int) -> list[Wire]:
        """Values that no row has in the column."""
        pg_type = form.plan.live_columns[name].pg_type
        if pg_type == "uuid":
            return [str(uuid4()) for _ in range(count)]
        if pg_type.startswith(_PLAIN_TEXT):
            width = int(pg_type.partition("(")[2].rstrip(")") or 32)
            return [secrets.token_hex(16)[:width] for _ in range(count)]
        first = find_spare_number(self._connection, form.plan.live.qualified, quote(name))
        codec = form.plan.codecs[name]
        return [codec.from_text(str(first + n)) for n in range(count)]

    def _find_declared(self, plan: TablePlan) -> DeclaredType:
        declared = self._declared.get(plan.live.oid)
        if declared is None:
            raise UnknownTypeError(
                f"the catalog has no type for table {plan.name}, whose rows are to be undone",
                hint="undo with the catalog of the application that writes the table",
            )
        return declared


class _Form:
    """How columns of one table are stated and bound."""

    def __init__(self, plan: TablePlan, columns: Mapping[str, sa.Column[Any]]) -> None:
        self.plan = plan
        self.columns = columns

    def state_key(self) -> Any:
        return sa.and_(
            *(
                self.columns[name] == self._state(name, f"k{n}", key=True)
                for n, name in enumerate(self.plan.key_names)
            )
        )

    def bind_key(self, step: Step) -> dict[str, Any]:
        return {
            f"k{n}": self._print(name, wire, key=True)
            for n, (name, wire) in enumerate(zip(self.plan.key_names, step.key, strict=True))
        }

    def state_values(self, step: Step) -> dict[Any, Any]:
        keys = self.plan.key_names if step.kind == "insert" else ()
        return {
            self.columns[name]: self._state(name, f"v{n}", key=name in keys)
            for n, name in enumerate(step.values)
        }

    def bind_values(self, step: Step) -> dict[str, Any]:
        keys = self.plan.key_names if step.kind == "insert" else ()
        return {
            f"v{n}": self._print(name, wire, key=name in keys)
            for n, (name, wire) in enumerate(step.values.items())
        }

    def state_value(self, name: str, parameter: str) -> Any:
        return self._state(name, parameter, key=False)

    def print_value(self, name: str, wire: Wire | None) -> Any:
        return self._print(name, wire, key=False)

    def _state(self, name: str, parameter: str, *, key: bool) -> Any:
        bound = sa.bindparam(parameter, type_=_AsIs())
        if key or self._is_plain(name):
            return bound
        return sa.cast(bound, _Spelled(spell_type(self.plan.live_columns[name])))

    def _print(self, name: str, wire: Wire | None, *, key: bool) -> Any:
        if wire is None:
            return None
        codec = self._codec(name)
        if not key:
            return wire if self._is_plain(name) else codec.to_text(wire)
        value = codec.to_python(wire)
        return value if codec.to_wire(value) == wire else codec.to_text(wire)

    def _is_plain(self, name: str) -> bool:
        codec = self._codec(name)
        return codec.kind in _PLAIN or codec.pg_type.startswith(_PLAIN_TEXT)

    def _codec(self, name: str) -> ValueCodec:
        return self.plan.codecs[name]


def _translate(declared: DeclaredType) -> dict[str, Any]:
    """The schema of a tenant's table, for this statement alone."""
    if declared.model is None:
        return {}
    return {"schema_translate_map": {declared.model.schema: declared.table.schema}}
