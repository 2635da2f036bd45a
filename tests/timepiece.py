"""A clock that goes on only by what is slept: pauses cost a test nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from oplog.backoff import Backoff


@dataclass
class Timepiece:
    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def backoff(self) -> Backoff:
        return Backoff(
            clock=lambda: self.now, sleep=self.sleep, draw=lambda: 1.0, deadline_seconds=30.0
        )
