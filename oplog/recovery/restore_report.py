"""What a restore did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from oplog.store.quarantined import QuarantinedRecord, list_quarantined_json


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was restored: `rows` in all logged tables, `entries`, and their highest `position`.

    A record has an entry for each of its aggregates. `digest` is that of a replay of the same
    log through the same position. Up to `sequence` of `generation` all records were restored.
    Later ones with positions low enough were restored too, and count as new to every consumer.
    `quarantined` records were restored as records, without what they did. The rows came from the
    snapshot at sequence `snapshot` and the records after it; 0 says from the records alone.
    `passed_over` names newer snapshots, and why they could not be used.
    """

    rows: int
    position: int
    digest: str
    entries: int
    sequence: int
    generation: int
    quarantined: tuple[QuarantinedRecord, ...] = ()
    snapshot: int = 0
    passed_over: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self) | {"quarantined": list_quarantined_json(self.quarantined)}
