"""What is in the way of an undo: who changed what since, and what the tables do not allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from oplog.json_value import format_time, to_json_value

Choice: TypeAlias = Literal["skip", "overwrite", "fail"]
CHOICES: Final = ("skip", "overwrite", "fail")
ConflictKind: TypeAlias = Literal[
    "changed", "unknown", "bypassed", "dependent", "missing", "taken", "excluded"
]

_SAID: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unknown": "had a value that the log does not know",
        "dependent": "would go, and is referred to by {rows}",
        "missing": "would refer to {rows}, which is not there",
        "taken": "would have a unique value that {rows} has, or would have",
        "excluded": "would be made again, and these columns are not in the log: {rows}",
    }
)
_WIDTH = 60
"""Characters of a value that people are shown."""


@dataclass(frozen=True, slots=True)
class LaterChange:
    """What a record did after the one that is to be undone: who, when, from what to what.

    `before` and `after` are values of the column, with `absent` in place of a row that is not
    there; of a conflict on a whole row they say whether it was there.
    """

    position: int
    recorded_at: datetime
    metadata: Mapping[str, list[str]]
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """The change as one JSON object."""
        return {
            "position": self.position,
            "recorded_at": format_time(self.recorded_at),
            "metadata": {key: list(values) for key, values in self.metadata.items()},
            "before": to_json_value(self.before),
            "after": to_json_value(self.after),
        }


@dataclass(frozen=True, slots=True)
class UndoConflict:
    """A column of a row, or the whole row (`column` is None), that cannot just be set back.

    `kind` says why: `changed` since by `changes`; `unknown`, because the log does not know the
    value of before; `bypassed`, because the table has other values than the log; `dependent`, for
    a row that has to go and that `rows` refer to; `missing`, for a row that would refer to `rows`,
    which are not there; `taken`, for a unique value that `rows` have by now, or would have too;
    `excluded`, for a row that was deleted and whose columns `rows` are not logged. `now` is the
    value that is there, `wanted` that of before. `choice` says what becomes of it. Only what was
    `changed` can be overwritten.
    """

    kind: ConflictKind
    type_name: str
    table: str
    key: Mapping[str, Any]
    column: str | None
    now: Any
    wanted: Any
    choice: Choice
    changes: tuple[LaterChange, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to choose it by: `public.account (id=1): owner`."""
        row = f"{self.table} ({show_key(self.key)})"
        if self.column is not None:
            row = f"{row}: {self.column}"
        # A row that others have changed may have another conflict as well.
        return row if self.kind == "changed" else f"{row} [{self.kind}]"

    @property
    def may_overwrite(self) -> bool:
        """Whether the value of before can be set in spite of it."""
        return self.kind == "changed"

    def choose(self, choice: Choice) -> UndoConflict:
        """The same with another choice."""
        return replace(self, choice=choice)

    def describe(self) -> str:
        """The conflict in one line."""
        rows = ", ".join(self.rows)
        if self.kind == "changed":
            said = self._say_changed()
        elif self.kind == "bypassed":
            said = (
                f"is {show_value(self.now)} in the table and {show_value(self.wanted)} in the "
                "log: it was changed behind the log's back"
            )
        else:
            said = _SAID[self.kind].format(rows=rows)
        return f"{self.name} {said}"

    def _say_changed(self) -> str:
        last = self.changes[-1]
        by = _show_who(last.metadata)
        when = format_time(last.recorded_at)
        what = f"from {show_value(last.before)} to {show_value(last.after)}"
        if self.column is None and last.before == last.after:
            what = "in other columns"
        more = f" and {len(self.changes) - 1} times before" if len(self.changes) > 1 else ""
        return f"was changed {what} at position {last.position} ({when}){by}{more}"

    def to_json(self) -> dict[str, Any]:
        """The conflict as one JSON object."""
        return {
            "kind": self.kind,
            "name": self.name,
            "type": self.type_name,
            "table": self.table,
            "key": to_json_value(self.key),
            "column": self.column,
            "now": to_json_value(self.now),
            "wanted": to_json_value(self.wanted),
            "choice": self.choice,
            "may_overwrite": self.may_overwrite,
            "changes": [one.to_json() for one in self.changes],
            "rows": list(self.rows),
        }


def show_key(key: Mapping[str, Any]) -> str:
    """A key for people: `id=42`."""
    return ", ".join(f"{name}={to_json_value(value)}" for name, value in key.items())


def show_value(value: Any) -> str:
    """A value for people, cut where it is long."""
    if value is None:
        return "NULL"
    text = repr(to_json_value(value)) if isinstance(value, str) else str(to_json_value(value))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _show_who(metadata: Mapping[str, list[str]]) -> str:
    said = [f"{key}={','.join(values)}" for key, values in metadata.items()]
    return f" by {', '.join(said)}"[:120] if said else ""
