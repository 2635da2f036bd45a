"""Rows of a plan as people know them: values of Python in place of those on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from oplog.errors import ConfigurationError
from oplog.replay.effect_route import Key
from oplog.replay.table_plan import TablePlan
from oplog.undo.row_timeline import EXISTENCE, Missing
from oplog.undo.undo_plan import PlannedWrite
from oplog.undo.write_order import RowWrite
from oplog.value import Wire


class PlannedWrites(Sequence[PlannedWrite]):
    """The writes of a plan; each is told in Python's values when it is asked for."""

    def __init__(self, writes: Sequence[RowWrite], tables: Mapping[int, TablePlan]) -> None:
        self._writes = writes
        self._tables = tables

    def __len__(self) -> int:
        return len(self._writes)

    @overload
    def __getitem__(self, index: int) -> PlannedWrite: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PlannedWrite]: ...
    def __getitem__(self, index: int | slice) -> PlannedWrite | Sequence[PlannedWrite]:
        """The write, or some of them."""
        if isinstance(index, slice):
            return PlannedWrites(self._writes[index], self._tables)
        write = self._writes[index]
        plan = self._tables[write.table]
        return PlannedWrite(
            kind=write.kind,
            type_name=next(iter(plan.targets)),
            table=plan.name,
            key=tell_key(plan, write.key),
            before=_tell_row(plan, write.before),
            after=_tell_row(plan, write.after),
        )


def list_hidden(plan: TablePlan) -> list[str]:
    """Columns of the table that the log does not have."""
    return [c.name for c in plan.live.columns if not c.generated and c.name not in plan.names]


def check_values(values: Mapping[str, Any], tables: Iterable[TablePlan]) -> None:
    """Raise `ConfigurationError` for a value of a column that is logged, or not there."""
    known = {f"{plan.live.name}.{name}" for plan in tables for name in list_hidden(plan)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigurationError(
            f"values= has {unknown[0]!r}, which is no column that is excluded from the log",
            hint="give values of excluded columns, by table.column",
        )


def tell(plan: TablePlan, column: str, value: Any) -> Any:
    """A value as people know it; of a whole row whether it is there."""
    if isinstance(value, Missing):
        return value.value
    if column == EXISTENCE:
        return "present" if value else "absent"
    return None if value is None else plan.codecs[column].to_python(value)


def tell_key(plan: TablePlan, key: Key) -> dict[str, Any]:
    """A key as people know it."""
    return {name: tell(plan, name, wire) for name, wire in zip(plan.key_names, key, strict=True)}


def _tell_row(plan: TablePlan, row: Mapping[str, Wire | None] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: tell(plan, name, row[name]) for name in plan.names if name in row}
