"""Opens stored records: checks their hashes, unseals and decodes them.

The one place where sealed bytes become effects, whichever source they come from. A record whose
bytes do not match its hash is refused before it is unsealed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from uuid import UUID

from oplog.crypto.seal import Sealer, name_part
from oplog.entry import SEARCH_KEY, LoggedEntry, Operation
from oplog.errors import ChainBrokenError, DecodeError, KeyUnavailableError, OplogError
from oplog.payload.codec import Effect, FindKeys, PayloadCodec, effect_to_operation
from oplog.payload.upcast import StepLookup, Upcaster
from oplog.reading.shape_table import ShapeTable
from oplog.reading.skipped_records import SkippedRecords, advise_quarantine, is_unreadable
from oplog.schema.guard import FORMAT_MARK
from oplog.store import EntryFilter, LogSource, StoredRecord
from oplog.store.quarantined import QuarantinedRecord
from oplog.store.rows import compute_hash, list_aggregates

_read_ordinal = attrgetter("ordinal")
_PAUSE_EFFECTS = 200
"""Opening as many takes some milliseconds."""


@dataclass(slots=True)
class OpenedRecord:
    """A record whose bytes were checked and opened; effects are in the order they happened.

    One that was passed over has none, and says why in `skipped`.
    """

    stored: StoredRecord
    effects: list[Effect]
    skipped: QuarantinedRecord | None = None


class RecordReader:
    """Opens the records of one log; made by `LogOpener`."""

    def __init__(
        self,
        source: LogSource,
        *,
        sealer: Sealer,
        codec: PayloadCodec,
        types: ShapeTable,
        log_id: UUID,
        key_checks: Mapping[str, bytes],
        upcaster: Upcaster | None = None,
        pause: Callable[[], None] | None = None,
    ) -> None:
        """`pause` is called after every so many effects."""
        self.source = source
        self.types = types
        self.skipped = SkippedRecords(self._read_marks)
        """What is quarantined, and was passed over by this reader."""
        self._sealer = sealer
        self._codec = codec
        self._log_id = log_id
        self._key_checks = key_checks
        self._upcaster = upcaster
        self._pause = pause
        self._unpaused = 0

    def read_as(self, revisions: Mapping[str, int], steps: StepLookup) -> None:
        """Give effects of these types in these revisions, and others as they were logged."""
        self._upcaster = Upcaster(steps, self.types)
        self._upcaster.want(revisions)

    def aim_steps(self, revisions: Mapping[str, int]) -> None:
        """Let declared steps lead no further than to these revisions, by type.

        The caller reads the rest of the way by field number.
        """
        if self._upcaster is not None:
            self._upcaster.aim(revisions)

    def open(
        self,
        stored: StoredRecord,
        *,
        find_keys: FindKeys | None = None,
        aggregates: Collection[str] | None = None,
    ) -> OpenedRecord:
        """Check, unseal and decode one record; any error names its position.

        With `find_keys`, rows of blocks and runs under other keys may be left out; with
        `aggregates`, effects on others.
        """
        check_hashes(stored)
        if stored.format == FORMAT_MARK:
            # Written by the database, which holds no key: it can say that, but never rows.
            return OpenedRecord(stored, [])
        skipped = self.skipped.meet(stored)
        if skipped is not None:
            return OpenedRecord(stored, [], skipped)
        effects = self.decode(stored, find_keys=find_keys, aggregates=aggregates)
        if self._pause is not None:
            self._unpaused += 1 + len(effects)
            if self._unpaused >= _PAUSE_EFFECTS:
                self._unpaused = 0
                self._pause()
        return OpenedRecord(stored, effects)

    def decode(
        self,
        stored: StoredRecord,
        *,
        find_keys: FindKeys | None = None,
        aggregates: Collection[str] | None = None,
    ) -> list[Effect]:
        """The effects of a record whose hash was checked, quarantined or not."""
        numbers: Iterable[int] = range(len(stored.parts))
        if aggregates is not None and len(stored.parts) > 1:
            numbers = choose_parts(stored, aggregates)
        try:
            effects: list[Effect] = []
            for number in numbers:
                effects += self._open_part(stored, number, find_keys)
            if len(stored.parts) > 1:
                effects.sort(key=_read_ordinal)
            if self._upcaster is not None:
                effects = [self._upcaster.convert(effect) for effect in effects]
        except OplogError as error:
            self._explain(error, stored)
            raise
        return effects

    def _explain(self, error: OplogError, stored: StoredRecord) -> None:
        error.add_note(f"at position {stored.position}, {describe(stored)}")
        if isinstance(error, KeyUnavailableError) or self.is_unreadable(error, stored):
            advise_quarantine(error, stored)

    def is_unreadable(self, error: OplogError, stored: StoredRecord) -> bool:
        """Whether an error in opening a record says that nobody can open it."""
        return is_unreadable(error, stored, known_keys=self._key_checks.keys())

    def _read_marks(self) -> Iterator[StoredRecord]:
        for mark in self.source.list_quarantine_marks():
            check_hashes(mark)
            yield mark

    def _open_part(
        self, stored: StoredRecord, number: int, find_keys: FindKeys | None
    ) -> list[Effect]:
        part = stored.parts[number]
        payload = self._sealer.open(
            part.data,
            name_part(self._log_id, stored.record_id, number),
            format=stored.format,
            key_id=stored.key_id,
            check_value=self._key_checks.get(stored.key_id),
        )
        effects = self._codec.decode(payload, self.types, first=part.first, find_keys=find_keys)
        most = len(stored.aggregates)
        if any(effect.place >= most for effect in effects):
            raise DecodeError(
                f"part {number} of record {stored.record_id} has an effect on an aggregate beyond "
                f"the {most} of the record",
                hint="the record is damaged or written by a newer library; upgrade and run verify",
            )
        return effects

    def iterate_records(
        self, snapshot: str, *, after: int = 0, through: int | None = None
    ) -> Iterator[OpenedRecord]:
        """Opened records in causal order, from one snapshot of the log; bounds are positions."""
        for page in self.source.iterate(EntryFilter(after=after), snapshot=snapshot):
            if through is not None and self.source.ordered and page[0].position > through:
                return
            for stored in page:
                if through is None or stored.position <= through:
                    yield self.open(stored)

    def read(self, filter: EntryFilter, *, snapshot: str) -> Iterator[LoggedEntry]:
        """Entries for people, in causal order, from one snapshot."""
        wanted = list_aggregates(filter)
        for page in self.source.iterate(filter, snapshot=snapshot):
            yield from self.present(page, aggregates=wanted)

    def present(
        self, page: Iterable[StoredRecord], *, aggregates: Collection[str] | None = None
    ) -> Iterator[LoggedEntry]:
        """The entries of records, or those of some aggregates, with Python values."""
        for stored in page:
            opened = self.open(stored, aggregates=aggregates)
            operations: dict[int, list[Operation]] = {}
            for effect, operation in self.list_operations(opened):
                operations.setdefault(effect.place, []).append(operation)
            metadata = group_pairs(stored.metadata)
            for place, aggregate in enumerate(stored.aggregates):
                if aggregates is not None and aggregate not in aggregates:
                    continue
                yield LoggedEntry(
                    position=stored.position,
                    sequence=self.source.find_sequence(stored.position),
                    aggregate=aggregate,
                    version=stored.versions[place],
                    operations=tuple(operations.get(place, ())),
                    metadata=metadata,
                    transaction_id=stored.transaction_id,
                    entry_id=stored.record_id,
                    entry_hash=stored.record_hash,
                    recorded_at=stored.recorded_at,
                    quarantined=None if opened.skipped is None else opened.skipped.reason,
                )

    def list_operations(self, opened: OpenedRecord) -> list[tuple[Effect, Operation]]:
        """Effects with Python values; `DecodeError` for a value that its column cannot hold."""
        try:
            return [(effect, effect_to_operation(effect)) for effect in opened.effects]
        except DecodeError as error:
            self._explain(error, opened.stored)
            raise


def choose_parts(stored: StoredRecord, aggregates: Collection[str]) -> list[int]:
    """Numbers of the parts that may hold effects on some of a record's aggregates.

    An aggregate may go on in the part that begins with it.
    """
    places = [n for n, name in enumerate(stored.aggregates) if name in aggregates]
    ends = [after.first for _, after in pairwise(stored.parts)] + [len(stored.aggregates)]
    return [
        number
        for number, (part, end) in enumerate(zip(stored.parts, ends, strict=True))
        if any(part.first <= place <= end for place in places)
    ]


def check_hashes(stored: StoredRecord) -> None:
    """Raise `ChainBrokenError` unless the record's bytes and header match its hash."""
    if compute_hash(stored) != stored.record_hash:
        raise _altered(stored)


def _altered(stored: StoredRecord) -> ChainBrokenError:
    return ChainBrokenError(
        f"position {stored.position} ({describe(stored)}) does not match its hash",
        hint="rows of oplog_record or oplog_part were altered; compare with a backup or the "
        "archive",
    )


def describe(stored: StoredRecord) -> str:
    """The record as an operator would look it up."""
    if not stored.aggregates or not stored.versions:
        return f"record {stored.record_id}"
    first = f"aggregate {stored.aggregates[0]!r} version {stored.versions[0]}"
    more = len(stored.aggregates) - 1
    return f"{first} and {more} more" if more else first


def group_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Metadata as people read it: values by key, without the tokens of searchable columns."""
    grouped: dict[str, list[str]] = {}
    for key, value in pairs:
        if key != SEARCH_KEY:
            grouped.setdefault(key, []).append(value)
    return grouped
