"""Survivors that are known, each with the reason why no test should kill it.

Kept in `explained.toml`, by module, function and change. An explanation that fits no survivor
any more is a mistake too: the mutant is killed by now, or the code has changed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("explained.toml")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a mutant may live."""

    module: str
    where: str
    change: str
    why: str

    def fits(self, module: str, *, where: str, change: str) -> bool:
        """Whether it is about this mutant."""
        return (self.module, self.where, self.change) == (module, where, change)


def read_explanations(text: str) -> list[Explanation]:
    """What a file of explanations says; it gives a reason for each."""
    found = []
    for table in tomllib.loads(text).get("survivor", []):
        explanation = Explanation(**table)
        if not explanation.why.strip():
            raise ValueError(f"no reason is given for {explanation}")
        found.append(explanation)
    return found
