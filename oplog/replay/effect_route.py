"""How effects of any revision of a type reach the table that is made of them.

By field number, so that a renamed column is found under the name that the table has for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from oplog.errors import ReplayError, SchemaDriftError
from oplog.payload.codec import Effect
from oplog.payload.lineage import ColumnRoute
from oplog.payload.shape import Shape
from oplog.replay.type_target import TypeTarget
from oplog.replay.validity import VALID, Validity
from oplog.value import Kind, ValueCodec, Wire

Key: TypeAlias = tuple[Wire | None, ...]
Values: TypeAlias = dict[str, Wire | None]
Conversion: TypeAlias = Callable[[Wire], Wire]


class TableForm(Protocol):
    """The logged columns of a table, with their types."""

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
        """The codec of each logged column's type."""
        ...

    @property
    def targets(self) -> Mapping[str, TypeTarget]:
        """By type, the revision whose columns the table has."""
        ...


@dataclass(slots=True, eq=False)
class Route:
    """How effects of one shape reach their table; those of its own revision as they are."""

    shape: Shape
    """Kept alive, because routes are cached by its `id()`."""
    form: TableForm
    columns: tuple[str, ...] = ()
    conversions: tuple[tuple[str, str, Conversion | None], ...] | None = None
    """Of each column its name, what it is called in the effects, and what becomes of values."""
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

    @property
    def converts(self) -> bool:
        """Whether effects have other names, keys or values than the table."""
        return self.conversions is not None or self.key_conversions is not None

    def apply(self, effect: Effect, position: int) -> tuple[Key, Mapping[str, Wire | None]]:
        """Key and values of an effect, converted; `ReplayError` for a value that does not fit."""
        try:
            key = effect.key if self.key_conversions is None else self._convert_key(effect.key)
            return key, effect.values if self.conversions is None else self._convert(effect.values)
        except (ValueError, ArithmeticError) as cause:
            raise ReplayError(
                f"position {position}: a value of {self.shape.type_name!r} revision "
                f"{self.shape.revision} does not fit its column in {self.form.name} any "
                f"more: {cause}",
                hint="two types of one table log this column; log its rows anew: oplog adopt "
                "--again",
            ) from cause

    def _convert(self, values: Mapping[str, Wire | None]) -> Values:
        return {
            name: value if conversion is None or value is None else conversion(value)
            for name, source, conversion in self.conversions or ()
            if source in values
            for value in (values[source],)
        }

    def _convert_key(self, key: Key) -> Key:
        return tuple(
            value if conversion is None or value is None else conversion(value)
            for index, conversion in self.key_conversions or ()
            for value in (key[index],)
        )


def make_route(shape: Shape, form: TableForm, *, lenient_until: float) -> Route:
    """The route; `SchemaDriftError` if keys of the shape are no keys of the table."""
    routes = {
        one.target: one
        for one in form.targets[shape.type_name].map_from(shape)
        if one.target in form.names
    }
    keys = [routes[name].source for name in form.key_names if name in routes]
    if sorted(keys) != sorted(shape.key_names) or len(keys) != len(form.key_names):
        raise SchemaDriftError(
            f"{form.name} has primary key ({', '.join(form.key_names)}); type "
            f"{shape.type_name!r} revision {shape.revision} was logged with "
            f"({', '.join(shape.key_names)})",
            hint="rows logged before the key changed cannot be told apart by the new one; say so "
            "in a migration, which logs the rows anew: "
            f"op.replace_type({shape.type_name!r}, reason=...)",
        )
    conversions = tuple(
        (name, route.source, _find_conversion(shape, route, form.codecs[name]))
        for name, route in routes.items()
    )
    converted = any(name != source or one for name, source, one in conversions)
    same = tuple(routes) == shape.names and not converted
    key_conversions = tuple(
        (
            shape.key_names.index(source),
            _find_key_conversion(shape, routes[name], form.codecs[name]),
        )
        for name, source in zip(form.key_names, keys, strict=True)
    )
    same_key = key_conversions == tuple((index, None) for index in range(len(key_conversions)))
    return Route(
        shape,
        form,
        columns=tuple(routes),
        conversions=None if same else conversions,
        key_conversions=None if same_key else key_conversions,
        lenient_until=lenient_until,
    )


def _find_conversion(shape: Shape, route: ColumnRoute, new: ValueCodec) -> Conversion | None:
    old = shape.codecs[route.source]
    labels = route.labels
    if old.kind is new.kind:
        return (lambda wire: labels.get(str(wire), wire)) if labels else None
    # Of two types that share a table; a column of one type keeps its kind.
    read, write = new.from_text, old.to_text
    return lambda wire: read(write(wire))


def _find_key_conversion(shape: Shape, route: ColumnRoute, new: ValueCodec) -> Conversion | None:
    found = _find_conversion(shape, route, new)
    if new.kind not in (Kind.FLOAT4, Kind.FLOAT8):
        return found
    # NaN equals NaN in Postgres; in a dict only the very same object does.
    convert: Conversion = found or (lambda wire: wire)
    return lambda wire: math.nan if math.isnan(float(convert(wire))) else convert(wire)
