"""What a build changes for a log: one change of a type, and the report on all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oplog.doctor.table_difference import ChangeKind


@dataclass(frozen=True, slots=True)
class TypeChange:
    """What a build changes for a type or one of its columns; `column` may be empty.

    With `breaks`, it is not to be deployed like this; the hint says what ends that.
    """

    type_name: str
    kind: ChangeKind
    column: str
    message: str
    breaks: bool = False
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The change as one JSON object."""
        return {
            "type": self.type_name,
            "kind": self.kind.value,
            "column": self.column,
            "message": self.message,
            "breaks": self.breaks,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class TypesCheckReport:
    """What a build's models change for a log: `changes`, those that break something first."""

    changes: tuple[TypeChange, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing breaks."""
        return not any(change.breaks for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"ok": self.ok, "changes": [change.to_json() for change in self.changes]}
