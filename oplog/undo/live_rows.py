"""The tables as they are: rows under lock, rows that refer to others, unique values that are taken.

Text settings must be pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sqlalchemy.engine import Connection

from oplog.postgres.live_table import read_tables_by_oid
from oplog.postgres.quoting import quote
from oplog.postgres.row_constraints import (
    ForeignKey,
    RowConstraints,
    UniqueIndex,
    compute_keys,
    find_present,
    read_keyed,
    spell_type,
)
from oplog.replay.effect_route import Key
from oplog.replay.table_plan import TablePlan
from oplog.undo.write_order import IndexKeys, RowWrite
from oplog.value import ValueCodec, Wire

PAGE_ROWS = 2000
"""Rows that one statement reads."""
Texts = tuple[str | None, ...]


def read_live_rows(
    connection: Connection, plan: TablePlan, keys: Iterable[Key], *, lock: bool
) -> dict[Key, dict[str, Wire | None]]:
    """The logged columns of the rows with these keys that are there, in wire values.

    With `lock` they stay as they are until the transaction ends. Keys are locked in one order, so
    that two undos wait for one another instead of running into a deadlock.
    """
    found: dict[Key, dict[str, Wire | None]] = {}
    ordered = sorted(keys, key=repr)
    for first in range(0, len(ordered), PAGE_ROWS):
        page = ordered[first : first + PAGE_ROWS]
        rows = read_keyed(
            connection,
            plan.live,
            columns=plan.names,
            keys=_print_keys(plan, page),
            lock=lock,
        )
        for number, texts in rows:
            found[page[number]] = _parse(plan.codecs, plan.names, texts)
    return found


def are_same_tables(connection: Connection, plans: Iterable[TablePlan]) -> bool:
    """Whether the tables have the names and columns that they had when the plans were made."""
    known = {plan.live.oid: plan.live for plan in plans}
    found = read_tables_by_oid(connection, known)
    return all(
        oid in found
        and (live.schema, live.name) == (found[oid].schema, found[oid].name)
        and [(c.name, spell_type(c)) for c in live.columns]
        == [(c.name, spell_type(c)) for c in found[oid].columns]
        for oid, live in known.items()
    )


def _print_keys(plan: TablePlan, keys: Sequence[Key]) -> tuple[list[str | None], ...]:
    codecs = [plan.codecs[name] for name in plan.key_names]
    return tuple(
        [None if wire is None else codec.to_text(wire) for wire in wires]
        for codec, wires in zip(codecs, zip(*keys, strict=True), strict=True)
    )


def _parse(
    codecs: Mapping[str, ValueCodec], names: Sequence[str], texts: Sequence[str | None]
) -> dict[str, Wire | None]:
    return {
        name: None if text is None else codecs[name].from_text(text)
        for name, text in zip(names, texts, strict=True)
    }


def find_index_keys(
    connection: Connection,
    plans: Mapping[int, TablePlan],
    unique: Iterable[UniqueIndex],
    *,
    writes: Sequence[RowWrite],
) -> IndexKeys:
    """By index over expressions or some rows, and by `id()` of a write, keys before and after."""
    found: IndexKeys = {}
    for index in unique:
        plan = plans[index.table]
        if index.plain or not set(index.columns) <= set(plan.names):
            continue
        own = [write for write in writes if write.table == index.table]
        states = [state for write in own for state in (write.before, write.after)]
        keys: list[tuple[str, ...] | None] = []
        for first in range(0, len(states), PAGE_ROWS):
            page = states[first : first + PAGE_ROWS]
            rows = [_print_all(state or {}, plan, index.columns) for state in page]
            columns = [plan.live_columns[name] for name in index.columns]
            made = compute_keys(connection, index, columns, rows=rows)
            keys += [
                key if state is not None else None for key, state in zip(made, page, strict=True)
            ]
        found[index.name] = {
            id(write): (keys[2 * n], keys[2 * n + 1]) for n, write in enumerate(own)
        }
    return found


def _print_all(
    row: Mapping[str, Wire | None], plan: TablePlan, columns: Sequence[str]
) -> list[str | None]:
    wires = [(plan.codecs[name], row.get(name)) for name in columns]
    return [None if wire is None else codec.to_text(wire) for codec, wire in wires]


class Obstacles:
    """Finds rows outside of an undo that its writes run into."""

    def __init__(
        self,
        connection: Connection,
        plans: Mapping[int, TablePlan],
        constraints: RowConstraints,
    ) -> None:
        self._connection = connection
        self._plans = plans
        self._constraints = constraints

    def find(self, writes: Collection[RowWrite]) -> dict[int, tuple[str, tuple[str, ...]]]:
        """By `id()` of a write, what kind of obstacle it meets, and the rows that are it."""
        found: dict[int, tuple[str, tuple[str, ...]]] = {}
        for key in self._constraints.foreign_keys:
            self._find_dependents(key, writes, found)
            self._find_missing(key, writes, found)
        for index in self._constraints.unique:
            if index.plain:
                self._find_taken(index, writes, found)
        return found

    def _find_dependents(
        self,
        key: ForeignKey,
        writes: Collection[RowWrite],
        found: dict[int, tuple[str, tuple[str, ...]]],
    ) -> None:
        parent, child = self._plans.get(key.parent), self._plans.get(key.child)
        if parent is None or not set(key.parent_columns) <= set(parent.names):
            return
        going = _group(
            writes, key.parent, lambda w: _print_moved(w, parent, key.parent_columns, going=True)
        )
        back = {
            _print(write.after, parent, key.parent_columns)
            for write in writes
            if write.table == key.parent
        }
        going = {values: write for values, write in going.items() if values not in back}
        moved = _list_keys(writes, key.child, child, names=(key.child_keys, key.child_columns))
        shown = key.child_keys or key.child_columns
        names = key.parent_columns, shown
        for values, row in self._look_up(
            key.child_table, key.child_columns, going, typed=parent, names=names
        ):
            if row in moved:
                continue
            write = going[values]
            self._add(found, write, "dependent", _name(key.child_table, shown, row))

    def _find_missing(
        self,
        key: ForeignKey,
        writes: Collection[RowWrite],
        found: dict[int, tuple[str, tuple[str, ...]]],
    ) -> None:
        child = self._plans.get(key.child)
        if child is None or not set(key.child_columns) <= set(child.names):
            return
        wanted: dict[tuple[str, ...], list[RowWrite]] = {}
        for write in writes:
            if write.table == key.child:
                values = _print_moved(write, child, key.child_columns, going=False)
                if values is not None:
                    wanted.setdefault(values, []).append(write)
        parent = self._plans.get(key.parent)
        there, gone = set(), set()
        for write in writes:
            if write.table == key.parent and parent is not None:
                there.add(_print(write.after, parent, key.parent_columns))
                gone.add(_print(write.before, parent, key.parent_columns))
        asked = {values: None for values in wanted if values not in there}
        present = {
            values
            for values, _ in self._look_up(
                key.parent_table,
                key.parent_columns,
                asked,
                typed=child,
                names=(key.child_columns, ()),
            )
        }
        for values in asked:
            if values not in present or values in gone:
                for write in wanted[values]:
                    row = _name(key.parent_table, key.parent_columns, values)
                    self._add(found, write, "missing", row)

    def _find_taken(
        self,
        index: UniqueIndex,
        writes: Collection[RowWrite],
        found: dict[int, tuple[str, tuple[str, ...]]],
    ) -> None:
        plan = self._plans.get(index.table)
        if plan is None or not set(index.columns) <= set(plan.names):
            return
        taking: dict[tuple[str, ...], RowWrite] = {}
        for write in writes:
            if write.table != index.table:
                continue
            moved = _print_moved(write, plan, index.columns, going=False)
            first = write if moved is None else taking.setdefault(moved, write)
            if first is not write:
                # Each had the value at another time, and others have changed one of them since.
                key = _print(first.after, plan, plan.key_names) or ()
                self._add(found, write, "taken", _name(plan.name, plan.key_names, key))
        ours = _list_keys(writes, index.table, plan, names=(plan.key_names, index.columns))
        for values, row in self._look_up(
            plan.live.qualified,
            index.columns,
            taking,
            typed=plan,
            names=(index.columns, plan.key_names),
        ):
            if row not in ours:
                named = _name(plan.name, plan.key_names, row)
                self._add(found, taking[values], "taken", named)

    def _look_up(
        self,
        table: str,
        columns: Sequence[str],
        values: Collection[tuple[str, ...]],
        *,
        typed: TablePlan,
        names: tuple[Sequence[str], Sequence[str]],
    ) -> list[tuple[tuple[str, ...], Texts]]:
        """Rows with these values in columns, whose types are those of `names[0]` of `typed`.

        They are shown by the columns `names[1]`.
        """
        types = [spell_type(typed.live_columns[name]) for name in names[0]]
        ordered = list(values)
        rows: list[tuple[tuple[str, ...], Texts]] = []
        for first in range(0, len(ordered), PAGE_ROWS):
            rows += find_present(
                self._connection,
                table,
                [quote(name) for name in columns],
                values=ordered[first : first + PAGE_ROWS],
                shown=[quote(name) for name in names[1]],
                types=types,
            )
        return rows

    @staticmethod
    def _add(
        found: dict[int, tuple[str, tuple[str, ...]]], write: RowWrite, kind: str, row: str
    ) -> None:
        known = found.get(id(write))
        if known is None:
            found[id(write)] = kind, (row,)
        elif known[0] == kind and len(known[1]) < MOST_NAMED:
            found[id(write)] = kind, (*known[1], row)


MOST_NAMED = 10
"""Rows that a conflict names."""


def _group(
    writes: Iterable[RowWrite],
    table: int,
    read: Callable[[RowWrite], tuple[str, ...] | None],
) -> dict[tuple[str, ...], RowWrite]:
    found = {}
    for write in writes:
        values = read(write) if write.table == table else None
        if values is not None:
            found[values] = write
    return found


def _print(
    row: Mapping[str, Wire | None] | None, plan: TablePlan, columns: Sequence[str]
) -> tuple[str, ...] | None:
    """The values as text; None if there is no row, or one of them is NULL."""
    if row is None:
        return None
    texts = []
    for name in columns:
        wire = row.get(name)
        if wire is None:
            return None
        texts.append(plan.codecs[name].to_text(wire))
    return tuple(texts)


def _print_moved(
    write: RowWrite, plan: TablePlan, columns: Sequence[str], *, going: bool
) -> tuple[str, ...] | None:
    """The values that the write takes away, or those that it brings; None for neither."""
    before, after = _print(write.before, plan, columns), _print(write.after, plan, columns)
    if before == after:
        return None
    return before if going else after


def _list_keys(
    writes: Iterable[RowWrite],
    table: int,
    plan: TablePlan | None,
    *,
    names: tuple[Sequence[str], Sequence[str]],
) -> set[Texts]:
    """Keys, as text, of the rows that a write moves away from their values in some columns.

    `names` are the columns of the key, and those.
    """
    key_names, columns = names
    if plan is None or not {*key_names, *columns} <= set(plan.names):
        return set()
    return {
        key
        for write in writes
        if write.table == table and write.before is not None
        for key in [_print(write.before, plan, key_names)]
        if key is not None
        and _print(write.before, plan, columns) != _print(write.after, plan, columns)
    }


def _name(table: str, columns: Sequence[str], values: Sequence[str | None]) -> str:
    row = ", ".join(
        f"{name}={'NULL' if text is None else text}"
        for name, text in zip(columns, values, strict=True)
    )
    return f"{table} ({row})"
