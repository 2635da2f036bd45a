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
    """Whether effects of a shape count.

    Those before `since` were replaced as a whole. One that counts raises `refusal`, if there
    is one.
    """

    since: int = 0
    refusal: SchemaDriftError | None = None


Judge: TypeAlias = Callable[[Shape], Validity]
VALID = Validity()


def accept(_: Shape) -> Validity:
    """Every effect counts."""
    return VALID


@dataclass(frozen=True, slots=True)
class FoldRules:
    """What a fold has to know besides effects.

    `lenient_until` is the position, for a type that was or is being adopted, at which its
    adoption ended: before it the log may speak of rows that it has not met.
    """

    lenient_until: Mapping[str, float] = field(default_factory=dict)
    judge: Judge = accept
