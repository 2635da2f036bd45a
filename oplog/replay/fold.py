"""Effects in causal order, folded to one net effect for each row.

Pure: no SQL, no connection. A fold holds what happened since the last batch was loaded, so
memory is bounded by the batch and not by the log. The hard thing is what the fold cannot
know: whether a row it never saw is in the table. It writes that down as a claim (`existed`)
and the loader holds the table to it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from oplog.codec import Effect
from oplog.entry import OpType
from oplog.errors import ReplayError, SchemaDriftError
from oplog.shape import Shape
from oplog.value import Kind, ValueCodec, Wire

Key: TypeAlias = tuple[Wire | None, ...]
Values: TypeAlias = dict[str, Wire | None]
Step: TypeAlias = Callable[[Wire], Wire]


class NetKind(enum.Enum):
    """What is left of everything that happened to a row."""

    ROW = "row"
    """The whole row is known."""
    PATCH = "patch"
    """Some columns of a row that is in the table already."""
    GONE = "gone"
    """The row is no longer there."""


@dataclass(slots=True)
class NetRow:
    """The net effect on one key since the last batch.

    `existed`: the row was in the table before the batch, if the log is right. `columns` are
    the keys of `values` in their order; rows of one origin share the tuple. `position` is
    the last entry that touched the row.
    """

    kind: NetKind
    values: Mapping[str, Wire | None]
    columns: tuple[str, ...]
    position: int
    existed: bool = False


class TableForm(Protocol):
    """What a fold has to know of a table: its logged columns now."""

    @property
    def name(self) -> str:
        """The name an error shows."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The logged columns."""
        ...

    @property
    def key_names(self) -> tuple[str, ...]:
        """The primary key."""
        ...

    @property
    def codecs(self) -> Mapping[str, ValueCodec]:
        """The logged columns' types now."""
        ...


@dataclass(slots=True, eq=False)
class TableFold:
    """Net rows of one table, by key."""

    form: TableForm
    rows: dict[Key, NetRow] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Route:
    """How effects of one shape reach their table: nothing to do for the newest revision."""

    shape: Shape
    """Held on to: routes are found by its id."""
    table: TableFold
    columns: tuple[str, ...]
    steps: tuple[tuple[str, Step | None], ...] | None
    key_steps: tuple[tuple[int, Step | None], ...] | None

    def convert(self, values: Mapping[str, Wire | None]) -> Values:
        """Values of an old revision, as columns that the table has now."""
        return {
            name: value if step is None or value is None else step(value)
            for name, step in self.steps or ()
            if name in values
            for value in (values[name],)
        }

    def convert_key(self, key: Key) -> Key:
        """A key of an old revision in the table's order and types."""
        return tuple(
            value if step is None or value is None else step(value)
            for place, step in self.key_steps or ()
            for value in (key[place],)
        )


class Fold:
    """All tables' net rows since the last batch."""

    def __init__(self, tables: Mapping[str, TableFold]) -> None:
        """`tables` by type name; several types may share a table after a renaming."""
        self._by_type = tables
        self.tables: Sequence[TableFold] = list({id(t): t for t in tables.values()}.values())
        self._routes: dict[int, _Route] = {}

    def count(self) -> int:
        """Net rows held now."""
        return sum(len(table.rows) for table in self.tables)

    def clear(self) -> None:
        """Begin the next batch."""
        for table in self.tables:
            table.rows.clear()

    def add_transaction(self, entries: Sequence[tuple[int, Sequence[Effect]]]) -> None:
        """One transaction's effects, given by entry as (position, effects).

        An aggregate's entry may delete the row that another's creates: ordinals count over
        the whole transaction and decide, not the order of its entries.
        """
        if len(entries) == 1:
            position, effects = entries[0]
            self.add(sorted(effects, key=_ordinal), position=position)
            return
        merged = [(effect, position) for position, effects in entries for effect in effects]
        merged.sort(key=lambda pair: pair[0].ordinal)
        for effect, position in merged:
            self.add((effect,), position=position)

    def add(self, effects: Iterable[Effect], *, position: int) -> None:
        """Effects in the order they happened; `ReplayError` for one that cannot have."""
        last: Shape | None = None
        route: _Route | None = None
        for effect in effects:
            shape = effect.shape
            if route is None or shape is not last:
                route, last = self._find_route(shape), shape
            key, values, columns = effect.key, effect.values, route.columns
            if route.key_steps is not None or route.steps is not None:
                key, values = _convert(route, effect, position)
            kind = effect.kind
            if kind is OpType.CREATE:
                if not effect.complete:
                    columns = tuple(values)
                rows = route.table.rows
                if key not in rows:
                    rows[key] = NetRow(NetKind.ROW, values, columns, position)
                    continue
                _recreate(
                    route.table, key, NetRow(NetKind.ROW, values, columns, position, existed=True)
                )
            elif kind is OpType.UPDATE:
                _update(route.table, key, NetRow(NetKind.PATCH, values, (), position, existed=True))
            else:
                _delete(route.table, key, position)

    def _find_route(self, shape: Shape) -> _Route:
        found = self._routes.get(id(shape))
        if found is None:
            found = self._routes[id(shape)] = _make_route(shape, self._by_type[shape.type_name])
        return found


def _ordinal(effect: Effect) -> int:
    return effect.ordinal


def _recreate(table: TableFold, key: Key, row: NetRow) -> None:
    before = table.rows[key]
    if before.kind is not NetKind.GONE:
        raise _misfit(table, key, row.position, "creates a row that is already there")
    table.rows[key] = row


def _update(table: TableFold, key: Key, patch: NetRow) -> None:
    for name, part in zip(table.form.key_names, key, strict=True):
        if patch.values.get(name, part) != part:
            raise _misfit(table, key, patch.position, f"changes key column {name} in an update")
    before = table.rows.get(key)
    if before is None:
        # Its own dict: an effect's values are not ours to change.
        patch.values = dict(patch.values)
        patch.columns = tuple(patch.values)
        table.rows[key] = patch
        return
    if before.kind is NetKind.GONE:
        raise _misfit(table, key, patch.position, "updates a row that is not there")
    before.values = {**before.values, **patch.values}
    before.position = patch.position
    if len(before.values) != len(before.columns):
        before.columns = tuple(before.values)


def _delete(table: TableFold, key: Key, position: int) -> None:
    before = table.rows.get(key)
    if before is not None:
        if before.kind is NetKind.GONE:
            raise _misfit(table, key, position, "deletes a row that is not there")
        if not before.existed:
            # Came and went within the batch: the table never hears of it.
            del table.rows[key]
            return
    table.rows[key] = NetRow(NetKind.GONE, {}, (), position, existed=True)


def describe_key(form: TableForm, key: Key) -> str:
    """A key as a person writes it: `id=42`."""
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


def _misfit(table: TableFold, key: Key, position: int, what: str) -> ReplayError:
    return make_misfit(table.form, key, position=position, what=what)


# -- old revisions ------------------------------------------------------------------------


def _convert(route: _Route, effect: Effect, position: int) -> tuple[Key, Mapping[str, Wire | None]]:
    try:
        key = effect.key if route.key_steps is None else route.convert_key(effect.key)
        return key, effect.values if route.steps is None else route.convert(effect.values)
    except (ValueError, ArithmeticError) as cause:
        raise ReplayError(
            f"position {position}: a value of {route.shape.type_name!r} revision "
            f"{route.shape.revision} does not fit its column in {route.table.form.name} any "
            f"more: {cause}",
            hint="the column's type was changed; replay into the type it had, or log the "
            "converted rows anew",
        ) from cause


def _make_route(shape: Shape, table: TableFold) -> _Route:
    form = table.form
    if set(shape.key_names) != set(form.key_names):
        raise SchemaDriftError(
            f"{form.name} has primary key ({', '.join(form.key_names)}); type "
            f"{shape.type_name!r} revision {shape.revision} was logged with "
            f"({', '.join(shape.key_names)})",
            hint="the rows logged before the key changed cannot be told apart by the new one; "
            "log the table under a new type name and adopt its rows",
        )
    steps = tuple(
        (name, _find_step(shape.codecs[name], form.codecs[name]))
        for name in form.names
        if name in shape.codecs
    )
    same = tuple(name for name, _ in steps) == shape.names and not any(s for _, s in steps)
    key_steps = tuple(
        (shape.key_names.index(name), _find_key_step(shape.codecs[name], form.codecs[name]))
        for name in form.key_names
    )
    same_key = [place for place, _ in key_steps] == list(range(len(key_steps)))
    return _Route(
        shape,
        table,
        tuple(name for name, _ in steps),
        None if same else steps,
        None if same_key and not any(s for _, s in key_steps) else key_steps,
    )


def _find_step(old: ValueCodec, new: ValueCodec) -> Step | None:
    if old.kind is new.kind:
        return None
    read, write = new.from_text, old.to_text
    return lambda wire: read(write(wire))


def _find_key_step(old: ValueCodec, new: ValueCodec) -> Step | None:
    step = _find_step(old, new)
    if new.kind not in (Kind.FLOAT4, Kind.FLOAT8):
        return step
    # NaN equals NaN in Postgres; in a dict only the very same object does.
    convert: Step = step or (lambda wire: wire)
    return lambda wire: math.nan if math.isnan(float(convert(wire))) else convert(wire)
