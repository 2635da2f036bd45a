"""`Finding`, one result of `oplog doctor`.

Only a problem makes `oplog doctor` fail; a notice does not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["problem", "notice"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a diagnosis found.

    `severity`: a problem means that a change may go unlogged or that a promise does not hold;
    a notice is worth knowing and needs no action. `what` is a short code that stays the same
    between versions, `where` the table, trigger, function, setting or role. `message` says
    what is the case, `hint` what to do about it.
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
    """Something may go unlogged, or a promise does not hold."""
    return Finding("problem", what, where, message, hint)


def make_notice(what: str, where: str, *, message: str, hint: str) -> Finding:
    """Allowed and declared, or common, but worth knowing."""
    return Finding("notice", what, where, message, hint)
