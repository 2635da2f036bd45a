"""`UndoPlan`: what an undo would do, and what is in its way, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oplog.errors import ConfigurationError
from oplog.json_value import format_time, to_json_value
from oplog.replay.effect_route import Key
from oplog.replay.table_plan import TablePlan
from oplog.undo.row_timeline import is_same
from oplog.undo.selected_records import Selection
from oplog.undo.touched_history import RecordNote
from oplog.undo.undo_conflict import CHOICES, Choice, UndoConflict, show_key, show_value

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class PlannedWrite:
    """What becomes of one row: `before` and `after` by column, None for no row."""

    kind: str
    """`insert`, `update` or `delete`."""
    type_name: str
    table: str
    key: Mapping[str, Any]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @property
    def changed(self) -> Mapping[str, tuple[Any, Any]]:
        """The columns of an update that change, from what to what."""
        before, after = self.before or {}, self.after or {}
        return {
            name: (before.get(name), value)
            for name, value in after.items()
            if not is_same(before.get(name), value)
        }

    def describe(self) -> str:
        """The write in one line."""
        row = f"{self.kind} {self.table} ({show_key(self.key)})"
        if self.kind == "update":
            told = [
                f"{name} {show_value(old)} -> {show_value(new)}"
                for name, (old, new) in self.changed.items()
            ]
            return f"{row}: {', '.join(told)}"
        if self.kind == "insert":
            told = [
                f"{name} {show_value(value)}"
                for name, value in (self.after or {}).items()
                if name not in self.key
            ]
            return f"{row}: {', '.join(told)}" if told else row
        return row

    def to_json(self) -> dict[str, Any]:
        """The write as one JSON object."""
        return {
            "kind": self.kind,
            "type": self.type_name,
            "table": self.table,
            "key": to_json_value(self.key),
            "before": to_json_value(self.before),
            "after": to_json_value(self.after),
        }


@dataclass(frozen=True)
class UndoPlan:
    """What undoing some records would do, as of the moment when it was planned.

    `records` are those that are undone, `writes` what becomes of rows, in an order that foreign
    keys allow, under the choices made so far; `conflicts` what is in the way. `already` is the
    number of rows of which nothing is left to undo. `left_out` are records that were chosen and
    have nothing to undo, with the reason. `warnings` say what people should know before they do
    it. Rows that have a conflict whose choice is `fail` are not among the writes, and
    `Oplog.undo` refuses the plan.
    """

    selection: Selection = field(repr=False)
    records: tuple[RecordNote, ...]
    writes: Sequence[PlannedWrite] = field(repr=False)
    conflicts: tuple[UndoConflict, ...]
    already: int
    left_out: tuple[tuple[int, str], ...]
    warnings: tuple[str, ...]
    fingerprint: bytes = field(repr=False)
    rows: tuple[tuple[TablePlan, tuple[Key, ...]], ...] = field(repr=False)
    on_conflict: Choice = "fail"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def undecided(self) -> tuple[UndoConflict, ...]:
        """The conflicts that stop the undo."""
        return tuple(one for one in self.conflicts if one.choice == "fail")

    def choose(self, choice: Choice, conflicts: Iterable[UndoConflict | str] = ()) -> UndoPlan:
        """The same plan with a choice for some conflicts, given as such or by name, or for all.

        `skip` leaves the column or the row as it is, `overwrite` gives it the value of before,
        `fail` refuses the undo. `writes` stay those of the plan as it was made: what the choices
        come to is worked out when it is done. Raises `ConfigurationError` for a name that is no
        conflict's, and for a conflict that cannot be overwritten.
        """
        check_choice(choice)
        names = {one if isinstance(one, str) else one.name for one in conflicts}
        known = {one.name for one in self.conflicts}
        if names - known:
            raise ConfigurationError(
                f"{min(names - known)!r} is no conflict of this plan",
                hint="give conflicts of plan.conflicts, or their names",
            )
        chosen = [one for one in self.conflicts if not names or one.name in names]
        stuck = [one for one in chosen if choice == "overwrite" and not one.may_overwrite]
        if stuck and names:
            raise ConfigurationError(
                f"this cannot be overwritten: {stuck[0].describe()}",
                hint="skip it, or take away what is in the way and plan again",
            )
        chosen = [one for one in chosen if one not in stuck]
        made = {one.name: choice for one in chosen}
        return replace(
            self,
            choices={**self.choices, **made},
            on_conflict=self.on_conflict if names else choice,
            conflicts=tuple(one.choose(choice) if one in chosen else one for one in self.conflicts),
        )

    def preview(self, *, limit: int | None = _SHOWN) -> str:
        """The plan as text for people; at most `limit` writes and conflicts, None for all."""
        return "\n".join(self._preview(limit))

    def _preview(self, limit: int | None) -> Iterator[str]:
        yield (
            f"undo of {_count(len(self.records), 'record')}: "
            f"{_count(len(self.writes), 'row')} to write, "
            f"{_count(len(self.conflicts), 'conflict')}"
            + (f", {_count(self.already, 'row')} already as before" if self.already else "")
        )
        for note in self.records[:limit]:
            said = ", ".join(f"{key}={','.join(v)}" for key, v in note.metadata.items())
            yield f"  record {note.position} of {format_time(note.recorded_at)} {said}".rstrip()
        yield from _cut(len(self.records), limit, "records")
        for write in self.writes[:limit]:
            yield f"  {write.describe()}"
        yield from _cut(len(self.writes), limit, "rows")
        for conflict in self.conflicts[:limit]:
            yield f"  conflict ({conflict.choice}): {conflict.describe()}"
        yield from _cut(len(self.conflicts), limit, "conflicts")
        for position, reason in self.left_out[:limit]:
            yield f"  left out: record {position}: {reason}"
        for warning in self.warnings:
            yield f"  note: {warning}"

    def to_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {
            "records": [
                {
                    "position": one.position,
                    "recorded_at": format_time(one.recorded_at),
                    "metadata": {key: list(values) for key, values in one.metadata.items()},
                }
                for one in self.records
            ],
            "writes": [one.to_json() for one in self.writes],
            "conflicts": [one.to_json() for one in self.conflicts],
            "already": self.already,
            "left_out": [{"position": at, "reason": why} for at, why in self.left_out],
            "warnings": list(self.warnings),
            "fingerprint": self.fingerprint.hex(),
        }


def check_choice(choice: str) -> None:
    """Raise `ConfigurationError` for what is no choice."""
    if choice not in CHOICES:
        raise ConfigurationError(
            f"{choice!r:.40} is no choice for a conflict", hint=f"choose among {', '.join(CHOICES)}"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cut(count: int, limit: int | None, what: str) -> Iterator[str]:
    if limit is not None and count > limit:
        yield f"  ... and {count - limit} more {what}"
