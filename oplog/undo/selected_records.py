"""Finds the records that are to be undone, by what the caller says of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from oplog.entry import LoggedEntry, check_aggregate_name, check_metadata
from oplog.errors import ConfigurationError, UndoError
from oplog.reading.given_place import find_place
from oplog.reading.reader import RecordReader
from oplog.receipt import Receipt
from oplog.schema.mark_names import ADOPTION_PREFIX
from oplog.store import EntryFilter, StoredRecord
from oplog.store.adopted import REFILLED

MOST_RECORDS = 15_000
"""Most records of one undo: its own record names them all."""
_APART = 64
"""Up to so many records are looked up one by one; more are found by reading between them."""


@dataclass(frozen=True)
class Selection:
    """What is to be undone: the effects of records, or those on some aggregates.

    `records` are positions and record ids. Without any, all records that fit the rest.
    """

    records: frozenset[int | UUID] = frozenset()
    aggregates: frozenset[str] = frozenset()
    metadata: tuple[tuple[str, str], ...] = ()
    after: int | datetime | None = None
    through: int | datetime | None = None


def make_selection(
    records: Any,
    *,
    aggregate: str | Iterable[str] | None,
    metadata: Mapping[str, str | Iterable[str]] | None,
    after: int | datetime | None,
    through: int | datetime | None,
) -> Selection:
    """The selection that a caller means; `ConfigurationError` for one that says nothing."""
    names = [aggregate] if isinstance(aggregate, str) else list(aggregate or ())
    made = Selection(
        records=take_records(records),
        aggregates=frozenset(check_aggregate_name(name) for name in names),
        metadata=tuple(
            (key, value)
            for key, given in (metadata or {}).items()
            for value in check_metadata(key, given)
        ),
        after=after,
        through=through,
    )
    if not (made.records or made.aggregates or made.metadata) and made.after is None:
        raise ConfigurationError(
            "nothing says what is to be undone",
            hint="give records=, aggregate=, metadata= or after=",
        )
    return made


def take_records(given: Any) -> frozenset[int | UUID]:
    """Positions and ids of records, given as such or as receipts or entries, one or several."""
    if given is None:
        return frozenset()
    if isinstance(given, (int, UUID, Receipt, LoggedEntry, str)):
        given = [given]
    if not isinstance(given, Iterable):
        raise _refuse_record(given)
    found = frozenset(_take_record(one) for one in given)
    if not found:
        raise ConfigurationError(
            "records= names no record",
            hint="give positions, record ids, receipts or entries; leave it out to choose "
            "otherwise",
        )
    return found


def _take_record(given: Any) -> int | UUID:
    if isinstance(given, Receipt):
        return given.record_id
    if isinstance(given, LoggedEntry):
        return given.position
    if isinstance(given, UUID) or (type(given) is int and given > 0):
        return given
    if isinstance(given, str):
        try:
            return UUID(given)
        except ValueError as cause:
            raise _refuse_record(given) from cause
    raise _refuse_record(given)


def _refuse_record(given: Any) -> ConfigurationError:
    return ConfigurationError(
        f"{given!r:.80} names no record",
        hint="give a position, as entry.position is one, a record id, a receipt or an entry",
    )


def select_records(
    reader: RecordReader, selection: Selection, *, snapshot: str
) -> Iterator[StoredRecord]:
    """The stored records that fit, in causal order; `UndoError` for one that is not there."""
    first = find_place(reader, selection.after, snapshot=snapshot)
    last = find_place(reader, selection.through, snapshot=snapshot)
    wanted, found = selection.records, set[int | UUID]()
    positions = sorted(one for one in wanted if isinstance(one, int))
    ranges = [(first, last)]
    if wanted and len(positions) == len(wanted):
        if len(positions) <= _APART and reader.source.ordered:
            ranges = [(one - 1, one) for one in positions]
        else:
            ranges = [(positions[0] - 1, positions[-1])]
    for after, through in ranges:
        chosen = EntryFilter(
            metadata=selection.metadata,
            after=after,
            through=through,
            aggregates=tuple(sorted(selection.aggregates)),
        )
        for page in reader.source.iterate(chosen, snapshot=snapshot):
            for stored in page:
                named = wanted & {stored.position, stored.record_id}
                found |= named
                if named or not wanted:
                    yield stored
    missing = sorted(map(str, wanted - found))
    if missing:
        raise UndoError(
            f"the log has no record {missing[0]} that fits"
            + (f", nor {len(missing) - 1} others" if len(missing) > 1 else ""),
            hint="name records by their position or id, as oplog tail shows them; one that was "
            "rolled back has none",
        )


def why_left_out(stored: StoredRecord) -> str | None:
    """Why there is nothing to undo in a record; None where there may be."""
    keys = {key for key, _ in stored.metadata}
    if all(name.startswith(ADOPTION_PREFIX) for name in stored.aggregates) and stored.aggregates:
        return "it logs rows as they were, or says that a table was changed: it changed no row"
    if REFILLED in keys:
        return "it logs again what a migration made of rows: undo the migration by another one"
    if not stored.aggregates or all(name.startswith("oplog/") for name in stored.aggregates):
        return "it is the log's own mark and changed no row"
    return None


def find_kept_aggregates(stored: StoredRecord, wanted: Collection[str]) -> frozenset[int]:
    """Places of the aggregates of a record whose effects are to be undone."""
    return frozenset(
        place for place, name in enumerate(stored.aggregates) if not wanted or name in wanted
    )


def read_undone(metadata: Mapping[str, list[str]]) -> frozenset[int]:
    """Positions of the records that a record says it undid."""
    found = set[int]()
    for text in (*metadata.get(UNDOES, ()), *metadata.get(UNDOES_MORE, ())):
        found |= {int(part) for part in text.split(",") if part.isascii() and part.isdecimal()}
    return frozenset(found)


UNDOES = "undoes"
"""Metadata key of an undo: the position of each record that it undid, up to `_SEARCHED`."""
UNDOES_MORE = "undoes_more"
"""Metadata key of an undo of more records: the other positions, several in a value."""
_SEARCHED = 100
_PACKED = 110


def name_undone(positions: Iterable[int]) -> dict[str, list[str]]:
    """The metadata by which an undo names the records that it undoes."""
    texts = [str(position) for position in sorted(positions)]
    named = {UNDOES: texts[:_SEARCHED]}
    rest = texts[_SEARCHED:]
    if rest:
        # In 1,024 bytes each; positions have at most 19 digits, of which few are in use.
        width = max(1, min(_PACKED, 1024 // (len(rest[-1]) + 1)))
        named[UNDOES_MORE] = [",".join(rest[n : n + width]) for n in range(0, len(rest), width)]
    return named
