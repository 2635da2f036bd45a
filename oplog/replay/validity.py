"""What a fold has to know of the effects it meets: which of them count.

An effect may have been right in its time and be wrong now. `rules` reads from the log which ones
are passed over, and which are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from oplog.errors import SchemaDriftError
from oplog.payload.shape import Shape


@dataclass(frozen=True, slots=True)
class Validity:
    """Whether effects of a shape are applied.

    Those before position `since` are superseded and skipped. If there is a `refusal`, any
    other raises it.
    """

    since: float = 0
    refusal: SchemaDriftError | None = None


Judge: TypeAlias = Callable[[Shape], Validity]
VALID = Validity()


def accept(_: Shape) -> Validity:
    """Apply every effect."""
    return VALID


@dataclass(frozen=True, slots=True)
class FoldRules:
    """Which effects a fold skips, refuses or need not match with a row.

    `lenient_until` is the position, for a type that was or is being adopted, at which its
    adoption ended: before it, effects may concern rows that the log never created.
    """

    lenient_until: Mapping[str, float] = field(default_factory=dict)
    judge: Judge = accept
