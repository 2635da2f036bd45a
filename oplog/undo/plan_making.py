"""Makes a plan: rows and histories from the log, the tables as they are, and choices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection

from oplog.postgres.row_constraints import RowConstraints, read_row_constraints
from oplog.reading.reader import RecordReader
from oplog.replay.effect_route import Key
from oplog.replay.table_plan import TablePlan
from oplog.undo.live_rows import PAGE_ROWS, Obstacles, find_index_keys, read_live_rows
from oplog.undo.row_timeline import (
    EXISTENCE,
    Clash,
    Timeline,
    Verdict,
    is_same,
    judge,
    list_values,
)
from oplog.undo.selected_records import Selection
from oplog.undo.told_rows import PlannedWrites, check_values, list_hidden, tell, tell_key
from oplog.undo.touched_history import RecordNote, TouchedRows, read_touched
from oplog.undo.undo_conflict import Choice, ConflictKind, LaterChange, UndoConflict
from oplog.undo.undo_plan import UndoPlan
from oplog.undo.write_order import OrderedWrites, RowWrite, order_writes
from oplog.value import Wire

_SPARE = ("smallint", "integer", "bigint", "numeric", "text", "character varying", "uuid")
"""Types of which a value can be found that no row has."""


@dataclass(frozen=True)
class Wishes:
    """What the caller says beside the selection: choices by conflict's name, values given."""

    on_conflict: Choice = "fail"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values of columns that are not logged, by `table.column`, for rows that are made again."""

    def find_choice(self, name: str, *, may_overwrite: bool) -> Choice:
        """What becomes of a conflict."""
        choice = self.choices.get(name, self.on_conflict)
        return "fail" if choice == "overwrite" and not may_overwrite else choice


@dataclass(frozen=True)
class MadePlan:
    """A plan with the writes that it comes to."""

    plan: UndoPlan
    ordered: OrderedWrites
    tables: Mapping[int, TablePlan]


def make_plan(
    connection: Connection,
    reader: RecordReader,
    selection: Selection,
    *,
    wishes: Wishes,
) -> MadePlan:
    """The plan for what is selected.

    Log and tables are read as of one moment: in one snapshot, or with the rows locked beforehand.
    """
    touched = read_touched(connection, reader, selection)
    return _Making(connection, touched, wishes).make(selection)


class _Making:
    """The rows of one plan, and what was found in their way."""

    def __init__(self, connection: Connection, touched: TouchedRows, wishes: Wishes) -> None:
        self._connection = connection
        self._touched = touched
        self._wishes = wishes
        self._conflicts: list[UndoConflict] = []
        self._already = 0
        self._digest = hashlib.sha256()
        """Over the rows, what happened to them, and the tables' columns."""
        self._rows: list[tuple[TablePlan, tuple[Key, ...]]] = []
        self._writes: list[RowWrite] = []

    def make(self, selection: Selection) -> MadePlan:
        check_values(self._wishes.values, self._touched.tables.values())
        for oid in sorted(self._touched.rows, key=lambda oid: self._touched.tables[oid].name):
            self._judge_table(self._touched.tables[oid], self._touched.rows[oid])
        oids = {write.table for write in self._writes}
        constraints = read_row_constraints(self._connection, oids)
        self._drop_impossible(constraints)
        index_keys = find_index_keys(
            self._connection, self._touched.tables, constraints.unique, writes=self._writes
        )
        ordered = order_writes(
            self._writes, constraints, may_spare=self._may_spare, index_keys=index_keys
        )
        places = {
            (step.table, step.key): number
            for number, step in enumerate(s for batch in ordered.batches for s in batch)
        }
        self._writes.sort(key=lambda write: places[write.table, write.key])
        plan = UndoPlan(
            selection=replace(selection, records=self._touched.chosen, metadata=()),
            records=tuple(self._list_records()),
            writes=PlannedWrites(self._writes, self._touched.tables),
            conflicts=tuple(self._conflicts),
            already=self._already,
            left_out=tuple(self._touched.left_out),
            warnings=tuple(self._list_warnings()),
            fingerprint=self._digest.digest(),
            rows=tuple(self._rows),
            on_conflict=self._wishes.on_conflict,
            choices=self._wishes.choices,
            values=self._wishes.values,
        )
        return MadePlan(plan, ordered, self._touched.tables)

    def _list_records(self) -> Iterator[RecordNote]:
        for position in sorted(self._touched.chosen):
            if position in self._touched.notes:
                yield self._touched.notes[position]

    def _judge_table(self, plan: TablePlan, rows: dict[Key, Timeline]) -> None:
        """Decide on the rows of a table, and let go of their histories page by page."""
        self._digest.update(repr((plan.live.oid, plan.names)).encode())
        opened: list[Key] = []
        ordered = sorted(rows, key=repr)
        for first in range(0, len(ordered), PAGE_ROWS):
            page = ordered[first : first + PAGE_ROWS]
            opened += self._judge_page(plan, {key: rows.pop(key) for key in page})
        self._rows.append((plan, tuple(opened)))

    def _judge_page(self, plan: TablePlan, rows: Mapping[Key, Timeline]) -> list[Key]:
        verdicts: dict[Key, Verdict] = {}
        for key, timeline in rows.items():
            self._digest.update(_state_row(key, timeline))
            verdict = judge(timeline)
            if verdict is None:
                self._already += 1
            else:
                verdicts[key] = verdict
        live = read_live_rows(self._connection, plan, verdicts, lock=False)
        for key, verdict in verdicts.items():
            if not self._add_bypassed(plan, key, rows[key], live.get(key)):
                self._decide(plan, key, rows[key], verdict)
        return list(verdicts)

    def _add_bypassed(
        self,
        plan: TablePlan,
        key: Key,
        timeline: Timeline,
        live: Mapping[str, Wire | None] | None,
    ) -> bool:
        """Whether the table has another row than the log; of a row of before it not all is told."""
        logged = timeline.state
        if logged is None or live is None:
            differs = (logged is None) != (live is None)
            if differs:
                there = ("there", "not there") if live is not None else ("not there", "there")
                self._add(plan, key, EXISTENCE, "bypassed", now=there[0], wanted=there[1])
            return differs
        for name, value in live.items():
            if name in logged and not is_same(logged[name], value):
                self._add(
                    plan,
                    key,
                    name,
                    "bypassed",
                    now=tell(plan, name, value),
                    wanted=tell(plan, name, logged[name]),
                )
                return True
        if len(live) > len(logged):
            # What the log does not know of it stays as it is.
            timeline.state = {**live, **logged}
        return False

    def _decide(self, plan: TablePlan, key: Key, timeline: Timeline, verdict: Verdict) -> None:
        state = timeline.state
        target = self._choose_target(plan, key, timeline, verdict)
        if not self._note_unknown(plan, key, verdict, (state, target)):
            return
        if target is None:
            if state is not None:
                self._writes.append(RowWrite(plan.live.oid, key, state, None))
            return
        target = {name: target[name] for name in plan.names if name in target}
        if state is None or not all(is_same(state[n], v) for n, v in target.items()):
            self._writes.append(RowWrite(plan.live.oid, key, state, target))

    def _choose_target(
        self, plan: TablePlan, key: Key, timeline: Timeline, verdict: Verdict
    ) -> Mapping[str, Any] | None:
        """What the row becomes under the choices for its conflicts, which are noted."""
        target: Mapping[str, Any] | None = verdict.wanted
        if timeline.state is not None and target is not None:
            target = {**timeline.state, **target}
        for clash in verdict.clashes:
            if self._add_changed(plan, key, timeline, clash) != "overwrite":
                continue
            if clash.column == EXISTENCE:
                target = verdict.overwritten
            elif target is not None:
                target = {**target, clash.column: clash.wanted}
        return target

    def _note_unknown(
        self,
        plan: TablePlan,
        key: Key,
        verdict: Verdict,
        states: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
    ) -> bool:
        """Note what the log does not know of before; whether the row can be written all the same.

        A row that is there keeps these columns; one that is not cannot be made without them.
        """
        state, target = states
        unknown = list(verdict.unknown)
        made = state is None and target is not None
        if made and target is not None:
            unknown += [name for name in plan.names if name not in target]
        for name in dict.fromkeys(unknown):
            self._add(plan, key, name, "unknown", now=None, wanted=None)
        return not (made and unknown)

    def _add_changed(self, plan: TablePlan, key: Key, timeline: Timeline, clash: Clash) -> Choice:
        changes = []
        for position, before, after in _list_changes(timeline, clash):
            note = self._touched.notes[position]
            changes.append(
                LaterChange(
                    position,
                    note.recorded_at,
                    note.metadata,
                    before=tell(plan, clash.column, before),
                    after=tell(plan, clash.column, after),
                )
            )
        return self._add(
            plan,
            key,
            clash.column,
            "changed",
            now=tell(plan, clash.column, clash.now),
            wanted=tell(plan, clash.column, clash.wanted),
            changes=tuple(changes),
        )

    def _add(
        self,
        plan: TablePlan,
        key: Key,
        column: str,
        kind: ConflictKind,
        *,
        now: Any,
        wanted: Any,
        changes: tuple[LaterChange, ...] = (),
        rows: tuple[str, ...] = (),
    ) -> Choice:
        conflict = UndoConflict(
            kind=kind,
            type_name=next(iter(plan.targets)),
            table=plan.name,
            key=tell_key(plan, key),
            column=column or None,
            now=now,
            wanted=wanted,
            choice="fail",
            changes=changes,
            rows=rows,
        )
        choice = self._wishes.find_choice(conflict.name, may_overwrite=conflict.may_overwrite)
        self._conflicts.append(conflict.choose(choice))
        return choice

    def _drop_impossible(self, constraints: RowConstraints) -> None:
        """Leave out writes that rows outside of the undo stand in the way of, until none does."""
        self._drop_excluded()
        obstacles = Obstacles(self._connection, self._touched.tables, constraints)
        while found := obstacles.find(self._writes):
            for write in self._writes:
                if id(write) in found:
                    kind, rows = found[id(write)]
                    self._add_obstacle(write, kind, rows)
            self._writes = [write for write in self._writes if id(write) not in found]

    def _drop_excluded(self) -> None:
        kept = []
        for write in self._writes:
            plan = self._touched.tables[write.table]
            lacking = [
                name
                for name in list_hidden(plan)
                if f"{plan.live.name}.{name}" not in self._wishes.values
            ]
            if write.kind == "insert" and lacking:
                self._add_obstacle(write, "excluded", tuple(lacking))
            else:
                kept.append(write)
        self._writes = kept

    def _add_obstacle(self, write: RowWrite, kind: Any, rows: tuple[str, ...]) -> None:
        plan = self._touched.tables[write.table]
        told = {"insert": ("absent", "present"), "delete": ("present", "absent")}
        now, wanted = told.get(write.kind, ("present", "present"))
        self._add(plan, write.key, EXISTENCE, kind, now=now, wanted=wanted, rows=rows)

    def _list_warnings(self) -> Iterator[str]:
        hidden = {
            f"{plan.live.name}.{name}"
            for write in self._writes
            if write.kind == "delete"
            for plan in [self._touched.tables[write.table]]
            for name in list_hidden(plan)
        }
        if hidden:
            yield (
                f"rows go whose columns {', '.join(sorted(hidden))} are not logged: undoing this "
                "undo will need their values"
            )
        if not self._writes and not self._conflicts:
            yield "nothing is left to undo"

    def _may_spare(self, table: int, name: str) -> bool:
        plan = self._touched.tables[table]
        return name in plan.names and plan.live_columns[name].pg_type.split("(")[0] in _SPARE


def _list_changes(timeline: Timeline, clash: Clash) -> Iterator[tuple[int, Any, Any]]:
    if clash.column != EXISTENCE:
        yield from list_values(timeline, clash.column, clash.positions)
        return
    for change in timeline.changes:
        if change.position in clash.positions:
            before, after = change.columns.get(EXISTENCE, (True, True))
            yield change.position, before, after


def _state_row(key: Key, timeline: Timeline) -> bytes:
    """A row and what happened to it, for the plan's digest."""
    changes = [(change.position, change.chosen) for change in timeline.changes]
    state = None if timeline.state is None else sorted(timeline.state.items())
    return repr((key, state, changes)).encode()
