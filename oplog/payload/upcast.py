"""Converts effects between revisions of a type, through the steps declared in the catalog.

Stored entries are never rewritten; an old one is converted each time it is read. An update holds
only the columns that changed, so a step may be called with a part of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from oplog.errors import UpcastError
from oplog.payload.codec import Effect, TypeLookup
from oplog.payload.shape import Shape
from oplog.value import UNSURE, Wire


class StepLookup(Protocol):
    """Gives the declared steps; `TypeCatalog` implements it."""

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> Any:
        """Return the step between two adjacent revisions, or None."""
        ...


class Upcaster:
    """Converts effects between revisions of their types."""

    def __init__(
        self,
        steps: StepLookup,
        types: TypeLookup,
        *,
        revisions: Mapping[str, int] | None = None,
    ) -> None:
        """`revisions`: wanted revision by type; other types are converted as far as steps lead."""
        self._steps = steps
        self._types = types
        self._revisions = dict(revisions or {})
        self._paths: dict[tuple[str, int], tuple[Any, ...]] = {}

    def convert(self, effect: Effect) -> Effect:
        """Return the effect in the wanted revision; unchanged if it has that already.

        Raises `UpcastError` when a step is missing, fails, or returns a row that the target
        revision cannot hold.
        """
        shape = effect.shape
        path = self._find_path(shape)
        if not path:
            return effect
        down = path[0][1] < shape.revision
        target = self._types.find_shape(shape.type_name, path[-1][1])
        if not effect.values:
            return replace(effect, shape=target)
        # Steps get Python values: they are application code and know nothing of wire values.
        row = _to_python(shape, effect.values)
        for step, revision in path:
            row = _apply(step, row, shape, revision, down=down)
        values = {name: _to_wire(target, name, value) for name, value in row.items()}
        complete = effect.complete and set(values) == set(target.names)
        if complete:
            values = {name: values[name] for name in target.names}
        return replace(effect, shape=target, values=values, complete=complete)

    def _find_path(self, shape: Shape) -> tuple[Any, ...]:
        key = (shape.type_name, shape.revision)
        found = self._paths.get(key)
        if found is None:
            found = self._paths[key] = tuple(self._walk(shape))
        return found

    def _walk(self, shape: Shape) -> list[tuple[Any, int]]:
        wanted = self._revisions.get(shape.type_name)
        path: list[tuple[Any, int]] = []
        revision = shape.revision
        while revision != wanted:
            towards = revision - 1 if wanted is not None and wanted < revision else revision + 1
            step = self._steps.find_step(shape.type_name, revision, to_revision=towards)
            if step is None:
                if wanted is None:
                    break
                raise UpcastError(
                    f"type {shape.type_name!r} has no step from revision {revision} to {towards}",
                    hint="declare it with catalog.upcast(...) or catalog.downcast(...)",
                )
            path.append((step, towards))
            revision = towards
        return path


def _to_python(shape: Shape, values: Mapping[str, Wire | None]) -> dict[str, Any]:
    codecs = shape.codecs
    return {
        name: None if wire is None else codecs[name].to_python(wire)
        for name, wire in values.items()
    }


def _apply(
    step: Any, row: dict[str, Any], shape: Shape, revision: int, *, down: bool
) -> dict[str, Any]:
    try:
        result = step(dict(row))  # a copy: a step may change its argument
    except Exception as cause:
        raise UpcastError(
            f"the {'downcast' if down else 'upcast'} of type {shape.type_name!r} to revision "
            f"{revision} failed: {cause}",
            hint="a step gets only the columns that were written; an update may lack others, "
            "so test for a column before using it",
        ) from cause
    if not isinstance(result, dict):
        raise UpcastError(
            f"the step of type {shape.type_name!r} to revision {revision} returned "
            f"{type(result).__name__}",
            hint="return a dict of columns",
        )
    return result


def _to_wire(shape: Shape, name: str, value: Any) -> Wire | None:
    codec = shape.codecs.get(name)
    if codec is None:
        raise UpcastError(
            f"the step returned column {name!r}, which type {shape.type_name!r} revision "
            f"{shape.revision} does not have",
            hint=f"its columns are {', '.join(shape.names)}",
        )
    if value is None:
        return None
    wire = codec.to_wire(value)
    if wire is UNSURE and isinstance(value, str):
        # to_python leaves a value as Postgres' text when Python cannot hold it.
        wire = codec.from_text(value)
    if wire is UNSURE:
        raise UpcastError(
            f"the step returned a {type(value).__name__} for {shape.type_name}.{name}, which "
            f"has no certain stored form as {codec.pg_type}",
            hint="return the Python type that matches the column",
        )
    return wire
