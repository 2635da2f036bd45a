"""Folds effects in causal order to one net effect for each row.

No SQL and no connection. A fold holds what happened since the last batch was loaded, so memory is
bounded by the batch and not by the log. It cannot know whether a row that it never saw is in the
table: it sorts rows by what the log claims, and the loader holds the table to it. Only while a
type is being adopted may the log speak of rows that it has not met yet; those effects count for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, TypeAlias

from oplog.entry import OpType
from oplog.errors import ReplayError, SchemaDriftError
from oplog.payload.codec import Effect
from oplog.payload.shape import Shape
from oplog.replay.validity import VALID, FoldRules, Validity
from oplog.value import Kind, ValueCodec, Wire

Key: TypeAlias = tuple[Wire | None, ...]
Values: TypeAlias = dict[str, Wire | None]
Conversion: TypeAlias = Callable[[Wire], Wire]


Row: TypeAlias = tuple[Mapping[str, Wire | None], tuple[str, ...], int]
"""Values, their columns in the same order, and the last position that wrote them.

A bare tuple, because there is one for every row of the log. Rows of one origin share the
tuple of columns.
"""


class TableForm(Protocol):
    """The logged columns of a table, with their current types."""

    @property
    def name(self) -> str:
        """Schema and table, for errors."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The logged columns."""
        ...

    @property
    def key_names(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        ...

    @property
    def codecs(self) -> Mapping[str, ValueCodec]:
        """The codec of each logged column's current type."""
        ...


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


@dataclass(slots=True, eq=False)
class _Route:
    """How effects of one shape reach their table; the newest revision needs no conversion."""

    shape: Shape
    """Kept alive, because routes are cached by its `id()`."""
    table: TableFold
    columns: tuple[str, ...] = ()
    conversions: tuple[tuple[str, Conversion | None], ...] | None = None
    key_conversions: tuple[tuple[int, Conversion | None], ...] | None = None
    lenient_until: float = 0
    """Before this position, effects may concern rows that the log never created."""
    validity: Validity = VALID
    """Which of its effects are applied."""

    def is_superseded(self, position: int) -> bool:
        """Whether an effect at `position` is skipped; raises the refusal of any other."""
        if position < self.validity.since:
            return True
        if self.validity.refusal is not None:
            raise self.validity.refusal
        return False

    def convert(self, values: Mapping[str, Wire | None]) -> Values:
        """Convert values of an old revision to the columns that the table has now."""
        return {
            name: value if conversion is None or value is None else conversion(value)
            for name, conversion in self.conversions or ()
            if name in values
            for value in (values[name],)
        }

    def convert_key(self, key: Key) -> Key:
        """Convert a key of an old revision to the table's order and types."""
        return tuple(
            value if conversion is None or value is None else conversion(value)
            for index, conversion in self.key_conversions or ()
            for value in (key[index],)
        )


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
        self._routes: dict[int, _Route] = {}

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def clear(self) -> None:
        """Begin the next batch."""
        for table in self.tables:
            table.clear()

    def add(self, effects: Iterable[Effect], *, position: int) -> None:
        """Fold effects in order; `ReplayError` for one that contradicts an earlier one."""
        last: Shape | None = None
        route: _Route | None = None
        for effect in effects:
            shape = effect.shape
            if route is None or shape is not last:
                route, last = self._find_route(shape), shape
            if route.validity is not VALID and route.is_superseded(position):
                continue
            key, values, columns = effect.key, effect.values, route.columns
            if route.key_conversions is not None or route.conversions is not None:
                key, values = _convert(route, effect, position)
            kind = effect.kind
            if kind is OpType.CREATE:
                if not effect.complete:
                    columns = tuple(values)
                put = route.table.adopt if effect.adopted else route.table.create
                put(key, (values, columns, position))
            elif kind is OpType.UPDATE:
                route.table.update(key, values, position, lenient=position < route.lenient_until)
            else:
                route.table.delete(key, position, lenient=position < route.lenient_until)

    def _find_route(self, shape: Shape) -> _Route:
        found = self._routes.get(id(shape))
        if found is None:
            found = self._routes[id(shape)] = self._build_route(shape)
        return found

    def _build_route(self, shape: Shape) -> _Route:
        validity = self._rules.judge(shape)
        until = self._rules.lenient_until.get(shape.type_name, 0)
        table = self._by_type.get(shape.type_name)
        if table is None or validity.refusal is not None:
            # None of its effects reaches a table.
            table = table or TableFold(_NoTable())
            return _Route(shape, table, lenient_until=until, validity=validity)
        try:
            return replace(_make_route(shape, table, lenient_until=until), validity=validity)
        except SchemaDriftError as error:
            if not validity.since:
                raise
            validity = Validity(validity.since, error)
            return _Route(shape, table, lenient_until=until, validity=validity)


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


# -- old revisions ------------------------------------------------------------------------


def _convert(route: _Route, effect: Effect, position: int) -> tuple[Key, Mapping[str, Wire | None]]:
    try:
        key = effect.key if route.key_conversions is None else route.convert_key(effect.key)
        return key, effect.values if route.conversions is None else route.convert(effect.values)
    except (ValueError, ArithmeticError) as cause:
        raise ReplayError(
            f"position {position}: a value of {route.shape.type_name!r} revision "
            f"{route.shape.revision} does not fit its column in {route.table.form.name} any "
            f"more: {cause}",
            hint="the column's type was changed; replay into the type it had, or log the "
            "converted rows anew",
        ) from cause


def _make_route(shape: Shape, table: TableFold, *, lenient_until: float) -> _Route:
    form = table.form
    if set(shape.key_names) != set(form.key_names):
        raise SchemaDriftError(
            f"{form.name} has primary key ({', '.join(form.key_names)}); type "
            f"{shape.type_name!r} revision {shape.revision} was logged with "
            f"({', '.join(shape.key_names)})",
            hint="the rows logged before the key changed cannot be told apart by the new one; "
            "log the table under a new type name and adopt its rows",
        )
    conversions = tuple(
        (name, _find_conversion(shape.codecs[name], form.codecs[name]))
        for name in form.names
        if name in shape.codecs
    )
    converted = any(one for _, one in conversions)
    same = tuple(name for name, _ in conversions) == shape.names and not converted
    key_conversions = tuple(
        (shape.key_names.index(name), _find_key_conversion(shape.codecs[name], form.codecs[name]))
        for name in form.key_names
    )
    same_key = key_conversions == tuple((index, None) for index in range(len(key_conversions)))
    return _Route(
        shape,
        table,
        columns=tuple(name for name, _ in conversions),
        conversions=None if same else conversions,
        key_conversions=None if same_key else key_conversions,
        lenient_until=lenient_until,
    )


def _find_conversion(old: ValueCodec, new: ValueCodec) -> Conversion | None:
    if old.kind is new.kind:
        return None
    read, write = new.from_text, old.to_text
    return lambda wire: read(write(wire))


def _find_key_conversion(old: ValueCodec, new: ValueCodec) -> Conversion | None:
    found = _find_conversion(old, new)
    if new.kind not in (Kind.FLOAT4, Kind.FLOAT8):
        return found
    # NaN equals NaN in Postgres; in a dict only the very same object does.
    convert: Conversion = found or (lambda wire: wire)
    return lambda wire: math.nan if math.isnan(float(convert(wire))) else convert(wire)
