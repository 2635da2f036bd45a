"""Tries the declared steps on every effect of a log, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from oplog.errors import OplogError
from oplog.payload.codec import Effect
from oplog.payload.upcast import StepLookup, Upcaster
from oplog.reading.reader import RecordReader

MOST_FAILURES = 1000
"""Failures that are described; all are counted."""


@dataclass(frozen=True, slots=True)
class StepFailure:
    """An effect that a step cannot convert: where it is, its revision and the wanted one."""

    position: int
    type_name: str
    revision: int
    towards: int
    error: str


@dataclass(slots=True)
class StepReport:
    """What became of a dry run: `effects` in the log, those that steps `converted`, failures.

    `failures` holds the first ones, `count` is the number of all.
    """

    effects: int = 0
    converted: int = 0
    count: int = 0
    failures: list[StepFailure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return not self.count

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"ok": self.ok, **asdict(self)}


def check_steps(reader: RecordReader, steps: StepLookup) -> StepReport:
    """Convert every effect of the log up and down, as far as declared steps lead.

    `reader` takes no steps itself. Goes on after a failure. Raises what reading the log raises.
    """
    report = StepReport()
    ways = [Upcaster(steps, reader.types), Upcaster(steps, reader.types, down=True)]
    for record in reader.iterate_records(reader.source.read_snapshot()):
        for effect in record.effects:
            report.effects += 1
            failures: list[StepFailure] = []
            tried = False
            for way in ways:
                path = way.find_path(effect.shape)
                tried = tried or bool(path)
                failures += _try(way, effect, record.stored.position)
            report.converted += tried and not failures
            report.count += len(failures)
            report.failures += failures[: MOST_FAILURES - len(report.failures)]
    return report


def _try(way: Upcaster, effect: Effect, position: int) -> Iterator[StepFailure]:
    shape = effect.shape
    path = way.find_path(shape)
    if not path:
        return
    try:
        way.convert(effect)
    except OplogError as error:
        yield StepFailure(
            position,
            shape.type_name,
            shape.revision,
            towards=path[-1].revision,
            error=str(error),
        )
