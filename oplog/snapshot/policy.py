"""Decides when a snapshot is due, and when layers are merged into a new base. Pure.

Both the upload of a snapshot and what a restore has to read are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from oplog.archive.format.manifest import Dataset
from oplog.errors import ConfigurationError

MAX_LAYER_SHARE: Final = 0.30
"""Bytes of all layers of a table, as a share of its base: above, the base is written anew."""
MAX_KEPT_LAYERS: Final = 8
"""Layers over one base."""


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """A snapshot is due after so many `records`, or so many `hours` with at least one record.

    None leaves that trigger out; with both None a snapshot is never due. Raises
    `ConfigurationError` for numbers that are not positive.
    """

    records: int | None = 100_000
    hours: float | None = 24.0

    def __post_init__(self) -> None:
        for name, value in (("records", self.records), ("hours", self.hours)):
            if value is not None and not value > 0:
                raise ConfigurationError(
                    f"{name}={value} cannot say when a snapshot is due",
                    hint="give a positive number, or None to leave this trigger out",
                )

    def is_due(self, *, records: int, age: timedelta | None) -> bool:
        """Whether to take a snapshot, `records` after the last one, which has this `age`.

        `age` is None if there is none yet: then it is due as soon as there is a record.
        """
        if records <= 0 or (self.records is None and self.hours is None):
            return False
        if age is None:
            return True
        if self.records is not None and records >= self.records:
            return True
        return self.hours is not None and age >= timedelta(hours=self.hours)


def is_merge_due(previous: Dataset, *, changed: int) -> bool:
    """Whether to write a new base instead of a layer of about `changed` rows over `previous`.

    The layer's size is estimated from the base, because it has not been read yet.
    """
    rows = sum(ref.rows for ref in previous.base)
    if not rows or len(previous.layers) >= MAX_KEPT_LAYERS:
        return True
    expected = previous.layer_bytes + previous.base_bytes * changed / rows
    return expected > MAX_LAYER_SHARE * previous.base_bytes
