"""What is looked for: changes of some rows, of a column, from a value or to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oplog.entry import OpType
from oplog.errors import ConfigurationError
from oplog.payload.codec import Effect
from oplog.payload.shape import Shape
from oplog.value import UNSURE, Wire
from oplog.value.sameness import name_value

ANY: Any = ...
"""Stands for a value that was not asked for; None asks for NULL."""


@dataclass
class Question:
    """Conditions on one change; all of them hold together.

    `types` are the log's names of the types, with the newest revision of each; None for all.
    """

    types: Mapping[str, Shape] | None = None
    column: str | None = None
    to: Any = ANY
    before: Any = ANY
    kind: OpType | None = None
    _sought: dict[tuple[str, int, str], bytes | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.column is None:
            if self.to is not ANY or self.before is not ANY:
                raise ConfigurationError(
                    "a value is looked for, and no column is named",
                    hint="give type=Model, column='name' and to=value or before=value",
                )
            return
        if self.types is None:
            raise ConfigurationError(
                f"column {self.column!r:.80} is named, and no type",
                hint="give type=Model, or the name of a type",
            )
        for shape in self.types.values():
            if self.column not in shape.codecs:
                raise ConfigurationError(
                    f"type {shape.type_name!r} has no logged column {self.column!r:.80}",
                    hint=f"its logged columns are {', '.join(shape.names)}",
                )
            for value in (self.to, self.before):
                if value is not ANY:
                    self.name_sought(shape, value)

    def name_sought(self, shape: Shape, value: Any) -> bytes:
        """The value that is looked for, as `name_value` names it for the column of this shape.

        Raises `ConfigurationError` for one that the column cannot hold.
        """
        name = str(self.column)
        codec = shape.codecs[name]
        wire: Any = None if value is None else codec.to_wire(value)
        if wire is UNSURE and isinstance(value, str):
            # Of types such as ranges, the text that Postgres prints is what is logged.
            try:
                wire = codec.from_text(value)
                codec.to_python(wire)
            except (ValueError, ArithmeticError):
                wire = UNSURE
        if wire is UNSURE:
            raise ConfigurationError(
                f"{value!r:.80} ({type(value).__name__}) is no value of "
                f"{shape.table}.{name} ({codec.pg_type})",
                hint="give the Python type that matches the column, or its text as Postgres "
                "prints it",
            )
        return name_value(codec.pg_type, wire)

    def takes(self, effect: Effect) -> bool:
        """Whether a change fits, but for the value before."""
        if self.types is not None and effect.shape.type_name not in self.types:
            return False
        if self.kind is not None and effect.kind is not self.kind:
            return False
        if self.column is None:
            return True
        if effect.kind is OpType.DELETE:
            # A value goes with its row; none is set.
            return self.to is ANY and (self.before is not ANY or self.kind is OpType.DELETE)
        if self.column not in effect.values:
            return False
        return self.to is ANY or self._is(effect, effect.values[self.column], self.to)

    def takes_before(self, effect: Effect, wire: Wire | None) -> bool:
        """Whether `wire`, which the column had before the change, is the value asked for."""
        return self._is(effect, wire, self.before)

    def _is(self, effect: Effect, wire: Wire | None, value: Any) -> bool:
        shape = effect.shape
        which = "to" if value is self.to else "before"
        key = (shape.type_name, shape.revision, which)
        if key not in self._sought:
            try:
                self._sought[key] = self.name_sought(shape, value)
            except ConfigurationError:
                # A column of then may not have been able to hold the value.
                self._sought[key] = None
        return self._sought[key] == name_value(shape.codecs[str(self.column)].pg_type, wire)
