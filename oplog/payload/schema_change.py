"""What became of a type's rows when its table got the shape of a revision.

The database works it out from its catalog when a revision is stored, and an archive has it with
the revision. Without it, rows of older revisions could not be read as rows of the newer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oplog.errors import DecodeError


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """From the revision before to this one; columns are field numbers.

    `previous` is 0 for a first revision, and for one that begins anew: rows of earlier ones were
    retired. `fills` are columns that were added, with the value of rows from before, as text.
    `rewritten` are columns whose earlier values say nothing: their values were logged again.
    `labels` are enum labels that were renamed, new by old. `readopted`: all rows were logged again.
    """

    previous: int = 0
    fills: Mapping[int, str | None] = field(default_factory=dict)
    rewritten: frozenset[int] = frozenset()
    labels: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    readopted: bool = False

    @property
    def logs_rows(self) -> bool:
        """Whether rows have to be logged again before the change is complete."""
        return self.readopted or bool(self.rewritten)

    def to_json(self) -> dict[str, Any]:
        """What the type table and an archive store."""
        return {
            "previous": self.previous,
            "fills": {str(number): text for number, text in sorted(self.fills.items())},
            "rewritten": sorted(self.rewritten),
            "labels": {str(number): dict(one) for number, one in sorted(self.labels.items())},
            "readopted": self.readopted,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> SchemaChange:
        """The inverse of `to_json`; `DecodeError` for anything else."""
        try:
            return cls(
                previous=int(found["previous"]),
                fills={int(number): text for number, text in found["fills"].items()},
                rewritten=frozenset(int(number) for number in found["rewritten"]),
                labels={int(number): dict(one) for number, one in found["labels"].items()},
                readopted=bool(found["readopted"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise DecodeError(
                "what is stored of a schema change cannot be read",
                hint="compare the row in oplog_type with a backup or the archive",
            ) from cause


FIRST = SchemaChange()
"""Of a type's first revision."""
