"""`Finding`, one result of `oplog doctor`.

Only a problem makes `oplog doctor` fail; a notice does not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["problem", "notice"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `oplog doctor` found.

    `severity`: with a problem, a change may go unlogged or a guarantee may not hold; a notice
    is worth knowing and needs no action. `what` is a short code that does not change between
    versions. `where` is the table, trigger, function, setting or role. `message` describes the
    finding, `hint` says what to do about it.
    """

    severity: Severity
    what: str
    where: str
    message: str
    hint: str

    def to_json(self) -> dict[str, Any]:
        """The finding as one JSON object."""
        return asdict(self)


def make_problem(what: str, where: str, *, message: str, hint: str) -> Finding:
    """Return a problem: a change may go unlogged, or a guarantee may not hold."""
    return Finding(severity="problem", what=what, where=where, message=message, hint=hint)


def make_notice(what: str, where: str, *, message: str, hint: str) -> Finding:
    """Return a notice: something that was declared, or that is common and worth knowing."""
    return Finding(severity="notice", what=what, where=where, message=message, hint=hint)
