"""Folds effects in causal order to one net effect for each row.

No SQL and no connection. A fold holds what happened since the last batch was loaded, so memory is
bounded by the batch and not by the log. It cannot know whether a row that it never saw is in the
table: it sorts rows by what the log claims, and the loader holds the table to it. Only while a
type is being adopted may the log speak of rows that it has not met yet; those effects count for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from oplog.entry import OpType
from oplog.errors import ReplayError, SchemaDriftError
from oplog.payload.codec import Effect
from oplog.payload.shape import Shape
from oplog.replay.effect_route import Key, Route, TableForm, make_route
from oplog.replay.type_target import TypeTarget
from oplog.replay.validity import VALID, FoldRules, Validity
from oplog.value import ValueCodec, Wire

Row: TypeAlias = tuple[Mapping[str, Wire | None], tuple[str, ...], int]
"""Values, their columns in the same order, and the last position that wrote them.

A bare tuple, because there is one for every row of the log. Rows of one origin share the
tuple of columns.
"""


@dataclass(slots=True, eq=False)
class TableFold:
    """Net effects on one table since the last batch, by key.

    A row that was replaced is in `gone` and in `created`, or in `gone` and in `adopted`.
    """

    form: TableForm
    gone: dict[Key, int] = field(default_factory=dict)
    """Rows to delete, with the position of the delete; the table must have them."""
    patched: dict[Key, Row] = field(default_factory=dict)
    """New values for some columns of rows; the table must have the rows."""
    created: dict[Key, Row] = field(default_factory=dict)
    """Whole rows to insert; the table must not have them."""
    adopted: dict[Key, Row] = field(default_factory=dict)
    """Whole rows to insert, or to put in place of those under their keys."""
    doubtful: set[Key] = field(default_factory=set)
    """Keys in `gone` and `patched` whose rows may be missing in the table."""

    def __len__(self) -> int:
        return len(self.gone) + len(self.patched) + len(self.created) + len(self.adopted)

    def clear(self) -> None:
        """Begin the next batch."""
        self.gone.clear()
        self.patched.clear()
        self.created.clear()
        self.adopted.clear()
        self.doubtful.clear()

    def create(self, key: Key, row: Row) -> None:
        """Add a row; `ReplayError` if one is known under its key."""
        if key in self.doubtful and self.patched.pop(key, None) is not None:
            # Of a row that was not there. The table says so if it was.
            self.doubtful.discard(key)
        if key in self.created or key in self.patched or key in self.adopted:
            raise self.misfit(key, row[2], "creates a row that is already there")
        self.created[key] = row

    def adopt(self, key: Key, row: Row) -> None:
        """Add a row, or replace what is known under its key."""
        self.created.pop(key, None)
        if self.patched.pop(key, None) is not None:
            self.doubtful.discard(key)
        self.adopted[key] = row

    def update(
        self,
        key: Key,
        values: Mapping[str, Wire | None],
        position: int,
        *,
        lenient: bool = False,
    ) -> None:
        """Change columns of a row; `ReplayError` if one is of the key, or the row is deleted.

        With `lenient` a deleted row is ignored, and the table may lack the row.
        """
        for name, part in zip(self.form.key_names, key, strict=True):
            value = values.get(name, part)
            # NaN is unequal to itself in Python, and one key in Postgres.
            if value != part and not _are_nan(value, part):
                raise self.misfit(key, position, f"changes key column {name} in an update")
        rows = self.created if key in self.created else self.adopted
        if key not in rows:
            if key in self.gone:
                if lenient:
                    return
                raise self.misfit(key, position, "updates a row that is not there")
            rows = self.patched
        before = rows.get(key)
        if before is None:
            rows[key] = (values, tuple(values), position)
            if lenient:
                self.doubtful.add(key)
            return
        if not lenient and rows is self.patched:
            # From here on the row must exist. A row that was made anew says nothing about the
            # one that was deleted before it.
            self.doubtful.discard(key)
        merged = {**before[0], **values}
        columns = before[1] if len(before[1]) == len(merged) else tuple(merged)
        rows[key] = (merged, columns, position)

    def delete(self, key: Key, position: int, *, lenient: bool = False) -> None:
        """Delete a row; `ReplayError` if it was deleted before, unless `lenient`.

        One that was created in this batch leaves no trace.
        """
        if self.created.pop(key, None) is not None:
            return
        if self.adopted.pop(key, None) is not None:
            if key not in self.gone:
                self.gone[key] = position
                self.doubtful.add(key)
            return
        if key in self.gone:
            if lenient:
                return
            raise self.misfit(key, position, "deletes a row that is not there")
        known = self.patched.pop(key, None) is not None and key not in self.doubtful
        self.gone[key] = position
        if lenient and not known:
            self.doubtful.add(key)
        elif not lenient:
            self.doubtful.discard(key)

    def misfit(self, key: Key, position: int, what: str) -> ReplayError:
        """The error for an effect that does not fit the rows before it."""
        return make_misfit(self.form, key, position=position, what=what)


class _NoTable:
    """The form of a type whose effects reach no table."""

    name = ""
    names: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ()
    codecs: Mapping[str, ValueCodec] = MappingProxyType({})
    targets: Mapping[str, TypeTarget] = MappingProxyType({})


class Fold:
    """All tables' net rows since the last batch."""

    def __init__(
        self,
        tables: Mapping[str, TableFold],
        *,
        rules: FoldRules = FoldRules(),  # noqa: B008 - frozen
    ) -> None:
        """`tables` by type name; several types may share a table after a renaming.

        `rules` say which effects are skipped, and until when a type's updates and deletes of
        rows that the log never created are ignored.
        """
        self._by_type = tables
        self._rules = rules
        self.tables: Sequence[TableFold] = list({id(t): t for t in tables.values()}.values())
        self._routes: dict[int, tuple[Route, TableFold]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def clear(self) -> None:
        """Begin the next batch."""
        for table in self.tables:
            table.clear()

    def add(self, effects: Iterable[Effect], *, position: int) -> None:
        """Fold effects in order; `ReplayError` for one that contradicts an earlier one."""
        last: Shape | None = None
        route: Route | None = None
        table: TableFold | None = None
        for effect in effects:
            shape = effect.shape
            if route is None or table is None or shape is not last:
                (route, table), last = self._find_route(shape), shape
            if route.validity is not VALID and route.is_superseded(position):
                continue
            key, values, columns = effect.key, effect.values, route.columns
            if route.converts:
                key, values = route.apply(effect, position)
            kind = effect.kind
            if kind is OpType.CREATE:
                if not effect.complete:
                    columns = tuple(values)
                put = table.adopt if effect.adopted else table.create
                put(key, (values, columns, position))
            elif kind is OpType.UPDATE:
                # What a change of the schema made of rows is logged of the rows that it found.
                lenient = effect.adopted or position < route.lenient_until
                if values or not effect.adopted:
                    table.update(key, values, position, lenient=lenient)
            else:
                table.delete(key, position, lenient=position < route.lenient_until)

    def _find_route(self, shape: Shape) -> tuple[Route, TableFold]:
        found = self._routes.get(id(shape))
        if found is None:
            found = self._routes[id(shape)] = self._build_route(shape)
        return found

    def _build_route(self, shape: Shape) -> tuple[Route, TableFold]:
        validity = self._rules.judge(shape)
        until = self._rules.lenient_until.get(shape.type_name, 0)
        table = self._by_type.get(shape.type_name)
        if table is None or validity.refusal is not None:
            # None of its effects reaches a table.
            table = table or TableFold(_NoTable())
            return Route(shape, table.form, lenient_until=until, validity=validity), table
        if table.form.targets[shape.type_name].is_apart_from(shape):
            return Route(shape, table.form, validity=Validity(math.inf)), table
        try:
            route = make_route(shape, table.form, lenient_until=until)
        except SchemaDriftError as error:
            if not validity.since:
                raise
            validity = Validity(validity.since, error)
            return Route(shape, table.form, lenient_until=until, validity=validity), table
        return replace(route, validity=validity), table


def _are_nan(*values: Wire | None) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)


def describe_key(form: TableForm, key: Key) -> str:
    """A key for an error message: `id=42`."""
    parts = []
    for name, wire in zip(form.key_names, key, strict=True):
        parts.append(f"{name}={'NULL' if wire is None else form.codecs[name].to_text(wire)}")
    return ", ".join(parts)


def make_misfit(form: TableForm, key: Key, *, position: int, what: str) -> ReplayError:
    """The error for an effect that does not fit the rows before it."""
    return ReplayError(
        f"the log does not replay: position {position} {what}: {form.name} "
        f"({describe_key(form, key)})",
        hint="the log lacks a change or holds one twice: rows were written behind its back, or "
        "before it began and were never adopted; compare with a backup or the archive",
    )
