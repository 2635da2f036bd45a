"""Converts effects between revisions of a type: by steps of the catalog, else by field number.

Stored entries are never rewritten; an old one is converted each time it is read. An update holds
only the columns that changed, so a step may be called with a part of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from oplog.errors import UpcastError
from oplog.payload.codec import Effect
from oplog.payload.lineage import ColumnRoute, find_fills, is_apart, list_line, map_columns
from oplog.payload.shape import Shape
from oplog.value import UNSURE, Wire


class StepLookup(Protocol):
    """Gives the declared steps; `TypeCatalog` implements it."""

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> Any:
        """Return the step between two adjacent revisions, or None."""
        ...


class Revisions(Protocol):
    """Gives the stored revisions of types."""

    def find_shape(self, type_name: str, revision: int) -> Shape:
        """Return the revision; `UnknownTypeError` if the log lacks it."""
        ...

    def list_revisions(self, type_name: str) -> Sequence[Shape]:
        """Return every revision of a type, rising."""
        ...


@dataclass(frozen=True, slots=True)
class _Hop:
    """From one revision to another: by declared steps that follow one another, or by number."""

    revision: int
    steps: tuple[tuple[Any, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Map:
    """Where values come from, and those of columns that were added since."""

    routes: Sequence[ColumnRoute]
    fills: Mapping[str, Wire | None]


class Upcaster:
    """Converts effects between revisions of their types.

    By the declared step where there is one between two revisions, else by field number: renamed
    columns under their new names, dropped ones left out, and added ones with the value that rows of
    that time got, if a row is complete.
    """

    def __init__(
        self,
        steps: StepLookup,
        types: Revisions,
        *,
        revisions: Mapping[str, int] | None = None,
        down: bool = False,
    ) -> None:
        """`revisions`: wanted revision by type.

        Other types are converted as far as steps lead, to later or (`down`) earlier revisions.
        """
        self._steps = steps
        self._types = types
        self._revisions = dict(revisions or {})
        self._down = down
        self._within = False
        self._limits: Mapping[str, int] = {}
        self._paths: dict[tuple[str, int], tuple[_Hop, ...]] = {}
        self._maps: dict[tuple[str, int, int], _Map] = {}

    def want(self, revisions: Mapping[str, int]) -> None:
        """Convert effects of these types to these revisions, or as far as their keys are the same.

        Effects of other types are left as they are.
        """
        self._revisions = dict(revisions)
        self._within = True
        self._paths.clear()

    def aim(self, limits: Mapping[str, int]) -> None:
        """Let steps lead no further than to these revisions, for types that none is wanted of."""
        self._limits = limits
        self._paths.clear()

    def convert(self, effect: Effect) -> Effect:
        """Return the effect in the wanted revision; unchanged if it has that already.

        Raises `UpcastError` when a step fails or returns a row that the target revision cannot
        hold, and for rows under a key that the wanted revision does not have.
        """
        for hop in self.find_path(effect.shape):
            target = self._types.find_shape(effect.shape.type_name, hop.revision)
            effect = _take_steps(effect, hop, target) if hop.steps else self._map(effect, target)
        return effect

    def find_path(self, shape: Shape) -> tuple[_Hop, ...]:
        """How effects of a shape are converted; empty if they are not."""
        key = (shape.type_name, shape.revision)
        found = self._paths.get(key)
        if found is None:
            found = self._paths[key] = tuple(self._walk(shape, self._find_goal(shape)))
        return found

    def _find_goal(self, shape: Shape) -> int:
        name, start = shape.type_name, shape.revision
        wanted = self._revisions.get(name)
        known = self._types.list_revisions(name)
        # Rows from before all were logged anew are not read any more; no step brings them along.
        anew = [one.revision for one in known if one.change.readopted]
        first = max((revision for revision in anew if revision <= start), default=0)
        last = min((revision - 1 for revision in anew if revision > start), default=2**31)
        if wanted is not None or self._within:
            wanted = start if wanted is None else wanted
            target = next((one for one in known if one.revision == wanted), shape)
            if self._within and is_apart(known, shape, target):
                return min(max(wanted, first), last)
            return wanted
        newest = max((one.revision for one in known), default=start)
        limit = self._limits.get(name, 0 if self._down else newest)
        goal = start
        if not self._down:
            for revision in range(start, min(last, limit)):
                if self._steps.find_step(name, revision, to_revision=revision + 1) is not None:
                    goal = revision + 1
        for revision in range(start, max(limit, first), -1):
            if self._steps.find_step(name, revision, to_revision=revision - 1) is not None:
                goal = revision - 1
        return goal

    def _walk(self, shape: Shape, goal: int) -> list[_Hop]:
        hops: list[_Hop] = []
        revision = shape.revision
        towards = 1 if goal > revision else -1
        known = [one.revision for one in self._types.list_revisions(shape.type_name)]
        while revision != goal:
            step = self._steps.find_step(shape.type_name, revision, to_revision=revision + towards)
            taken = hops.pop().steps if hops and step is not None and hops[-1].steps else ()
            if step is not None:
                revision += towards
                hops.append(_Hop(revision, (*taken, (step, revision))))
                continue
            ahead = [one for one in known if 0 < (one - revision) * towards <= abs(goal - revision)]
            if not ahead or revision not in known:
                raise UpcastError(
                    f"type {shape.type_name!r} has no step from revision {revision} to "
                    f"{revision + towards}, and the log has no revision {goal} of it",
                    hint="ask for a revision that oplog types lists, or declare the step with "
                    "catalog.upcast(...) or catalog.downcast(...)",
                )
            if hops and not hops[-1].steps:
                hops.pop()
            revision = min(ahead, key=lambda one: abs(one - revision))
            hops.append(_Hop(revision))
        return hops

    def _map(self, effect: Effect, target: Shape) -> Effect:
        """The effect in another revision, by field number."""
        key = (target.type_name, effect.shape.revision, target.revision)
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = self._find_map(effect.shape, target)
        values: dict[str, Wire | None] = {
            one.target: one.labels.get(wire, wire) if isinstance(wire, str) else wire
            for one in found.routes
            if one.source in effect.values
            for wire in (effect.values[one.source],)
        }
        if effect.complete:
            values = {**found.fills, **values}
        return _put(effect, target, values)

    def _find_map(self, old: Shape, target: Shape) -> _Map:
        shapes = self._types.list_revisions(old.type_name)
        if is_apart(shapes, old, target):
            raise UpcastError(
                f"rows of type {old.type_name!r} revision {old.revision} are under another key "
                f"than those of revision {target.revision}, which were all logged anew",
                hint="read them in the revision that they have, or begin after the change",
            )
        added = [one for one in list_line(shapes, target) if one.revision > old.revision]
        return _Map(
            map_columns(shapes, old, target),
            {
                name: None if text is None else target.codecs[name].from_text(text)
                for name, text in find_fills(added, target).items()
            },
        )


def _to_python(shape: Shape, values: Mapping[str, Wire | None]) -> dict[str, Any]:
    codecs = shape.codecs
    return {
        name: None if wire is None else codecs[name].to_python(wire)
        for name, wire in values.items()
    }


def _take_steps(effect: Effect, hop: _Hop, target: Shape) -> Effect:
    """The effect after declared steps, which get the values that were written."""
    shape = effect.shape
    if not effect.values:
        return _put(effect, target, {})
    down = hop.revision < shape.revision
    # Steps get Python values: they are application code and know nothing of wire values.
    row = _to_python(shape, effect.values)
    for step, revision in hop.steps:
        row = _apply(step, row, shape, revision, down=down)
    return _put(effect, target, {name: _to_wire(target, name, v) for name, v in row.items()})


def _put(effect: Effect, target: Shape, values: Mapping[str, Wire | None]) -> Effect:
    complete = effect.complete and set(values) == set(target.names)
    if complete:
        values = {name: values[name] for name in target.names}
    places = {column.number: place for place, column in enumerate(effect.shape.key_columns)}
    found = [places.get(column.number) for column in target.key_columns]
    key = effect.key
    if None not in found:
        key = tuple(effect.key[place] for place in found if place is not None)
    return replace(effect, shape=target, key=key, values=values, complete=complete)


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
