"""A change of a source by its text, and the mutant that it makes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.mutation import Mutant


@dataclass(frozen=True, slots=True)
class Change:
    """`old` becomes `new`, at its `place`-th occurrence (from 0)."""

    name: str
    old: str
    new: str
    place: int = 0
    also: tuple[str, str] | None = None
    """A second text, and what it becomes, where one alone changes nothing."""


def make_mutant(change: Change, source: str) -> Mutant:
    """The source with this change."""
    parts = source.split(change.old)
    if len(parts) <= change.place + 1:
        raise SystemExit(f"sql: {change.name}: {change.old!r} is not in the source any more")
    before = change.old.join(parts[: change.place + 1])
    after = change.old.join(parts[change.place + 1 :])
    line = before.count("\n") + 1
    text = before + change.new + after
    if change.also is not None:
        if text.count(change.also[0]) != 1:
            raise SystemExit(f"sql: {change.name}: {change.also[0]!r} is not there once")
        text = text.replace(*change.also)
    return Mutant(change.name, line, change.old, change.new, text)
