"""What a diagnosis says: one finding for each thing that is wrong or worth knowing.

Plain frozen data. Must not know what is judged. The hard thing is to tell the two severities
apart: only a problem makes `oplog doctor` fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def make_problem(what: str, where: str, *, message: str, hint: str) -> Finding:
    """Something may go unlogged, or a promise does not hold."""
    return Finding("problem", what, where, message, hint)


def make_notice(what: str, where: str, *, message: str, hint: str) -> Finding:
    """Allowed and declared, or common, but worth knowing."""
    return Finding("notice", what, where, message, hint)
