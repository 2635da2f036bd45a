"""What the log may cost: a limit that must hold, and an aim; printed beside every figure.

Nothing here is asserted by a test. A figure depends on the machine, and a missed target is
printed as missed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A limit; `at_most`: figures are to stay below it, as bytes do, and not above."""

    must: float
    aim: float | None = None
    at_most: bool = False

    def judge(self, figure: float) -> str:
        """Whether the limit, or even the aim, is reached."""
        if self.aim is not None and self._reaches(figure, self.aim):
            return "aim"
        return "ok" if self._reaches(figure, self.must) else "missed"

    def describe(self) -> str:
        """The target as a table shows it."""
        sign = "≤" if self.at_most else "≥"
        aim = "" if self.aim is None else f" ({self.aim:g})"
        return f"{sign} {self.must:g}{aim}"

    def to_json(self, figure: float) -> dict[str, float | str | None]:
        """The target as the results have it, with what a figure makes of it."""
        return {"must": self.must, "aim": self.aim, "verdict": self.judge(figure)}

    def _reaches(self, figure: float, limit: float) -> bool:
        return figure <= limit if self.at_most else figure >= limit


LOG = "log"
ONE_AGGREGATE = "log, one aggregate"

RATIOS = {
    (LOG, "one"): Target(0.72, 0.80),
    (LOG, "mixed"): Target(0.78, 0.85),
    (LOG, "many"): Target(0.82, 0.88),
    (ONE_AGGREGATE, "one"): Target(0.75),
    (ONE_AGGREGATE, "mixed"): Target(0.82),
    (ONE_AGGREGATE, "many"): Target(0.88),
    (LOG, "raw"): Target(0.5),
    (ONE_AGGREGATE, "raw"): Target(0.5),
    (LOG, "update_all"): Target(0.15),
    (ONE_AGGREGATE, "update_all"): Target(0.30),
    # At most five times as long.
    (LOG, "insert_select"): Target(0.2),
}
"""(contender, workload) -> ratio to plain SQLAlchemy, one client."""

BYTES = {
    (LOG, "mixed"): Target(300, 180, at_most=True),
    (ONE_AGGREGATE, "mixed"): Target(90, at_most=True),
}
"""(contender, workload) -> bytes of the log for each row that changed."""

MEMORY = Target(250, at_most=True)
"""Peak MB of a client that changes many rows in one transaction."""

GUARDS = Target(0.93)
"""Logged transactions with guards, as a ratio to the same without guards."""

GROWTH = Target(1.5, 1.1, at_most=True)
"""What something takes with a hundred times as many records in the log, as a ratio."""

CONTEXT = Target(1.01, at_most=True)
"""One insert inside a context, as a ratio to one that is annotated with the same."""

MORE_CLIENTS = 0.05
"""How much lower a ratio may be with several clients than with one."""


def expect_of_more(ratio_of_one: float) -> Target:
    """The target with several clients, from the ratio that one client had."""
    return Target(round(ratio_of_one - MORE_CLIENTS, 3))
