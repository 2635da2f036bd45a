"""Output of the demonstration: steps, remarks, proofs, and the table at the end.

A statement is printed as proved only by the call that got the outcome, and a false outcome ends
the demonstration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

BOLD, GREEN, DIM, PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


class ProofFailedError(Exception):
    """Something the demonstration set out to prove does not hold."""


@dataclass(slots=True)
class Narrator:
    """Prints the story, and remembers what was proved in which step.

    `colours`: whether escape codes may be written; only a terminal understands them.
    """

    out: TextIO
    colours: bool
    proved: list[tuple[int, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    steps: int = 0

    def title(self, text: str) -> None:
        """The first line."""
        self._write(f"{self._paint(BOLD, text)}\n")

    def step(self, text: str) -> None:
        """Begin the next numbered step."""
        self.steps += 1
        self._write(f"\n{self._paint(BOLD, f'{self.steps}. {text}')}\n")

    def say(self, text: str) -> None:
        """A remark or a figure."""
        self._write(f"   {text}\n")

    def show(self, lines: Sequence[str]) -> None:
        """Lines of data, set off from the story."""
        for line in lines:
            self._write(f"     {self._paint(DIM, line)}\n")

    def prove(self, statement: str, *, holds: bool, otherwise: str) -> None:
        """Print `statement` as proved; raise `ProofFailedError(otherwise)` when it is false."""
        if not holds:
            raise ProofFailedError(f"step {self.steps}: {otherwise} (expected: {statement})")
        self.proved.append((self.steps, statement))
        self._write(f"   {self._paint(GREEN, 'proved:')} {statement}\n")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Two columns, the second one set flush right."""
        left = max(len(name) for name, _ in rows)
        right = max(len(figure) for _, figure in rows)
        for name, figure in rows:
            self._write(f"   {name:<{left}}  {figure:>{right}}\n")

    @property
    def seconds(self) -> float:
        """Time since the story began."""
        return time.monotonic() - self.began

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self.colours else text

    def _write(self, text: str) -> None:
        self.out.write(text)
        # Flushed, so that output through a pipe appears line by line and not at the end.
        self.out.flush()
