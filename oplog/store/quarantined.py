"""Marks by which the owner says that a record cannot be read, as plain values.

A mark is a record of the log, in format 3, of an aggregate that only the owner's members may write
marks to. It names the record by position, id and hash: what a mark says of one record holds for no
other one that comes to stand at its position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from oplog.metadata_context import current_context
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.mark_names import QUARANTINE_AGGREGATE
from oplog.store.rows import StoredRecord

QUARANTINED = "quarantined"
"""Metadata key of a mark: the position of the record that it speaks of."""
_RECORD = "quarantined_record"
_HASH = "quarantined_hash"
_AGGREGATE = "quarantined_aggregate"
_ENTRIES = "quarantined_entries"
_REASON = "oplog.reason"
ROLE = "oplog.role"
"""Metadata key of the role that wrote a mark."""
_SHOWN_AGGREGATES = 20
MAX_REASON = 250
"""Characters of a reason, as of the other marks' reasons."""


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record that the owner has declared unreadable, and why.

    `record_id` and `record_hash` are its own, `aggregates` its first ones, of `entries` in all.
    `marked_at_position` is where the mark stands, and `role` wrote it.
    """

    position: int
    record_id: UUID
    record_hash: bytes
    reason: str
    role: str
    marked_at_position: int
    aggregates: tuple[str, ...] = ()
    entries: int = 0

    def describe(self) -> str:
        """The record and the reason, for a message."""
        more = self.entries - len(self.aggregates[:1])
        named = f", aggregate {self.aggregates[0]!r}" if self.aggregates else ""
        return (
            f"position {self.position} (record {self.record_id}{named}"
            f"{f' and {more} more' if named and more else ''}), quarantined: {self.reason}"
        )

    def to_json(self) -> dict[str, Any]:
        """The record as one JSON object."""
        return {
            "position": self.position,
            "record_id": str(self.record_id),
            "record_hash": self.record_hash.hex(),
            "aggregates": list(self.aggregates),
            "entries": self.entries,
            "reason": self.reason,
            "role": self.role,
            "marked_at_position": self.marked_at_position,
        }


def list_quarantined_json(records: Sequence[QuarantinedRecord]) -> list[dict[str, Any]]:
    """Records as a report shows them in JSON."""
    return [one.to_json() for one in records]


def is_quarantine_mark(stored: StoredRecord) -> bool:
    """Whether a record is such a mark: anybody may write other records of the aggregate."""
    return stored.format == FORMAT_MARK and QUARANTINE_AGGREGATE in stored.aggregates


def read_mark(stored: StoredRecord) -> QuarantinedRecord | None:
    """What a mark says; None for one that names no record."""
    known = dict(stored.metadata)
    position, record, digest = (known.get(key, "") for key in (QUARANTINED, _RECORD, _HASH))
    if not (
        re.fullmatch("[0-9]{1,19}", position)
        and re.fullmatch("[0-9a-f-]{36}", record)
        and re.fullmatch("[0-9a-f]{64}", digest)
    ):
        return None
    aggregates = tuple([value for key, value in stored.metadata if key == _AGGREGATE])
    entries = known.get(_ENTRIES, "")
    try:
        record_id = UUID(record)
    except ValueError:
        return None
    return QuarantinedRecord(
        position=int(position),
        record_id=record_id,
        record_hash=bytes.fromhex(digest),
        reason=known.get(_REASON, ""),
        role=known.get(ROLE, ""),
        marked_at_position=stored.position,
        aggregates=aggregates,
        entries=int(entries) if re.fullmatch("[0-9]{1,9}", entries) else len(aggregates),
    )


def list_marked(records: Iterable[StoredRecord]) -> list[QuarantinedRecord]:
    """What the marks among records say."""
    found = [read_mark(record) for record in records if is_quarantine_mark(record)]
    return [one for one in found if one is not None]


def write_metadata(stored: StoredRecord, *, reason: str) -> tuple[list[str], list[str]]:
    """Keys and values of the mark that quarantines a record, but for the role that writes it."""
    pairs = [
        (QUARANTINED, str(stored.position)),
        (_RECORD, str(stored.record_id)),
        (_HASH, stored.record_hash.hex()),
        *((_AGGREGATE, name) for name in stored.aggregates[:_SHOWN_AGGREGATES]),
        (_ENTRIES, str(len(stored.aggregates))),
        (_REASON, reason),
    ]
    # Who does it; what the mark says of the record stays as it is.
    taken = {key for key, _ in pairs} | {ROLE}
    pairs += [
        (key, value)
        for key, values in current_context().items()
        if key not in taken
        for value in values
    ]
    return [key for key, _ in pairs], [value for _, value in pairs]
