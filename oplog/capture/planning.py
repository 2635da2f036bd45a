"""Which side captures a statement: the application from its parameters, or the guards.

Exactly one of the two must do it. A statement whose plan is certain is announced to the guards,
which then only count its rows. Any other statement is left to the guards, and refused if a table
that it writes has none. The plan of each compiled statement is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from oplog.binding import Binding
from oplog.capture.statement_plan import StatementPlan, find_written, plan_statement
from oplog.catalog import TypeCatalog
from oplog.entry import OpType
from oplog.errors import NotCapturableError
from oplog.schema.guard import announce
from oplog.type_binding import BoundType


@dataclass(frozen=True, slots=True)
class Planned:
    """How a statement that writes tracked tables is captured."""

    plan: StatementPlan | None
    """None if the guards capture it."""
    announcement: str
    """What to put before the statement's text."""
    tables: tuple[sa.Table, ...]
    """Tables whose names must be compared with what they mean. None for an announced statement:
    if its name meant another table, the guard of the tracked one would count no rows."""


class StatementPlanner:
    """Plans for the statements of one engine."""

    def __init__(self, catalog: TypeCatalog, *, prefix: str) -> None:
        self.catalog = catalog
        self._prefix = prefix
        self._known: WeakKeyDictionary[Any, Planned | None] = WeakKeyDictionary()

    def clear(self) -> None:
        """Forget all plans: tables, types or guards may have changed."""
        self._known.clear()

    def find(self, context: Any, bind: Callable[[], Binding]) -> Planned | None:
        """How the statement of an execution is captured; None if it writes no tracked table.

        Raises `NotCapturableError` for one that neither side can capture.
        """
        compiled = context.compiled
        # Looked up once: another thread may clear the plans in between.
        known = self._known.get(compiled, self)
        if known is None:
            return None
        if isinstance(known, Planned):
            if known.plan is None:
                return known
            table = known.plan.bound.declared.table
            if bind().types.get(table) is known.plan.bound:
                return known
        planned = self._known[compiled] = self.make(compiled, bind)
        return planned

    def make(self, compiled: Any, bind: Callable[[], Binding]) -> Planned | None:
        """The same for a compiled statement, made anew and not kept."""

        def find_type(table: Any) -> BoundType | None:
            if self.catalog.find_table(table) is not None:
                return bind().types[table]
            self.catalog.check_namesake(table)
            return None

        try:
            plan = plan_statement(compiled, find_type)
        except NotCapturableError:
            guarded = self._list_guarded(compiled, bind)
            if guarded:
                return Planned(None, "", guarded)
            raise
        if plan is None:
            return None
        table = plan.bound.declared.table
        if plan.bound.guard is None:
            return Planned(plan, "", (table,))
        if _is_certain(plan):
            return Planned(plan, announce(plan.bound.guard.oid, self._prefix), ())
        return Planned(None, "", (table,))

    def list_tracked(self, compiled: Any) -> list[sa.Table]:
        """The tables of the catalog, by identity or name, that a compiled statement writes."""
        written = find_written(getattr(compiled, "statement", None))
        found = [self.catalog.find_namesake(table) for table in written]
        return [declared.table for declared in found if declared is not None]

    def _list_guarded(self, compiled: Any, bind: Callable[[], Binding]) -> tuple[sa.Table, ...]:
        """The tracked tables that the statement writes; none if one of them has no guard."""
        translated = getattr(compiled, "schema_translate_map", None) or {}
        found: dict[sa.Table, None] = {}
        for table in find_written(compiled.statement):
            declared = self.catalog.find_table(table) or self.catalog.find_namesake(table)
            if declared is None:
                continue
            if declared.table.schema in translated:
                return ()
            if bind().types[declared.table].guard is None:
                return ()
            found[declared.table] = None
        return tuple(found)


def _is_certain(plan: StatementPlan) -> bool:
    """The application can tell which rows the statement itself touches, and only those."""
    bound, guard = plan.bound, plan.bound.guard
    if guard is None or bound.live.rewrites_rows:
        return False
    if plan.kind is OpType.CREATE:
        if not all(column.certain for column in plan.returned_key):
            return False
        known = {column.name for column in plan.columns}.union(bound.shape.key_names)
        return set(bound.template.columns) <= known
    # For a row that may change its aggregate, the guard's image says without a query where it was.
    return not guard.cascades and not bound.regroups
