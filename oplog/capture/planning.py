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
from oplog.capture.frame import NamedTable
from oplog.capture.routing import Place, Router, find_translation
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
    tables: tuple[NamedTable, ...]
    """Tables whose names must be compared with what they mean, unless the statement is announced:
    if its name meant another table, the guard of the tracked one would count no rows."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A statement that does not write the same tables at each execution."""

    written: tuple[Any, ...]
    """The tables, as the statement has them, that are or may be tracked."""
    plans: dict[tuple[Place | None, ...], Planned | None]
    """By the places of these tables."""


class StatementPlanner:
    """Plans for the statements of one engine."""

    def __init__(self, catalog: TypeCatalog, *, prefix: str) -> None:
        self.catalog = catalog
        self._prefix = prefix
        self._known: WeakKeyDictionary[Any, Planned | Routed | None] = WeakKeyDictionary()

    def clear(self) -> None:
        """Forget all plans: tables, types or guards may have changed."""
        self._known.clear()

    def find(
        self, context: Any, bind: Callable[[], Binding], route: Callable[[], Router]
    ) -> Planned | None:
        """How the statement of an execution is captured; None if it writes no tracked table.

        `route` gives what finds its tables. Raises `NotCapturableError` for one that neither side
        can capture.
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
        elif isinstance(known, Routed):
            return self._find_routed(compiled, known, route())
        routed = self._list_routed(compiled, context)
        if routed:
            known = self._known[compiled] = Routed(routed, {})
            return self._find_routed(compiled, known, route())
        planned = self._known[compiled] = self.make(compiled, route)
        return planned

    def _list_routed(self, compiled: Any, context: Any) -> tuple[Any, ...]:
        """Tracked tables that the statement writes, if executions differ in what they are."""
        written = tuple(dict.fromkeys(find_written(compiled.statement)))
        tenants = any(self.catalog.find_tenants(table, namesake=True) for table in written)
        # Either all executions of a compiled statement have such a map, or none.
        if not tenants and not find_translation(context):
            return ()
        return tuple(table for table in written if self._may_track(table))

    def _may_track(self, table: Any) -> bool:
        return bool(
            self.catalog.find_tenants(table, namesake=True)
            or self.catalog.find_table(table)
            or self.catalog.find_namesake(table)
        )

    def _find_routed(self, compiled: Any, known: Routed, router: Router) -> Planned | None:
        places = tuple([router.find(table, namesake=True) for table in known.written])
        if places not in known.plans:
            known.plans[places] = self.make(compiled, lambda: router)
        return known.plans[places]

    def make(self, compiled: Any, route: Callable[[], Router]) -> Planned | None:
        """The same for a compiled statement, made anew and not kept."""
        places: dict[BoundType, Place] = {}

        def find_type(table: Any) -> BoundType | None:
            if self.catalog.find_table(table) is None and not self.catalog.find_tenants(table):
                self.catalog.check_namesake(table)
                return None
            found = route().find(table)
            if found is None:
                return None
            places[found.bound] = found
            return found.bound

        try:
            plan = plan_statement(compiled, find_type)
        except NotCapturableError:
            guarded = self._list_guarded(compiled, route)
            if guarded is None:
                raise
            return Planned(None, "", guarded)
        if plan is None:
            return None
        named = _name(places[plan.bound])
        if plan.bound.guard is None:
            return Planned(plan, "", named)
        if _is_certain(plan):
            return Planned(plan, announce(plan.bound.guard.oid, self._prefix), named)
        return Planned(None, "", named)

    def list_tracked(self, compiled: Any) -> list[sa.Table]:
        """The tables of the catalog, by identity or name, that a compiled statement writes.

        As the statement names them.
        """
        written = find_written(getattr(compiled, "statement", None))
        return [table for table in written if self.catalog.find_namesake(table) is not None]

    def _list_guarded(
        self, compiled: Any, route: Callable[[], Router]
    ) -> tuple[NamedTable, ...] | None:
        """Names to be compared later of what the statement writes; None if a table has no guard."""
        guarded = False
        found: dict[NamedTable, None] = {}
        for table in find_written(compiled.statement):
            if not self._may_track(table):
                continue
            place = route().find(table, namesake=True)
            if place is None:
                continue
            if place.bound.guard is None:
                return None
            guarded = True
            found.update(dict.fromkeys(_name(place)))
        return tuple(found) if guarded else None


def _name(place: Place) -> tuple[NamedTable, ...]:
    """What has to be compared later: nothing, if the name was just asked for."""
    return () if place.asked else (NamedTable(place.bound.declared.table, place.name),)


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
