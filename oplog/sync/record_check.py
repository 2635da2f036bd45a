"""What a record must be before it is published: nothing that a reader of an archive trips over.

The worker has no key, so that sealed bytes pass unread. All else is checked here, where the
database still has the record and somebody can put it right.
"""

from __future__ import annotations

from collections.abc import Iterator

from oplog.archive.format.body import MAX_ITEMS, MAX_PAIRS, MAX_PARTS
from oplog.archive.format.segment import MAX_BODY_BYTES
from oplog.entry import MAX_AGGREGATE_BYTES, MAX_METADATA_KEY_BYTES, MAX_METADATA_VALUE_BYTES
from oplog.errors import ChainBrokenError
from oplog.reading.reader import describe
from oplog.schema.row_checks import HIGHEST_POSITION
from oplog.store import StoredRecord
from oplog.store.rows import compute_hash

_ROOM = 4
"""Texts may be so many times longer than what the library writes: the absurd is refused."""
_HASH_ROOM = 64
"""Bytes for each aggregate beside its name."""


def check_publishable(record: StoredRecord) -> None:
    """Raise `ChainBrokenError`, which names the record, for one that must not be published."""
    why = next(_find_faults(record), None)
    if why is not None:
        raise ChainBrokenError(
            f"position {record.position}, record {record.record_id} ({describe(record)}) is not "
            f"published: {why}",
            hint="its row, or one of its parts, was altered or written past the log's functions: "
            "put it back from a backup. Nothing after it is published until then",
        )


def _find_faults(record: StoredRecord) -> Iterator[str]:
    """What is wrong, the cheapest to find first: nothing is added up before it is counted."""
    if not 0 < record.position < HIGHEST_POSITION:
        yield "its position is out of range"
    for count, what, most in (
        (len(record.aggregates), "aggregates", MAX_ITEMS),
        (len(record.parts), "parts", MAX_PARTS),
        (len(record.metadata) + 1, "pairs of metadata", MAX_PAIRS + 1),
    ):
        if not 0 < count <= most:
            yield f"it has too many {what}" if count else f"it has no {what}"
    yield from _find_odd_texts(record)
    clear = sum(_measure(key) + _measure(value) for key, value in record.metadata)
    clear += sum(_measure(name) + _HASH_ROOM for name in record.aggregates)
    if record.sealed_bytes + clear > MAX_BODY_BYTES:
        yield f"it has {record.sealed_bytes + clear} bytes, more than a segment holds"
    if compute_hash(record) != record.record_hash:
        yield "it does not match its hash"


def _find_odd_texts(record: StoredRecord) -> Iterator[str]:
    if not all(0 < _measure(name) <= _ROOM * MAX_AGGREGATE_BYTES for name in record.aggregates):
        yield "the name of an aggregate is empty or too long"
    for key, value in record.metadata:
        fits = _measure(value) <= _ROOM * MAX_METADATA_VALUE_BYTES
        if not (fits and 0 < _measure(key) <= _ROOM * MAX_METADATA_KEY_BYTES):
            yield f"its metadata {key!r:.60} are empty or too long"


def _measure(text: str) -> int:
    return len(text.encode(errors="replace"))
